"""How activation becomes colour: dark to bright where it is never negative, blue over white to red where it may be."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple, Self

import numpy as np
from cmap import Colormap
from numpy.typing import NDArray
from PIL import Image

Maps = NDArray[np.float32]


class Scale(NamedTuple):
    """Which activation has which colour."""

    most: float  # |F| in full colour
    signed: bool = False  # whether some is negative

    @classmethod
    def of(cls, *maps: Maps) -> Self:
        """One for all of these."""
        return cls(float(max(np.abs(one).max() for one in maps)), bool(any((one < 0).any() for one in maps)))

    @classmethod
    def common(cls, scales: Iterable[Scale]) -> Self:
        """One that all of these fit into."""
        known = list(scales)
        return cls(max(one.most for one in known), any(one.signed for one in known))

    @property
    def key(self) -> str:
        """What the colours mean."""
        return (
            "blue is negative, white is silent, red is positive" if self.signed else "black is silent, bright is active"
        )


def heat(maps: Maps, scale: Scale) -> Image.Image:
    """An activation map, one pixel a position: 0 dark to `scale.most` bright, or ± that in blue and red."""
    if scale.signed:
        return difference(maps, scale.most)
    return _coloured("inferno", maps / scale.most if scale.most else maps)


def difference(change: Maps, most: float) -> Image.Image:
    """F̂_i − F_i: blue where it fell, white where it stayed, red where it rose; full colour at ± `most`."""
    return _coloured("vik", (change / most if most else change) / 2 + 0.5)


def _coloured(name: str, values: NDArray[np.floating[Any]]) -> Image.Image:
    indices = (values.clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(_table(name)[indices])


@cache
def _table(name: str) -> NDArray[np.uint8]:
    """(256, 3)."""
    return (Colormap(name).lut(256)[:, :3] * 255).round().astype(np.uint8)
