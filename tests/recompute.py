"""Recomputes the metrics of a delivered PNG independently, with plain torch functions, numpy and scikit-image."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from skimage.metrics import structural_similarity
from torch.nn import functional

Array = NDArray[np.float64]

VGG_BLOCKS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4), "vgg_mini": (2, 2, 2, 2)}


@dataclass
class PlainVgg:
    """An independent implementation of VGG up to a layer, from its weights file."""

    file: Path
    blocks: tuple[int, ...]
    layer: str  # conv3_2
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def maps(self, pixels: Array) -> Array:
        """(H, W, 3) bytes → the layer's maps after its ReLU, (C, h, w), in float64."""
        return self.all_maps(pixels)[-1]

    def all_maps(self, pixels: Array) -> list[Array]:
        """As `maps`, for every layer from the first to this one."""
        found: list[Array] = []
        x = torch.from_numpy(((pixels / 255 - self.mean) / self.std).transpose(2, 0, 1)[None])
        wanted = tuple(int(part) for part in self.layer.removeprefix("conv").split("_"))
        node = 0
        with safe_open(self.file, "pt") as tensors:
            for block, count in enumerate(self.blocks, start=1):
                for number in range(1, count + 1):
                    weight, bias = (
                        tensors.get_tensor(f"features.{node}.{kind}").double() for kind in ("weight", "bias")
                    )
                    x = functional.relu(functional.conv2d(x, weight, bias, padding=1))
                    found.append(np.asarray(x[0].numpy()))
                    if (block, number) == wanted:
                        return found
                    node += 2
                x = functional.max_pool2d(x, 2)
                node += 1
        raise AssertionError(self.layer)


def numbers(network: PlainVgg, original: bytes, delivered: bytes, size: int, kernel: int) -> dict[str, float]:
    """Losses and metrics by the names of the API, with α = β = 1."""
    picture = Image.open(BytesIO(original)).convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    before_pixels, after_pixels = (np.asarray(each).astype(float) for each in (picture, Image.open(BytesIO(delivered))))
    (*below_before, before), (*below_after, after) = map(network.all_maps, (before_pixels, after_pixels))
    invented = [np.maximum(b - a, 0).sum() / a.sum() for a, b in zip(below_before, below_after, strict=True)]
    others = np.arange(len(before)) != kernel
    grey = np.round(255 * np.array(network.mean))
    x = np.where(after_pixels == grey, 0, (after_pixels / 255 - network.mean) / network.std)
    preservation = np.linalg.norm(after[kernel] - before[kernel]) / np.linalg.norm(before[kernel])
    leakage = after[others].sum() / before[others].sum()
    regularization = np.abs(x).mean()
    return {
        "preservation": preservation,
        "suppression": leakage,
        "regularization": regularization,
        "total": preservation + leakage + regularization,
        "ssim": _ssim(after[kernel], before[kernel]),
        "mse_others": (after[others] ** 2).mean(),
        "mse_others_before": (before[others] ** 2).mean(),
        "mse_selected": ((after[kernel] - before[kernel]) ** 2).mean(),
        "leakage": leakage,
        "invention": np.mean(invented) if invented else 0.0,
        "sparsity": (after_pixels == grey).all(axis=2).mean(),
    }


def _ssim(after: Array, before: Array) -> float:
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": before.max()}
    value: float = structural_similarity(after, before, **options)
    return value
