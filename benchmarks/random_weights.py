"""VGG16 with random weights, for speed where there are no others: the size of the real thing, and nothing to see."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from worker.networks.architectures import ARCHITECTURES

SEED = 0


@cache
def vgg16_features() -> nn.Sequential:
    """The convolutional part on the CPU, He-initialised, frozen."""
    generator = torch.Generator().manual_seed(SEED)
    features = ARCHITECTURES["vgg16"].features().to_empty(device="cpu")
    for name, tensor in features.state_dict().items():
        fan_in = tensor[0].numel() if tensor.ndim > 1 else 1
        scale = (2 / fan_in) ** 0.5 if name.endswith("weight") else 0.0
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
    return features.requires_grad_(False).to(memory_format=torch.channels_last)


def vgg16_file(folder: Path) -> Path:
    """The same as a weights file that a worker takes."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"features.{name}": tensor.contiguous() for name, tensor in vgg16_features().state_dict().items()}
    file = folder / "vgg16-random.safetensors"
    save_file(tensors, file)
    return file
