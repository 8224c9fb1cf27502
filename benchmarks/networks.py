"""Layers, speed and losses of a network of each family: `python -m benchmarks.networks`.

The weights are random, with batch statistics of the pictures: X̂ has no meaning, but shapes, speed and the course of the
loss are realistic. For each network the third most active kernel of a layer at a third of the depth is explained by
evidence and by the paper's method at `quick`. `--markdown` prints the table of docs/networks.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage import data
from torch import nn

from worker.engine.device import TorchDevice
from worker.engine.engine import Engine
from worker.engine.questions import Answer, Question
from worker.engine.speed import measured_speed
from worker.methods.baselines import METHODS
from worker.networks.architectures import ARCHITECTURES, layers_of
from worker.networks.checkpoints import IMAGENET_MEAN, IMAGENET_STD
from worker.networks.loaded import Networks

FAMILIES = (
    *("vgg16", "alexnet", "squeezenet1_1", "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"),
    *("densenet121", "googlenet", "inception_v3", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0"),
    *("regnet_x_400mf", "regnet_y_400mf", "shufflenet_v2_x1_0", "mnasnet1_0", "convnext_tiny"),
)
PICTURES: tuple[Any, ...] = (data.astronaut, data.coffee, data.cat, data.rocket)
RANK = 2


def main() -> None:
    """Print a line for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("networks", nargs="*", default=FAMILIES)
    options = parser.parse_args()
    rows = []
    for row in measured(options.networks):
        rows.append(row)
        print(json.dumps(row), file=sys.stderr)
    if options.json:
        print(json.dumps({"rows": rows}, indent=1))
    if options.markdown:
        print("\n".join(table(rows)))


def measured(names: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each network."""
    for name in names:
        with TemporaryDirectory() as folder:
            save_file(weights(name), Path(folder) / f"{name}.safetensors")
            yield explained(name, Path(folder))


def weights(name: str) -> dict[str, torch.Tensor]:
    """Torchvision's initial weights, He-initialised convolutions, and batch statistics of the pictures."""
    torch.manual_seed(0)
    model = ARCHITECTURES[name].module().to_empty(device="cpu")
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum, module.training = 1.0, True
            module.reset_running_stats()
    for key, parameter in model.named_parameters():
        if key.endswith("layer_scale"):
            nn.init.constant_(parameter, 0.1)
    with torch.no_grad():
        model(torch.cat([pixels(name, number) for number in range(len(PICTURES))]))
    own = layers_of(name)
    return {key: tensor.contiguous() for key, tensor in model.state_dict().items() if own.matters(key)}


def picture(name: str, number: int) -> Image.Image:
    """A picture at the network's input size."""
    size = ARCHITECTURES[name].frame.width
    return Image.fromarray(PICTURES[number]()).convert("RGB").resize((size, size), Image.Resampling.BILINEAR)


def pixels(name: str, number: int) -> torch.Tensor:
    """The picture, normalised, (1, 3, H, W)."""
    values = torch.tensor(np.array(picture(name, number))).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (IMAGENET_MEAN, IMAGENET_STD))
    return (values - mean) / std


def explained(name: str, folder: Path) -> dict[str, Any]:
    """The row of one network."""
    own = layers_of(name)
    main = own.main(own.layers)
    node = own.layers[main[len(main) // 3]]
    device = TorchDevice(Networks(folder, torch.device("cpu"), download=False))
    engine, image = Engine(device), np.array(picture(name, 0))
    kernel = engine.call(device.ranking, name, node.name, image)[RANK]
    asked = [
        Question(name, node.name, image, kernel, 1.0, 1.0, effort="quick", method=method)
        for method in ("evidence", "suppression")
    ]
    found = dict(engine.ask(asked))
    layer = device.networks.get(name).layer(node.name)
    speed = measured_speed(layer.cut, layer.frame, layer.device)
    engine.close()
    row: dict[str, Any] = {
        "network": name,
        "nodes": len(own.layers),
        "layers": len(main),
        "layer": node.name,
        "maps": f"{node.kernels}×{node.height}×{node.width}",
        "signed": node.signed,
        "evaluation_ms": round(1e3 * speed.seconds, 1),
        "baselines": [method for method in METHODS if not all(method in one.without for one in own.layers.values())],
        "baselines_here": [method for method in METHODS if method not in node.without],
    }
    for number, question in enumerate(asked):
        answer = found[number]
        assert isinstance(answer, Answer), answer
        row[question.method] = {
            "loss": round(answer.losses.total, 3),
            "start": round(answer.loss_start, 3),
            "blank": round(answer.loss_blank, 3),
            "ssim": None if answer.metrics.ssim is None else round(answer.metrics.ssim, 3),
            "invention": round(answer.metrics.invention or 0.0, 3),
            "seconds": round(answer.seconds, 1),
        }
    return row


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The table in Markdown."""
    heads = "network,nodes,main layers,layer,maps,ms,loss: evidence,paper,blank,invention: evidence,paper,baselines"
    yield f"| {heads.replace(',', ' | ')} |"
    yield "|---" * (heads.count(",") + 1) + "|"
    short = {"guided_backprop": "guided", "deconvnet": "deconv", "lrp": "LRP"}
    for row in rows:
        evidence, paper = row["evidence"], row["suppression"]
        baselines = ", ".join(short[method] for method in row["baselines_here"]) or "none"
        sign = " ±" if row["signed"] else ""
        yield (
            f"| {row['network']} | {row['nodes']} | {row['layers']} | `{row['layer']}` | {row['maps']}{sign} "
            f"| {row['evaluation_ms']:.0f} | {evidence['loss']:.2f} | {paper['loss']:.2f} | {paper['blank']:.2f} "
            f"| {evidence['invention']:.2f} | {paper['invention']:.2f} | {baselines} |"
        )


if __name__ == "__main__":
    main()
