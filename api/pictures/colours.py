"""Colour maps of activations: dark to bright if they are never negative, else blue over white to red."""

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
    """The range of a colour map."""

    most: float  # |F| at full colour
    signed: bool = False  # whether some activations are negative

    @classmethod
    def of(cls, *maps: Maps) -> Self:
        """A common scale of these maps."""
        return cls(float(max(np.abs(one).max() for one in maps)), bool(any((one < 0).any() for one in maps)))

    @classmethod
    def common(cls, scales: Iterable[Scale]) -> Self:
        """A scale that includes all of these."""
        known = list(scales)
        return cls(max(one.most for one in known), any(one.signed for one in known))

    @property
    def key(self) -> str:
        """The legend."""
        return "blue: negative, white: 0, red: positive" if self.signed else "black: no activation, bright: high"


def heat(maps: Maps, scale: Scale) -> Image.Image:
    """An activation map with one pixel per position: dark at 0 to bright at `scale.most`, or ± that in blue and red."""
    if scale.signed:
        return difference(maps, scale.most)
    return _coloured("inferno", maps / scale.most if scale.most else maps)


def difference(change: Maps, most: float) -> Image.Image:
    """F̂_i − F_i: blue where it fell, white where it is unchanged, red where it rose; full colour at ± `most`."""
    return _coloured("vik", (change / most if most else change) / 2 + 0.5)


def _coloured(name: str, values: NDArray[np.floating[Any]]) -> Image.Image:
    indices = (values.clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(_table(name)[indices])


@cache
def _table(name: str) -> NDArray[np.uint8]:
    """(256, 3)."""
    return (Colormap(name).lut(256)[:, :3] * 255).round().astype(np.uint8)
