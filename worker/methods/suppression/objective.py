"""The loss of Formulas 1-4 and its gradient, for each problem of a batch on its own.

    L_p = ‖F̂_i − F_i‖₂ / ‖F_i‖₂                       preserve the selected kernel
    L_s = Σ_{j≠i} ‖F̂_j‖₁ / Σ_{j≠i} ‖F_j‖₁             suppress all the others
    L_r = mean |X̂|                                    keep only what is needed
    L   = L_p + α·L_s + β·L_r

Where a layer's maps have a sign, ‖F_j‖₁ is Σ |F_j| and everything else the same.

The factor 1/(W·H) that the paper prints in Formulas 1 and 2 cancels in its authors' experiments, and must: with it
L_r outweighs the rest by 10⁵ and X̂ simply fades.

Beyond the paper, a problem may bound L_p or SSIM(F̂_i, F_i): then α·L_s + β·L_r is what is to be lowest where the bound
is kept. And it may weigh or bound what X̂ invents below the layer, L_e (taps.py): γ·L_e is added to what is to be
lowest, or L_e ≤ ε is a bound beside the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worker.methods.suppression.likeness import span, ssim, window_for
from worker.methods.suppression.problems import Problems
from worker.methods.suppression.taps import Watched

TO_SPARE = 1e-4  # by which a bound must be kept, so that the rounding of another batch size does not break it
TO_SPARE_BELOW = 0.01  # the same of L_e, whose maps may be bfloat16
BROKEN = 1e6  # the merit of an X̂ that breaks a bound begins here

# Ẑ (B, C, h, w) and Ẑ_i (B, h, w) → the weights p (B, h, w) and q (B, C, h, w), of which row i does not count.
Pull = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Losses:
    """The terms of the loss, each (B,)."""

    preservation: Tensor
    suppression: Tensor
    regularization: Tensor
    total: Tensor
    merit: Tensor  # what is to be lowest: L + γ·L_e, without L_p where that is bounded; very high where a bound breaks
    ssim: Tensor | None = None  # of F̂_i and F_i, 1 on a map of one position; None where nobody bounds it
    invention: Tensor | None = None  # L_e; None where nobody asks for it


def losses(problems: Problems, features: Tensor, x: Tensor, invention: Tensor | None = None) -> Losses:
    """The loss of x (B, 3, H, W), whose feature maps are `features` (B, C, h, w) and whose L_e is `invention`, (B,)."""
    selected = features[problems.rows, problems.kernel].to(problems.target.dtype)
    return _losses(problems, features, selected, x, invention)


def _losses(problems: Problems, features: Tensor, selected: Tensor, x: Tensor, invention: Tensor | None) -> Losses:
    kind = problems.target.dtype
    preservation = norms(selected - problems.target) / problems.target_norm
    each = (features.abs() if problems.signed else features).sum(dim=(2, 3), dtype=kind)  # (B, C)
    each[problems.rows, problems.kernel] = 0
    suppression = each.sum(dim=1) / problems.others_sum
    regularization = x.abs().mean(dim=(1, 2, 3))
    rest = torch.addcmul(problems.beta * regularization, problems.alpha, suppression)
    total = preservation + rest
    terms = preservation, suppression, regularization, total
    if not problems.any_asks("bound") and invention is None:
        return Losses(*terms, total)
    broken, merit, alike = torch.zeros_like(total), total, None
    if problems.any_asks("bound"):
        merit = torch.where(problems.bounded, rest, total)
        broken = (preservation - (1 - TO_SPARE) * problems.max_preservation).clamp_min(0)
    if problems.any_asks("ssim"):
        alike = _ssim(problems, selected)
        broken = broken + (problems.min_ssim + TO_SPARE - alike).clamp_min(0)
    if invention is not None:
        broken = broken + (invention - (1 - TO_SPARE_BELOW) * problems.max_invention).clamp_min(0)
        merit = merit + torch.where(problems.max_invention.isfinite(), 0, problems.gamma) * invention
    return Losses(*terms, torch.where(broken > 0, BROKEN * (1 + broken), merit), alike, invention)


def _ssim(problems: Problems, selected: Tensor) -> Tensor:
    window = window_for(*selected.shape[1:])
    if window is None:
        return torch.ones_like(problems.target_norm)
    return ssim(selected, problems.target, data_range=span(problems.target), window=window)


@dataclass(frozen=True)
class Evaluation:
    """The network at x, and the way back."""

    problems: Problems
    now: Losses
    before_relu: Tensor  # Ẑ, (B, C, h, w)
    chosen: Tensor  # Ẑ_i, (B, h, w), in the dtype of x
    _x: Tensor
    _graph: Tensor

    @classmethod
    def at(
        cls, network: nn.Module, problems: Problems, x: Tensor, precision: torch.dtype, weighed: Tensor | None = None
    ) -> Evaluation:
        """Forth.

        Args:
            network: up to the layer but for its ReLU: (B, 3, H, W) → Z (B, C, h, w), with F = max(Z, 0), or F = Z of
                signed maps. Where a problem asks for L_e it must be `Watched`.
            x: (B, 3, H, W), normalised.
            precision: `torch.bfloat16` runs the network under autocast; anything else in the dtype of x. The losses are
                summed in the dtype of x in either case.
            weighed: of which L_r is taken, x unless given.
        """
        x = x.detach().requires_grad_()
        with torch.autocast(x.device.type, precision, enabled=precision is torch.bfloat16):
            graph, invention = seen_below(network, problems, x)
        seen = graph.detach()
        chosen = seen[problems.rows, problems.kernel].to(x.dtype)
        features, selected = (seen, chosen) if problems.signed else (seen.clamp_min(0), chosen.clamp_min(0))
        now = _losses(problems, features, selected, x.detach() if weighed is None else weighed, invention)
        return cls(problems, now, seen, chosen, x, graph)

    def slope(self, selected: Tensor, others: Tensor) -> Tensor:
        """Back: the gradient of ⟨p, Ẑ_i⟩ / ‖F_i‖ + α·Σ_{j≠i} ⟨q_j, Ẑ_j⟩ / Σ_{j≠i} ‖F_j‖₁ + γ·L_e, (B, 3, H, W).

        With the weights of `subgradient` that is the gradient of L_p + α·L_s; a primal-dual method brings multipliers
        of its own. L_r is left to the solver, which treats it exactly.

        Args:
            selected: p, (B, h, w).
            others: q, (B, C, h, w), of which row i does not count.
        """
        problems, graph = self.problems, self._graph
        # Weights are in units of α / Σ‖F_j‖, so that those of the others are at most 1 and exact in bfloat16 too.
        weights = others.to(graph.dtype, copy=True)
        if not all(asks.suppression for asks in problems.asks):
            weights *= (problems.alpha > 0).to(weights.dtype)[:, None, None, None]
        own = selected / (problems.target_norm * problems.unit)[:, None, None]
        weights[problems.rows, problems.kernel] = own.to(weights.dtype)
        (slope,) = torch.autograd.grad(graph, self._x, weights)
        return slope * problems.unit[:, None, None, None]


def gradient(
    network: nn.Module, problems: Problems, x: Tensor, pull: Pull, precision: torch.dtype
) -> tuple[Losses, Tensor]:
    """The losses at x, and the gradient with the weights (p, q) = pull(Ẑ, Ẑ_i)."""
    found = Evaluation.at(network, problems, x, precision)
    return found.now, found.slope(*pull(found.before_relu, found.chosen))


def seen_below(network: nn.Module, problems: Problems, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Ẑ (B, C, h, w) of x, and L_e (B,) where a problem asks for it."""
    if not problems.watched:
        return network(x), None
    assert isinstance(network, Watched)
    return network.watch(x, problems.below, problems.gamma / problems.unit)


def subgradient(problems: Problems) -> Pull:
    """The formulas' own: p = (F̂_i − F_i) / ‖F̂_i − F_i‖ and q = 1, where Ẑ > 0.

    Of signed maps q = sign Ẑ, and p holds everywhere.
    """

    def pull(before_relu: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        if problems.signed:
            return direction(chosen - problems.target), before_relu.sign()
        return direction(chosen.clamp_min(0) - problems.target) * (chosen > 0), before_relu > 0

    return pull


def norms(maps: Tensor) -> Tensor:
    """‖·‖₂ of each row, (B,)."""
    lengths: Tensor = torch.linalg.vector_norm(maps, dim=tuple(range(1, maps.ndim)))
    return lengths


def direction(maps: Tensor) -> Tensor:
    """M / ‖m‖₂ of each row, and 0 where m = 0: the subgradient of the norm that keeps a perfect match still."""
    norm = norms(maps)[:, None, None]
    return torch.where(norm > 0, maps / norm.clamp_min(torch.finfo(maps.dtype).tiny), 0)


def columns(rows: Tensor) -> Tensor:
    """(B,) → (B, 1, 1, 1)."""
    return rows[:, None, None, None]
