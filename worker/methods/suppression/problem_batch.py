"""A batch of independent problems: each is to explain one kernel on one image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import chain
from typing import Any, Self

import torch
from torch import Tensor

from worker.methods.suppression.taps import ActivationBounds

SILENT = 1e-3  # where maps have a sign: a kernel is silent up to this fraction of the layer's highest |F|


def for_float64(values: Tensor) -> Tensor:
    """The values where float64 can be computed: on the CPU if they are on Apple's GPU, which has none."""
    return values.cpu() if values.device.type == "mps" else values


@dataclass(frozen=True)
class Rows:
    """Tensors, tuples or other Rows with the same first dimension B; row b belongs to problem b only."""

    def select(self, rows: Tensor) -> Self:
        """The rows with these indices, in this order."""
        return type(self)(**{field.name: _picked(getattr(self, field.name), rows) for field in fields(self)})

    def join(self, other: Self) -> Self:
        """These rows, followed by those of `other`."""
        return self.join_all([self, other])

    @classmethod
    def join_all(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts, in order."""
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
class ProblemOptions:
    """The options of a problem on the host, so that what no problem of a batch needs is not computed."""

    suppression: bool = True  # α > 0
    bound: bool = False  # on L_p or on SSIM
    ssim: bool = False  # a bound on SSIM
    only_remove: bool = False
    max_invention: bool = False  # a bound on L_e
    signed: bool = False  # maps may be negative: F = Z instead of F = max(Z, 0), and L_s is of |F_j|

    @property
    def constrained(self) -> bool:
        """Whether there is a constraint of any kind."""
        return self.bound or self.max_invention


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
    max_preservation: Tensor  # upper bound on L_p, (B,); ∞: none
    min_ssim: Tensor  # lower bound on SSIM(F̂_i, F_i), (B,); −1: none
    only_remove: Tensor  # whether every value of X̂ must be between X's and the mean colour, (B,) bool
    gamma: Tensor  # γ, the weight of L_e, or the dual variable of its bound, (B,)
    max_invention: Tensor  # ε, upper bound on L_e, (B,); ∞: none
    unit: Tensor  # α / Σ_{j≠i} ‖F_j‖₁, or 1 / Σ_{j≠i} ‖F_j‖₁ where α = 0, (B,): the unit of gradients with respect to Z
    activation_bounds: tuple[ActivationBounds | None, ...]  # b_d of L_e; None where L_e is not used
    options: tuple[ProblemOptions, ...]

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
        """Problems without bounds.

        Args:
            image: X, (B, 3, H, W), normalised.
            features: F, (B, C, h, w), after the ReLU unless `signed`.
            kernel: i, (B,), zero-based.
            alpha, beta: at least 0, (B,).
            signed: whether the layer's maps may be negative.
        """
        rows = torch.arange(len(kernel), device=features.device)
        target = features[rows, kernel]
        whole, own = (features.abs(), target.abs()) if signed else (features, target)
        sums = for_float64(whole).sum(dim=(1, 2, 3), dtype=torch.float64)
        others = sums - for_float64(own).sum(dim=(1, 2), dtype=torch.float64)
        norm = target.flatten(1).norm(dim=1)
        if signed:
            norm = torch.where(silent(features)[rows, kernel], 0, norm)
        count = torch.full_like(kernel, features.shape[1])
        most, least = torch.full_like(norm, torch.inf), torch.full_like(norm, -1)
        only_remove, rest = torch.zeros_like(norm, dtype=torch.bool), others.clamp_min(0).to(norm.dtype).to(norm.device)
        given = image, kernel, alpha, beta, target, norm, rest, count
        none, options = (None,) * len(kernel), (ProblemOptions(signed=signed),) * len(kernel)
        gamma, unit = torch.zeros_like(norm), torch.ones_like(norm)
        found = cls(*given, most, least, only_remove, gamma, most, unit, none, options)
        return found.with_weights(alpha, beta)

    def with_weights(self, alpha: Tensor, beta: Tensor) -> Problems:
        """The same problems with other weights α and β, (B,) each."""
        rest = torch.where((self.others_sum == 0) & (alpha == 0), 1, self.others_sum)  # L_s has the weight 0 there
        unit = torch.where(alpha > 0, alpha, 1) / rest
        options = self._with_options(("suppression",), zip((alpha > 0).tolist(), strict=True))
        return replace(self, alpha=alpha, beta=beta, others_sum=rest, unit=unit, options=options)

    def with_bounds(self, max_preservation: Tensor, min_ssim: Tensor) -> Problems:
        """The same problems with upper bounds on L_p (∞: none) and lower bounds on SSIM (−1: none), (B,) each."""
        most, least = max_preservation.to(self.target_norm), min_ssim.to(self.target_norm)
        values = zip((most.isfinite() | (least > -1)).tolist(), (least > -1).tolist(), strict=True)
        options = self._with_options(("bound", "ssim"), values)
        return replace(self, max_preservation=most, min_ssim=least, options=options)

    def with_only_remove(self, only_remove: Tensor) -> Problems:
        """The same problems; where (B,) bool is true, X̂ may take away from X but add nothing."""
        options = self._with_options(("only_remove",), zip(only_remove.tolist(), strict=True))
        return replace(self, only_remove=only_remove, options=options)

    def with_invention(
        self, bounds: Sequence[ActivationBounds | None], gamma: Tensor, max_invention: Tensor
    ) -> Problems:
        """The same problems with γ·L_e in the loss (0: without) or the constraint L_e ≤ ε (∞: without), (B,) each."""
        weight, most = gamma.to(self.target_norm), max_invention.to(self.target_norm)
        options = self._with_options(("max_invention",), zip(most.isfinite().tolist(), strict=True))
        return replace(self, activation_bounds=tuple(bounds), gamma=weight, max_invention=most, options=options)

    def _with_options(self, names: Sequence[str], values: Iterable[Sequence[bool]]) -> tuple[ProblemOptions, ...]:
        pairs = zip(self.options, values, strict=True)
        return tuple(replace(options, **dict(zip(names, own, strict=True))) for options, own in pairs)

    def any_option(self, name: str) -> bool:
        """Whether an option is set for any problem."""
        return any(getattr(options, name) for options in self.options)

    @property
    def signed(self) -> bool:
        """Whether the layer's maps may be negative; the same for all problems."""
        return self.any_option("signed")

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
        """(B,) bool: L_p is a constraint instead of a term of the loss."""
        return self.max_preservation.isfinite() | (self.min_ssim > -1)

    @property
    def constrained(self) -> Tensor:
        """(B,) bool: there is a constraint of any kind."""
        return self.bounded | self.max_invention.isfinite()

    @property
    def uses_invention(self) -> bool:
        """Whether any problem weights or bounds L_e."""
        return any(bounds is not None for bounds in self.activation_bounds)

    @property
    def lone(self) -> Tensor:
        """(B,) bool: Σ‖F_j‖ = 0, so there is nothing to suppress where α > 0."""
        return self.others_sum == 0


def silent(features: Tensor) -> Tensor:
    """Which kernels are silent: F = 0 or, where maps have a sign, |F| ≤ 0.001 · max |F| of the layer.

    Args:
        features: F, (…, C, h, w).

    Returns:
        (…, C) bool.
    """
    each = features.abs().amax(dim=(-2, -1))
    negative = features.amin(dim=(-3, -2, -1)) < 0
    return each <= torch.where(negative, SILENT * each.amax(dim=-1), 0)[..., None]
