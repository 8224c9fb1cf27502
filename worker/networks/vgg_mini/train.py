"""Draw the training pictures, train `vgg_mini`, print its held-out accuracy, write its weights.

    python -m worker.networks.vgg_mini.train [--seed 0] [--out worker/networks/vgg_mini/vgg_mini.safetensors]

Batch normalisation is used in training and folded into the convolutions at the end: the file is a plain VGG.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from shared.drawings import COLOURS, SHAPES, TEXTURES, draw, random_background, random_figure
from worker.networks.vgg_mini import WEIGHTS_FILE, VggMini

TRAINING_PICTURES = 12_000
HELD_OUT_PICTURES = 2_000
EPOCHS = 10
BATCH = 64
LEARNING_RATE = 4e-3
RADII = (0.18, 0.42)
KINDS = (SHAPES, tuple(COLOURS), TEXTURES)


def pictures(rng: Generator, count: int) -> tuple[Tensor, Tensor]:
    """Pictures of one figure each, (count, 3, 96, 96) uint8, and its shape, colour, texture, (count, 3)."""
    images, labels = [], []
    for _ in range(count):
        label = [int(rng.integers(len(kinds))) for kinds in KINDS]
        shape, colour, texture = (kinds[index] for kinds, index in zip(KINDS, label, strict=True))
        figure = random_figure(rng, shape, colour, texture, RADII)
        background = random_background(rng, VggMini.INPUT_SIZE)
        images.append(np.asarray(draw([figure], VggMini.INPUT_SIZE, background).image))
        labels.append(label)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


def normalised(images: Tensor) -> Tensor:
    """uint8 → the network's input space."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (VggMini.MEAN, VggMini.STD))
    return (images.float() / 255 - mean) / std


def train(
    model: VggMini, images: Tensor, labels: Tensor, rng: Generator, epochs: int = EPOCHS, rate: float = LEARNING_RATE
) -> None:
    """AdamW with a one-cycle learning rate; prints a line an epoch."""
    steps = epochs * (len(images) // BATCH)
    optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    model.train()
    start = time.perf_counter()
    for epoch in range(epochs):
        order = torch.from_numpy(rng.permutation(len(images)))[: len(images) // BATCH * BATCH]
        total = 0.0
        for batch in order.split(BATCH):
            loss = cross_entropy(model(normalised(images[batch])), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}/{epochs}  loss {total * BATCH / len(order):.4f}  {time.perf_counter() - start:.0f} s")


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum over shape, colour and texture."""
    parts = logits.split(VggMini.OUTPUTS, dim=1)
    losses = [nn.functional.cross_entropy(part, labels[:, kind]) for kind, part in enumerate(parts)]
    return torch.stack(losses).sum()


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """The fractions of pictures whose shape, colour, texture, and all three, are classified correctly."""
    logits = torch.cat([model(normalised(batch)) for batch in images.split(BATCH)])
    right = torch.stack([part.argmax(1) for part in logits.split(VggMini.OUTPUTS, dim=1)], dim=1) == labels
    shares = right.float().mean(0).tolist()
    return {**dict(zip(("shape", "colour", "texture"), shares, strict=True)), "all": right.all(1).float().mean().item()}


def folded(model: VggMini) -> VggMini:
    """The same function without batch normalisation."""
    model.eval()
    plain = VggMini().eval()
    layers: list[nn.Module] = []
    for layer in model.features:
        if isinstance(layer, nn.BatchNorm2d):
            assert isinstance(layers[-1], nn.Conv2d)
            layers[-1] = fuse_conv_bn_eval(layers[-1], layer)
        else:
            layers.append(layer)
    plain.features.load_state_dict(nn.Sequential(*layers).state_dict())
    plain.classifier.load_state_dict(model.classifier.state_dict())
    return plain


def main() -> None:
    """Train and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WEIGHTS_FILE)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    torch.use_deterministic_algorithms(True)
    rng = np.random.default_rng(options.seed)
    print(f"drawing {TRAINING_PICTURES + HELD_OUT_PICTURES} pictures")
    images, labels = pictures(rng, TRAINING_PICTURES)
    held_out = pictures(np.random.default_rng([options.seed, 1]), HELD_OUT_PICTURES)

    trained = VggMini(batch_norm=True).to(memory_format=torch.channels_last)
    train(trained, images, labels, rng)
    model = folded(trained)
    scores = {name: round(share, 4) for name, share in accuracy(model, *held_out).items()}
    print("held-out accuracy:", json.dumps(scores))
    metadata = {
        "arch": "vgg_mini",
        "training": f"{TRAINING_PICTURES} drawn pictures, {EPOCHS} epochs, seed {options.seed}",
        "held_out_accuracy": json.dumps(scores),
        "normalization_mean": ",".join(map(str, VggMini.MEAN)),
        "normalization_std": ",".join(map(str, VggMini.STD)),
    }
    data = save(model.state_dict(), metadata)
    options.out.write_bytes(data)
    print(f"{options.out}: {len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main()
