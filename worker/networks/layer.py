"""One layer of a loaded network: what methods, batches and caches know of the network, and are keyed by."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from shared.schemas import WeightsUsed
from worker.methods.suppression import PixelSpace, Watched


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer, with the network below it: frozen, in eval mode, on its device.

    There is one of it for a name and a network, so it is a key by itself. What it makes when first asked is the
    engine's thread's.

    Args:
        network: the network's name.
        name: the layer's.
        cut: the network up to the layer but for its ReLU, images (B, 3, H, W) → Z (B, C, h, w); layers share modules.
        space: in which the images' pixels are.
        size: side of the images.
        weights: which the network has.
        below: the names of the ReLU layers below, in order.
    """

    network: str
    name: str
    cut: nn.Sequential
    space: PixelSpace
    size: int
    weights: WeightsUsed
    below: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        """On which it is."""
        return self.space.mean.device

    @cached_property
    def watched(self) -> Watched:
        """The same network, with ReLUs that can be watched."""
        return Watched(self.cut)

    def features(self, images: Tensor) -> Tensor:
        """The feature maps F = max(Z, 0): (B, 3, H, W) → (B, C, h, w)."""
        maps: Tensor = self.cut(images)
        return maps.clamp_min(0)

    def __str__(self) -> str:
        """For people."""
        return f"{self.name} of {self.network}"
