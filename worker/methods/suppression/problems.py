"""A batch of independent problems, and the space in which their pixels live."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import chain
from typing import Any, Self

import torch
from torch import Tensor

from worker.methods.suppression.taps import Bounds

SILENT = 1e-3  # of the layer's highest |F|, where maps have a sign


@dataclass(frozen=True)
class Rows:
    """Tensors that share their first dimension, or tuples, or more Rows: row b belongs to problem b alone."""

    def select(self, rows: Tensor) -> Self:
        """The problems that `rows` (indices) names."""
        return type(self)(**{field.name: _picked(getattr(self, field.name), rows) for field in fields(self)})

    def join(self, other: Self) -> Self:
        """These problems, then those of `other`."""
        return self.join_all([self, other])

    @classmethod
    def join_all(cls, parts: Sequence[Self]) -> Self:
        """The problems of each part, in order."""
        return cls(**{field.name: _joined([getattr(part, field.name) for part in parts]) for field in fields(cls)})


def _picked(values: Any, rows: Tensor) -> Any:
    if isinstance(values, Tensor):
        return values[rows]
    return values.select(rows) if isinstance(values, Rows) else tuple(values[row] for row in rows.tolist())


def _joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    return parts[0].join_all(parts) if isinstance(parts[0], Rows) else tuple(chain.from_iterable(parts))


@dataclass(frozen=True)
class Asks:
    """What a problem asks for, as the host knows it: what none of a batch asks for is not computed."""

    suppression: bool = True  # α > 0
    bound: bool = False  # on L_p or on SSIM
    ssim: bool = False
    removing: bool = False
    max_invention: bool = False
    signed: bool = False  # maps may be negative: F = Z instead of F = max(Z, 0), and L_s is of |F_j|

    @property
    def constrained(self) -> bool:
        """Whether there is a bound of any kind to keep."""
        return self.bound or self.max_invention


LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)


@dataclass(frozen=True)
class PixelSpace:
    """The network's normalised space: x = (pixel − mean) / std with pixels in [0, 1]. The mean colour is x = 0.

    Args:
        mean, std: of shape (3, 1, 1), of grey (1, 1, 1).
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu") -> PixelSpace:
        """From a number each for each channel."""
        return cls(*(torch.tensor(tuple(values), device=device).view(-1, 1, 1) for values in (mean, std)))

    def from_bytes(self, pixels: Tensor) -> Tensor:
        """(…, 3, H, W) of 0 to 255, uint8 or float → normalised float32."""
        return (pixels.to(self.mean.device).float() / 255 - self.mean) / self.std

    def to_bytes(self, x: Tensor) -> Tensor:
        """Normalised → the nearest displayable (…, 3, H, W) uint8."""
        return ((x * self.std + self.mean) * 255).round().clamp(0, 255).to(torch.uint8)

    def weighed(self, pixels: Tensor) -> Tensor:
        """(…, 3, H, W) uint8 → normalised for L_r, in which a byte equal to the rounded mean colour is 0."""
        return torch.where(pixels == self.mean_bytes, 0, self.from_bytes(pixels))

    def without_colour(self, x: Tensor) -> Tensor:
        """(…, 3, H, W) normalised → the same with every channel as far from the mean colour as the luminance is."""
        weights = torch.tensor(LUMINANCE, device=x.device).view(3, 1, 1)
        away = (weights * x * self.std).sum(dim=-3, keepdim=True)  # of 1
        return (away / self.std).clamp(self.low, self.high)

    def box(self, kind: torch.dtype) -> tuple[Tensor, Tensor]:
        """What can be displayed: the values of a black and of a white pixel, (3, 1, 1) each."""
        if kind not in self._boxes:
            self._boxes[kind] = self.low.to(kind), self.high.to(kind)
        return self._boxes[kind]

    @cached_property
    def _boxes(self) -> dict[torch.dtype, tuple[Tensor, Tensor]]:
        return {}

    @cached_property
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
    unit: Tensor  # α / Σ_{j≠i} ‖F_j‖₁, or its last part where α = 0, (B,): in which gradients are measured
    below: tuple[Bounds | None, ...]  # what L_e is taken against; None where neither γ nor ε asks for it
    asks: tuple[Asks, ...]

    @classmethod
    def pose(
        cls,
        image: Tensor,
        features: Tensor,
        kernel: Tensor,
        alpha: Tensor,
        beta: Tensor,
        signed: bool = False,  # noqa: FBT001, FBT002
    ) -> Problems:
        """From images (B, 3, H, W) and their feature maps F (B, C, h, w), after the ReLU unless they are signed."""
        rows = torch.arange(len(kernel), device=features.device)
        target = features[rows, kernel]
        whole, own = (features.abs(), target.abs()) if signed else (features, target)
        others = whole.sum(dim=(1, 2, 3), dtype=torch.float64) - own.sum(dim=(1, 2), dtype=torch.float64)
        norm = target.flatten(1).norm(dim=1)
        if signed:
            norm = torch.where(silent(features)[rows, kernel], 0, norm)
        count = torch.full_like(kernel, features.shape[1])
        most, least = torch.full_like(norm, torch.inf), torch.full_like(norm, -1)
        removing, rest = torch.zeros_like(norm, dtype=torch.bool), others.clamp_min(0).to(norm.dtype)
        given = image, kernel, alpha, beta, target, norm, rest, count
        nothing, asks = (None,) * len(kernel), (Asks(signed=signed),) * len(kernel)
        found = cls(*given, most, least, removing, torch.zeros_like(norm), most, torch.ones_like(norm), nothing, asks)
        return found.weighing(alpha, beta)

    def weighing(self, alpha: Tensor, beta: Tensor) -> Problems:
        """The same problems with other weights, (B,) each."""
        rest = torch.where((self.others_sum == 0) & (alpha == 0), 1, self.others_sum)  # then L_s counts nothing
        unit = torch.where(alpha > 0, alpha, 1) / rest
        asks = self._asking(("suppression",), zip((alpha > 0).tolist(), strict=True))
        return replace(self, alpha=alpha, beta=beta, others_sum=rest, unit=unit, asks=asks)

    def within(self, max_preservation: Tensor, min_ssim: Tensor) -> Problems:
        """The same problems under bounds, each (B,): L_p at most, SSIM(F̂_i, F_i) at least; ∞ and −1 are none."""
        most, least = max_preservation.to(self.target_norm), min_ssim.to(self.target_norm)
        kept = zip((most.isfinite() | (least > -1)).tolist(), (least > -1).tolist(), strict=True)
        return replace(self, max_preservation=most, min_ssim=least, asks=self._asking(("bound", "ssim"), kept))

    def only_removing(self, removing: Tensor) -> Problems:
        """The same problems, of which some, (B,) bool, may take away from X and add nothing."""
        return replace(self, removing=removing, asks=self._asking(("removing",), zip(removing.tolist(), strict=True)))

    def watching(self, below: Sequence[Bounds | None], gamma: Tensor, max_invention: Tensor) -> Problems:
        """The same problems with γ·L_e in the loss or with L_e ≤ ε, each (B,); 0 and ∞ where not."""
        weight, most = gamma.to(self.target_norm), max_invention.to(self.target_norm)
        asks = self._asking(("max_invention",), zip(most.isfinite().tolist(), strict=True))
        return replace(self, below=tuple(below), gamma=weight, max_invention=most, asks=asks)

    def _asking(self, names: Sequence[str], values: Iterable[Sequence[bool]]) -> tuple[Asks, ...]:
        pairs = zip(self.asks, values, strict=True)
        return tuple(replace(asks, **dict(zip(names, own, strict=True))) for asks, own in pairs)

    def any_asks(self, what: str) -> bool:
        """Whether any of them asks for it: the name of a field of `Asks`, or `constrained`."""
        return any(getattr(asks, what) for asks in self.asks)

    @property
    def signed(self) -> bool:
        """Whether the layer's maps may be negative; it is the same for all."""
        return self.any_asks("signed")

    @cached_property
    def rows(self) -> Tensor:
        """0, 1, … B − 1."""
        return torch.arange(len(self), device=self.kernel.device)

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
        """(B,) bool: Σ‖F_j‖ = 0, so there is nothing to suppress where α > 0."""
        return self.others_sum == 0


def silent(features: Tensor) -> Tensor:
    """Which kernels have next to no map: none where F = 0, or where maps have a sign |F| ≤ 0.001·max |F| of the layer.

    Args:
        features: F, (…, C, h, w).

    Returns:
        (…, C) bool.
    """
    each = features.abs().amax(dim=(-2, -1))
    negative = features.amin(dim=(-3, -2, -1)) < 0
    return each <= torch.where(negative, SILENT * each.amax(dim=-1), 0)[..., None]
