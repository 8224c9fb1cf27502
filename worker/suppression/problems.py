"""A batch of independent problems, and the space in which their pixels live."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any, Self

import torch
from torch import Tensor

from worker.suppression.taps import Bounds


@dataclass(frozen=True)
class Rows:
    """Tensors that share their first dimension, or tuples: row b belongs to problem b alone."""

    def select(self, rows: Tensor) -> Self:
        """The problems that `rows` (a mask or indices) names."""
        return self._each(lambda value: value[rows] if isinstance(value, Tensor) else _picked(value, rows))

    def join(self, other: Self) -> Self:
        """These problems, then those of `other`."""
        return self.join_all([self, other])

    @classmethod
    def join_all(cls, parts: Sequence[Self]) -> Self:
        """The problems of each part, in order."""
        return cls(**{field.name: _joined([getattr(part, field.name) for part in parts]) for field in fields(cls)})

    def _each(self, change: Any) -> Self:
        return type(self)(**{field.name: change(getattr(self, field.name)) for field in fields(self)})


def _picked(values: tuple[Any, ...], rows: Tensor) -> tuple[Any, ...]:
    return tuple(values[row] for row in torch.arange(len(values), device=rows.device)[rows].tolist())


def _joined(parts: list[Any]) -> Any:
    return torch.cat(parts) if isinstance(parts[0], Tensor) else tuple(chain.from_iterable(parts))


def none_of(rows: Tensor) -> bool:
    """Whether no row is set: a short cut, which is not taken on a device that would have to be waited for."""
    return rows.device.type == "cpu" and not bool(rows.any())


@dataclass(frozen=True)
class PixelSpace:
    """The network's normalised space: x = (pixel − mean) / std with pixels in [0, 1]. The mean colour is x = 0.

    Args:
        mean, std: of shape (3, 1, 1).
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu") -> PixelSpace:
        """From three numbers each."""
        return cls(*(torch.tensor(tuple(values), device=device).view(3, 1, 1) for values in (mean, std)))

    def from_bytes(self, pixels: Tensor) -> Tensor:
        """(…, 3, H, W) uint8 → normalised float32."""
        return (pixels.to(self.mean.device).float() / 255 - self.mean) / self.std

    def to_bytes(self, x: Tensor) -> Tensor:
        """Normalised → the nearest displayable (…, 3, H, W) uint8."""
        return ((x * self.std + self.mean) * 255).round().clamp(0, 255).to(torch.uint8)

    def weighed(self, pixels: Tensor) -> Tensor:
        """(…, 3, H, W) uint8 → normalised for L_r, in which a byte equal to the rounded mean colour is 0."""
        return torch.where(pixels == self.mean_bytes, 0, self.from_bytes(pixels))

    @property
    def mean_bytes(self) -> Tensor:
        """The mean colour in 8 bits, (3, 1, 1): the byte that counts as zero in a PNG's L_r."""
        return (self.mean * 255).round().to(torch.uint8)

    @property
    def low(self) -> Tensor:
        """Normalised value of a black pixel, (3, 1, 1)."""
        return (0 - self.mean) / self.std

    @property
    def high(self) -> Tensor:
        """Normalised value of a white pixel, (3, 1, 1)."""
        return (1 - self.mean) / self.std


@dataclass(frozen=True)
class Problems(Rows):
    """B problems on one network and layer.

    Shapes: B problems, image side H × W, C kernels with maps h × w.
    """

    image: Tensor  # X, (B, 3, H, W), normalised
    kernel: Tensor  # i, (B,), zero-based
    alpha: Tensor  # α, (B,)
    beta: Tensor  # β, (B,)
    target: Tensor  # F_i, (B, h, w)
    target_norm: Tensor  # ‖F_i‖₂, (B,)
    others_sum: Tensor  # Σ_{j≠i} ‖F_j‖₁, (B,)
    kernel_count: Tensor  # C, (B,), the same for all
    max_preservation: Tensor  # the most that L_p may be, (B,); ∞: no bound
    min_ssim: Tensor  # the least that SSIM(F̂_i, F_i) may be, (B,); −1: no bound
    removing: Tensor  # whether each value of X̂ is to lie between X's and the mean colour, (B,) bool
    gamma: Tensor  # γ, the weight of L_e, or where that is bounded the multiplier of the bound, (B,)
    max_invention: Tensor  # ε, the most that L_e may be, (B,); ∞: no bound
    below: tuple[Bounds | None, ...]  # what L_e is taken against; None where neither γ nor ε asks for it

    @classmethod
    def pose(cls, image: Tensor, features: Tensor, kernel: Tensor, alpha: Tensor, beta: Tensor) -> Problems:
        """From images (B, 3, H, W) and their feature maps F (B, C, h, w), after the ReLU."""
        target = features[torch.arange(len(kernel), device=features.device), kernel]
        others = features.sum(dim=(1, 2, 3), dtype=torch.float64) - target.sum(dim=(1, 2), dtype=torch.float64)
        norm = target.flatten(1).norm(dim=1)
        count = torch.full_like(kernel, features.shape[1])
        most, least = torch.full_like(norm, torch.inf), torch.full_like(norm, -1)
        removing, rest = torch.zeros_like(norm, dtype=torch.bool), others.clamp_min(0).to(norm.dtype)
        own = image, kernel, alpha, beta, target, norm, rest, count
        return cls(*own, most, least, removing, torch.zeros_like(norm), most, (None,) * len(kernel))

    def within(self, max_preservation: Tensor, min_ssim: Tensor) -> Problems:
        """The same problems under bounds, each (B,): L_p at most, SSIM(F̂_i, F_i) at least; ∞ and −1 are none."""
        most, least = max_preservation.to(self.target_norm), min_ssim.to(self.target_norm)
        return replace(self, max_preservation=most, min_ssim=least)

    def only_removing(self, removing: Tensor) -> Problems:
        """The same problems, of which some, (B,) bool, may take away from X and add nothing."""
        return replace(self, removing=removing)

    def watching(self, below: Sequence[Bounds | None], gamma: Tensor, max_invention: Tensor) -> Problems:
        """The same problems with γ·L_e in the loss or with L_e ≤ ε, each (B,); 0 and ∞ where not."""
        weight, most = gamma.to(self.target_norm), max_invention.to(self.target_norm)
        return replace(self, below=tuple(below), gamma=weight, max_invention=most)

    def __len__(self) -> int:
        """B."""
        return len(self.kernel)

    @property
    def silent(self) -> Tensor:
        """(B,) bool: ‖F_i‖ = 0, so there is nothing to preserve."""
        return self.target_norm == 0

    @property
    def bounded(self) -> Tensor:
        """(B,) bool: how well F_i is kept is a constraint instead of a term of the loss."""
        return self.max_preservation.isfinite() | (self.min_ssim > -1)

    @property
    def constrained(self) -> Tensor:
        """(B,) bool: there is a bound of any kind to keep."""
        return self.bounded | self.max_invention.isfinite()

    @property
    def watched(self) -> bool:
        """Whether L_e is asked for by any of them."""
        return any(bounds is not None for bounds in self.below)

    @property
    def lone(self) -> Tensor:
        """(B,) bool: Σ‖F_j‖ = 0, so there is nothing to suppress."""
        return self.others_sum == 0
