"""u, the multipliers of the other kernels' ReLUs: F̂_j = max(Ẑ_j, 0) is the maximum of u·Ẑ_j over 0 ≤ u ≤ 1.

    u ← clip( u + σ·(2·Ẑ_t − Ẑ_{t−1}), 0, 1 )

Where maps have a sign, |F̂_j| is the maximum of u·F̂_j over −1 ≤ u ≤ 1, and u is clipped so.

Here σ = ω/ρ as for y (multiplier.py), ω growing in each descent. At the end most of the other kernels' responses stand
at 0, where a subgradient of F̂_j flickers between 0 and 1; u settles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from worker.methods.suppression.multiplier import met_curvature
from worker.methods.suppression.objective import columns, norms
from worker.methods.suppression.problems import Problems, Rows
from worker.methods.suppression.schedule import Moment

FIRST, LAST = 1.0, 10.0  # ω at the start and the end of a descent
ENOUGH = 1e30  # a step that takes u to 0 or 1 at once: it begins as the ReLU's own derivative


def stiffness(share: float) -> float:
    """ω after that share of a descent."""
    return float(FIRST * (LAST / FIRST) ** share)


@dataclass(frozen=True)
class Gates(Rows):
    """Where they stand."""

    u: Tensor  # in [0, 1], or [−1, 1], (B, C, h, w); that of the selected kernel does not count
    before_relu: Tensor  # Ẑ_{t−1}, (B, C, h, w)
    curvature: Tensor  # ρ of Ẑ_j, j ≠ i, (B,)

    @classmethod
    def start(cls, problems: Problems) -> Self:
        """All 0."""
        layer = torch.zeros_like(problems.target)[:, None].expand(-1, int(problems.kernel_count.max()), -1, -1)
        layer = layer.contiguous(memory_format=torch.channels_last)  # as the networks' maps are: a third of the time
        return cls(layer, layer, torch.zeros_like(problems.target_norm))

    def next(self, problems: Problems, before_relu: Tensor, moved: Tensor, moment: Moment) -> Self:
        """After a step of the length `moved`, (B,), that has led to Ẑ = `before_relu`."""
        change = before_relu - self.before_relu
        change[problems.rows, problems.kernel] = 0
        kind = moved.dtype
        curvature = met_curvature(norms(change).to(kind).square(), moved, self.curvature, moment)
        sigma = torch.where(moment.begun > 0, moment.stiffness / (curvature * problems.unit), ENOUGH)
        ahead = change.add_(before_relu)  # 2·Ẑ_t − Ẑ_{t−1}
        u = ahead.to(kind).mul_(columns(sigma)).add_(self.u).clamp_(-1.0 if problems.signed else 0.0, 1)
        return type(self)(u, before_relu, curvature)
