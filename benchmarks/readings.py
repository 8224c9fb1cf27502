"""Readings of X̂ that are not optimised: in another network, under deletion, and after small changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter
from safetensors.torch import load_file
from torch import Tensor
from torchvision import models

from worker.engine.quality import map_ssim
from worker.engine.questions import Picture
from worker.networks.layer import LoadedNetwork
from worker.networks.loaded import Networks

OTHER = "squeezenet1_1"
STEPS = 10  # of deletion
NOISE = 4  # 8-bit levels


@dataclass(frozen=True)
class OtherNetwork:
    """Another network, for which X̂ is not optimised."""

    folder: Path

    @cached_property
    def network(self) -> LoadedNetwork:
        """Its layers."""
        return Networks(self.folder, torch.device("cpu"), download=False).get(OTHER)

    @cached_property
    def classifier(self) -> torch.nn.Module:
        """The whole network."""
        net: torch.nn.Module = models.squeezenet1_1(weights=None).eval().requires_grad_(False)
        net.load_state_dict(load_file(self.folder / self.network.weights.source))
        return net

    def read(self, original: Picture, picture: Picture) -> dict[str, float]:
        """`other_invention`: L_e of X̂ in this network; `other_rank`: the rank for X̂ of its first class for X."""
        images = self.network.space.from_bytes(tensor(original, picture))
        *_, last = self.network.layers.values()
        _, invented, _ = last.tapped.invention(images[:1], images[1:], [0])
        before, after = self.classifier(images)
        rank = int((after > after[int(before.argmax())]).sum()) + 1
        return {"other_invention": float(invented.mean()), "other_rank": rank}


def small_changes(
    network: LoadedNetwork, layer: str, kernel: int, original: Picture, picture: Picture
) -> dict[str, float]:
    """SSIM of the kernel's map after each small change of X̂."""
    changes = dict(_changes(Image.fromarray(picture)))
    images = network.space.from_bytes(tensor(original, *(np.asarray(one) for one in changes.values())))
    with torch.no_grad():
        before, *after = network.layer(layer).features(images)[:, kernel]
    found = {name: map_ssim(maps, before) for name, maps in zip(changes, after, strict=True)}
    return {f"{name}_ssim": value for name, value in found.items() if value is not None}


def _changes(picture: Image.Image) -> Iterator[tuple[str, Image.Image]]:
    squeezed = BytesIO()
    picture.save(squeezed, "JPEG", quality=75)
    yield "jpeg75", Image.open(squeezed).convert("RGB")
    yield "blur", picture.filter(ImageFilter.GaussianBlur(0.7))
    levels = np.asarray(picture).astype(int)
    noise = np.random.default_rng(0).integers(-NOISE, NOISE + 1, levels.shape)
    yield "noise", Image.fromarray((levels + noise).clip(0, 255).astype(np.uint8))
    yield "shift", ImageChops.offset(picture, 1, 0)


def deletion(
    network: LoadedNetwork, layer: str, kernel: int, original: Picture, strength: NDArray[np.floating] | None
) -> float:
    """Area under ΣF_i / ΣF_i(X) while the pixels of X are set to the mean colour, the strongest first.

    Args:
        network, layer, kernel: whose maps are summed.
        original: X.
        strength: of each pixel, (H, W); None: a random order.
    """
    side = original.shape[0] * original.shape[1]
    order = np.random.default_rng(0).permutation(side)  # random, and breaks ties
    if strength is not None:
        order = order[np.argsort(-strength.ravel()[order], kind="stable")]
    image = network.space.from_bytes(tensor(original))
    stages = image.repeat(STEPS, 1, 1, 1)
    for step in range(1, STEPS):
        gone = torch.from_numpy(order[: side * step // STEPS].copy())
        stages[step].flatten(1)[:, gone] = 0
    stages = torch.cat([stages, torch.zeros_like(image)])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        left: list[float] = network.layer(layer).features(stages)[:, kernel].float().sum(dim=(1, 2)).tolist()
    return fmean((one + other) / 2 for one, other in pairwise(left)) / left[0]


def strength(network: LoadedNetwork, picture: Picture) -> NDArray[np.float32]:
    """The deviation of each pixel of X̂ from the mean colour, (H, W)."""
    found: NDArray[np.float32] = network.space.weighed(tensor(picture))[0].abs().amax(dim=0).numpy()
    return found


def tensor(*pictures: Picture) -> Tensor:
    """The pictures as a batch, (B, 3, H, W) uint8."""
    return torch.from_numpy(np.stack(pictures).copy()).permute(0, 3, 1, 2)
