"""VGG-16 with random weights, to measure speed without real weights."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from worker.networks.architectures import ARCHITECTURES, layers_of

SEED = 0


@cache
def vgg16_tensors() -> dict[str, Tensor]:
    """The convolutions' parameters by torchvision's names, He-initialised."""
    generator = torch.Generator().manual_seed(SEED)
    tensors = {}
    for name, meta in ARCHITECTURES["vgg16"].module().state_dict().items():
        if name.startswith("features."):
            fan_in = meta[0].numel() if meta.ndim > 1 else 1
            scale = (2 / fan_in) ** 0.5 if name.endswith("weight") else 0.0
            tensors[name] = torch.randn(meta.shape, generator=generator) * scale
    return tensors


def vgg16_cut(layer: str) -> nn.Module:
    """The network up to a layer without its ReLU, on the CPU."""
    own = layers_of("vgg16")
    return own.cut(own.filled(vgg16_tensors(), own.layers).to(memory_format=torch.channels_last), layer)


def vgg16_file(folder: Path) -> Path:
    """A weights file of the network in this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "vgg16-random.safetensors"
    save_file(vgg16_tensors(), file)
    return file
