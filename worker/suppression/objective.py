"""The loss of Formulas 1-4 and its gradient, for each problem of a batch on its own.

    L_p = ‖F̂_i − F_i‖₂ / ‖F_i‖₂                       preserve the selected kernel
    L_s = Σ_{j≠i} ‖F̂_j‖₁ / Σ_{j≠i} ‖F_j‖₁             suppress all the others
    L_r = mean |X̂|                                    keep only what is needed
    L   = L_p + α·L_s + β·L_r

The factor 1/(W·H) that the paper prints in Formulas 1 and 2 cancels in its authors' experiments, and must: with it
L_r outweighs the rest by 10⁵ and X̂ simply fades.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worker.suppression.problems import Problems, Rows

Dual = Callable[[Tensor], Tensor]  # normalised residual r, (B, h, w) → multiplier y, (B, h, w)


@dataclass(frozen=True)
class Losses(Rows):
    """The terms of the loss, each (B,)."""

    preservation: Tensor
    suppression: Tensor
    regularization: Tensor
    total: Tensor


def losses(problems: Problems, features: Tensor, x: Tensor) -> Losses:
    """The loss of X̂ = x (B, 3, H, W) whose feature maps are `features` (B, C, h, w)."""
    dtype = problems.target.dtype
    selected = features[torch.arange(len(problems), device=features.device), problems.kernel].to(dtype)
    preservation = norms(selected - problems.target) / problems.target_norm
    others = features.sum(dim=(2, 3)).to(dtype).sum(dim=1) - selected.sum(dim=(1, 2))
    suppression = others / problems.others_sum
    regularization = x.abs().mean(dim=(1, 2, 3))
    total = preservation + problems.alpha * suppression + problems.beta * regularization
    return Losses(preservation, suppression, regularization, total)


def gradient(
    network: nn.Module, problems: Problems, x: Tensor, dual: Dual, precision: torch.dtype, *, revive: bool = False
) -> tuple[Losses, Tensor]:
    """The losses at x, and the gradient of ⟨y, r⟩ + α·L_s where r = (F̂_i − F_i) / ‖F_i‖ and y = dual(r).

    With y = r/‖r‖ that is the gradient of L_p + α·L_s; a primal-dual method brings a multiplier of its own. L_r is
    left to the solver, which treats it exactly.

    With `revive`, r is (Ẑ_i − F_i) / ‖F_i‖ wherever F_i > 0, with Ẑ_i before the ReLU. A position of F_i that has died
    (Ẑ_i ≤ 0) has no gradient in L_p, and nothing would ever bring it back; in this r it has one. ‖r‖ ≥ L_p, with
    equality where nothing has died, and it is convex in Ẑ_i, which L_p is not.

    Args:
        network: up to the layer but for its ReLU: (B, 3, H, W) → Z (B, C, h, w), with F = max(Z, 0).
        x: (B, 3, H, W), normalised.
        precision: `torch.bfloat16` runs the network under autocast; anything else in the dtype of x. The losses are
            summed in the dtype of x in either case.

    Returns:
        Losses (those of the formulas, in either case), and the gradient (B, 3, H, W) in the dtype of x.
    """
    x = x.detach().requires_grad_()
    rows = torch.arange(len(problems), device=x.device)
    with torch.autocast(x.device.type, precision, enabled=precision is torch.bfloat16):
        before_relu = network(x)  # Ẑ, (B, C, h, w)
    features = before_relu.detach().clamp_min(0)
    now = losses(problems, features, x.detach())

    chosen = before_relu.detach()[rows, problems.kernel].to(x.dtype)  # Ẑ_i, (B, h, w)
    wanted = problems.target > 0
    gate = (chosen > 0) | wanted if revive else chosen > 0
    seen = torch.where(wanted, chosen, chosen.clamp_min(0)) if revive else chosen.clamp_min(0)
    residual = (seen - problems.target) / problems.target_norm[:, None, None]
    # The pull is in units of α / Σ‖F_j‖, so that those of the others are 1 and exact in bfloat16 too.
    suppressed = problems.alpha > 0
    unit = torch.where(suppressed, problems.alpha, 1) / problems.others_sum  # (B,)
    pull = features.sign()
    if not bool(suppressed.all()):
        pull *= suppressed.to(pull.dtype)[:, None, None, None]
    strength = 1 / (problems.target_norm * unit)
    pull[rows, problems.kernel] = (dual(residual) * gate * strength[:, None, None]).to(pull.dtype)
    (slope,) = torch.autograd.grad(before_relu, x, pull)
    return now, slope * unit[:, None, None, None]


def norms(maps: Tensor) -> Tensor:
    """‖·‖₂ of each row, (B,)."""
    lengths: Tensor = torch.linalg.vector_norm(maps, dim=(1, 2))
    return lengths


def direction(maps: Tensor) -> Tensor:
    """M / ‖m‖₂ of each row, and 0 where m = 0: the subgradient of the norm that keeps a perfect match still."""
    norm = norms(maps)[:, None, None]
    return torch.where(norm > 0, maps / norm.clamp_min(torch.finfo(maps.dtype).tiny), 0)
