"""The network's normalised space, in which X and X̂ are, and its displayable box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)


@dataclass(frozen=True)
class PixelSpace:
    """x = (pixel − mean) / std with pixels in [0, 1]. The mean colour is x = 0.

    Args:
        mean, std: (3, 1, 1), or (1, 1, 1) of grey images.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu") -> PixelSpace:
        """Create a space from one number per channel each."""
        return cls(*(torch.tensor(tuple(values), device=device).view(-1, 1, 1) for values in (mean, std)))

    def from_bytes(self, pixels: Tensor) -> Tensor:
        """(…, 3, H, W) in [0, 255], uint8 or float → normalised float32."""
        return (pixels.to(self.mean.device).float() / 255 - self.mean) / self.std

    def to_bytes(self, x: Tensor) -> Tensor:
        """Normalised → the nearest 8-bit picture, (…, 3, H, W) uint8."""
        return ((x * self.std + self.mean) * 255).round().clamp(0, 255).to(torch.uint8)

    def weighed(self, pixels: Tensor) -> Tensor:
        """(…, 3, H, W) uint8 → normalised for L_r, where a byte equal to the rounded mean colour is 0."""
        return torch.where(pixels == self.mean_bytes, 0, self.from_bytes(pixels))

    def without_colour(self, x: Tensor) -> Tensor:
        """(…, 3, H, W) in grey: every channel differs from the mean colour by as much as the luminance does."""
        weights = torch.tensor(LUMINANCE, device=x.device).view(3, 1, 1)
        difference = (weights * x * self.std).sum(dim=-3, keepdim=True)  # of a pixel in [0, 1]
        return (difference / self.std).clamp(self.low, self.high)

    def box(self, kind: torch.dtype) -> tuple[Tensor, Tensor]:
        """The displayable box in this dtype: the values of a black and of a white pixel, (3, 1, 1) each."""
        if kind not in self._boxes:
            self._boxes[kind] = self.low.to(kind), self.high.to(kind)
        return self._boxes[kind]

    @cached_property
    def _boxes(self) -> dict[torch.dtype, tuple[Tensor, Tensor]]:
        return {}

    @cached_property
    def mean_bytes(self) -> Tensor:
        """The mean colour in 8 bits, (3, 1, 1)."""
        return (self.mean * 255).round().to(torch.uint8)

    @property
    def low(self) -> Tensor:
        """The value of a black pixel, (3, 1, 1)."""
        return (0 - self.mean) / self.std

    @property
    def high(self) -> Tensor:
        """The value of a white pixel, (3, 1, 1)."""
        return (1 - self.mean) / self.std
