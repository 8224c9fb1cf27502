"""The loss of Formulas 1 to 4 of the paper and its gradient, for each problem of a batch by itself.

    L_p = ‖F̂_i − F_i‖₂ / ‖F_i‖₂                       preserve the selected kernel's map
    L_s = Σ_{j≠i} ‖F̂_j‖₁ / Σ_{j≠i} ‖F_j‖₁             suppress all other maps
    L_r = mean |X̂|                                    keep only what is needed
    L   = L_p + α·L_s + β·L_r

All terms are ratios or means in normalised units, and at least 0. Where a layer's maps have a sign, ‖F_j‖₁ is Σ |F_j|.

The factor 1/(W·H) that the paper prints in Formulas 1 and 2 cancels in its authors' experiments and is not applied.
With it L_r outweighs the rest by 10⁵, and X̂ only fades to the mean colour.

Beyond the paper, a problem may bound L_p or SSIM(F̂_i, F_i): α·L_s + β·L_r is then minimised under that constraint. And
it may weight or bound the invention L_e (taps.py): γ·L_e is added to the loss, or L_e ≤ ε is a further constraint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worker.methods.suppression.problem_batch import Problems
from worker.methods.suppression.ssim import dynamic_range, ssim, window_for
from worker.methods.suppression.taps import TappedNetwork

MARGIN = 1e-4  # by which a bound must be met, so that it still is after the rounding errors of another batch size
INVENTION_MARGIN = 0.01  # the same of L_e, relative; its maps may be bfloat16
VIOLATED = 1e6  # the least merit of an X̂ that violates a constraint

# (Ẑ (B, C, h, w), Ẑ_i (B, h, w)) → the weights p (B, h, w) and q (B, C, h, w) of `Evaluation.gradient`.
Weights = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class BatchLosses:
    """The terms of the loss, (B,) each."""

    preservation: Tensor  # L_p
    suppression: Tensor  # L_s
    regularization: Tensor  # L_r
    total: Tensor  # L
    merit: Tensor  # what is minimised: L + γ·L_e, without L_p where that is bounded; ≥ 10⁶ where a bound is violated
    ssim: Tensor | None = None  # of F̂_i and F_i, 1 on a map of one position; None where no problem bounds it
    invention: Tensor | None = None  # L_e; None where no problem uses it


def losses(problems: Problems, features: Tensor, x: Tensor, invention: Tensor | None = None) -> BatchLosses:
    """The loss of each X̂.

    Args:
        features: F̂, (B, C, h, w).
        x: X̂, (B, 3, H, W), normalised.
        invention: L_e, (B,).
    """
    selected = features[problems.rows, problems.kernel].to(problems.target.dtype)
    return _losses(problems, features, selected, x, invention)


def _losses(problems: Problems, features: Tensor, selected: Tensor, x: Tensor, invention: Tensor | None) -> BatchLosses:
    kind = problems.target.dtype
    preservation = norms(selected - problems.target) / problems.target_norm
    each = (features.abs() if problems.signed else features).sum(dim=(2, 3), dtype=kind)  # (B, C)
    each[problems.rows, problems.kernel] = 0
    suppression = each.sum(dim=1) / problems.others_sum
    regularization = x.abs().mean(dim=(1, 2, 3))
    rest = torch.addcmul(problems.beta * regularization, problems.alpha, suppression)
    total = preservation + rest
    terms = preservation, suppression, regularization, total
    if not problems.any_option("bound") and invention is None:
        return BatchLosses(*terms, total)
    violation, merit, similarity = torch.zeros_like(total), total, None
    if problems.any_option("bound"):
        merit = torch.where(problems.bounded, rest, total)
        violation = (preservation - (1 - MARGIN) * problems.max_preservation).clamp_min(0)
    if problems.any_option("ssim"):
        similarity = _ssim(problems, selected)
        violation = violation + (problems.min_ssim + MARGIN - similarity).clamp_min(0)
    if invention is not None:
        violation = violation + (invention - (1 - INVENTION_MARGIN) * problems.max_invention).clamp_min(0)
        merit = merit + torch.where(problems.max_invention.isfinite(), 0, problems.gamma) * invention
    merit = torch.where(violation > 0, VIOLATED * (1 + violation), merit)
    return BatchLosses(*terms, merit, similarity, invention)


def _ssim(problems: Problems, selected: Tensor) -> Tensor:
    window = window_for(*selected.shape[1:])
    if window is None:
        return torch.ones_like(problems.target_norm)
    return ssim(selected, problems.target, data_range=dynamic_range(problems.target), window=window)


@dataclass(frozen=True)
class Evaluation:
    """The network evaluated at x, ready for a backward pass."""

    problems: Problems
    now: BatchLosses
    before_relu: Tensor  # Ẑ, (B, C, h, w)
    chosen: Tensor  # Ẑ_i, (B, h, w), in the dtype of x
    _x: Tensor
    _graph: Tensor

    @classmethod
    def at(
        cls, network: nn.Module, problems: Problems, x: Tensor, precision: torch.dtype, weighed: Tensor | None = None
    ) -> Evaluation:
        """The forward pass.

        Args:
            network: up to the layer without its ReLU: (B, 3, H, W) → Z (B, C, h, w), where F = max(Z, 0), or F = Z if
                maps have a sign. A `TappedNetwork` if a problem uses L_e.
            x: (B, 3, H, W), normalised.
            precision: `torch.bfloat16` runs the network under autocast; any other in the dtype of x. The losses are
                summed in the dtype of x in either case.
            weighed: the picture of which L_r is taken; x by default.
        """
        x = x.detach().requires_grad_()
        with torch.autocast(x.device.type, precision, enabled=precision is torch.bfloat16):
            graph, invention = forward(network, problems, x)
        before_relu = graph.detach()
        chosen = before_relu[problems.rows, problems.kernel].to(x.dtype)
        signed = problems.signed
        features, selected = (before_relu, chosen) if signed else (before_relu.clamp_min(0), chosen.clamp_min(0))
        now = _losses(problems, features, selected, x.detach() if weighed is None else weighed, invention)
        return cls(problems, now, before_relu, chosen, x, graph)

    def gradient(self, selected: Tensor, others: Tensor) -> Tensor:
        """The backward pass, once: ∇( ⟨p, Ẑ_i⟩ / ‖F_i‖ + α·Σ_{j≠i} ⟨q_j, Ẑ_j⟩ / Σ_{j≠i} ‖F_j‖₁ + γ·L_e ), (B, 3, H, W).

        With the weights of `subgradient` this is the gradient of L_p + α·L_s + γ·L_e; a primal-dual method passes its
        dual variables. L_r is left to the solver, which may apply its proximal map.

        Args:
            selected: p, (B, h, w).
            others: q, (B, C, h, w); row i is not used.
        """
        problems, graph = self.problems, self._graph
        # The weights are in units of α / Σ‖F_j‖: those of the other kernels are at most 1, and exact in bfloat16.
        weights = others.to(graph.dtype, copy=True)
        if not all(options.suppression for options in problems.options):
            weights *= (problems.alpha > 0).to(weights.dtype)[:, None, None, None]
        own = selected / (problems.target_norm * problems.unit)[:, None, None]
        weights[problems.rows, problems.kernel] = own.to(weights.dtype)
        (gradient,) = torch.autograd.grad(graph, self._x, weights)
        return gradient * problems.unit[:, None, None, None]


def losses_and_gradient(
    network: nn.Module, problems: Problems, x: Tensor, weights: Weights, precision: torch.dtype
) -> tuple[BatchLosses, Tensor]:
    """The losses at x, and the gradient with the weights (p, q) = weights(Ẑ, Ẑ_i), (B, 3, H, W)."""
    found = Evaluation.at(network, problems, x, precision)
    return found.now, found.gradient(*weights(found.before_relu, found.chosen))


def forward(network: nn.Module, problems: Problems, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Ẑ of x, (B, C, h, w), and L_e, (B,), if a problem uses it."""
    if not problems.uses_invention:
        return network(x), None
    assert isinstance(network, TappedNetwork)
    return network.forward_with_invention(x, problems.activation_bounds, problems.gamma / problems.unit)


def subgradient(problems: Problems) -> Weights:
    """The weights of the paper's loss: p = (F̂_i − F_i) / ‖F̂_i − F_i‖ and q = 1 where Ẑ > 0, and 0 elsewhere.

    Where maps have a sign, q = sign Ẑ, and p is the same at all positions.
    """

    def weights(before_relu: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        if problems.signed:
            return direction(chosen - problems.target), before_relu.sign()
        return direction(chosen.clamp_min(0) - problems.target) * (chosen > 0), before_relu > 0

    return weights


def norms(maps: Tensor) -> Tensor:
    """‖·‖₂ of each row, (B,)."""
    lengths: Tensor = torch.linalg.vector_norm(maps, dim=tuple(range(1, maps.ndim)))
    return lengths


def direction(maps: Tensor) -> Tensor:
    """M / ‖m‖₂ of each row, and 0 where m = 0: the subgradient of the norm that is 0 at a perfect match."""
    norm = norms(maps)[:, None, None]
    return torch.where(norm > 0, maps / norm.clamp_min(torch.finfo(maps.dtype).tiny), 0)


def columns(rows: Tensor) -> Tensor:
    """(B,) → (B, 1, 1, 1)."""
    return rows[:, None, None, None]
