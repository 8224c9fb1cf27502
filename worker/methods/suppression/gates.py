"""u, the dual variables of the other kernels' ReLUs: F̂_j = max(Ẑ_j, 0) is the maximum of u·Ẑ_j over 0 ≤ u ≤ 1.

    u ← clip( u + σ·(2·Ẑ_t − Ẑ_{t−1}), 0, 1 )

Where maps have a sign, |F̂_j| is the maximum of u·F̂_j over −1 ≤ u ≤ 1, and u is clipped to [−1, 1].

σ = ω/ρ as for y (multiplier.py), but ω grows from 1 to 10 within each descent. Near the optimum most of the other
kernels' responses are at 0, where a subgradient of F̂_j alternates between 0 and 1; u converges instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from worker.methods.suppression.multiplier import curvature_estimate
from worker.methods.suppression.objective import columns, norms
from worker.methods.suppression.problem_batch import Problems, Rows
from worker.methods.suppression.schedule import ScheduleTensors

FIRST, LAST = 1.0, 10.0  # ω at the start and at the end of a descent
SATURATING = 1e30  # σ of the first evaluation: u becomes 0 or 1, which is the derivative of the ReLU


def stiffness(fraction: float) -> float:
    """ω after this fraction of a descent, in [1, 10]."""
    return float(FIRST * (LAST / FIRST) ** fraction)


@dataclass(frozen=True)
class Gates(Rows):
    """u and what its update needs."""

    u: Tensor  # in [0, 1], or in [−1, 1] where maps have a sign, (B, C, h, w); row i is not used
    before_relu: Tensor  # Ẑ_{t−1}, (B, C, h, w)
    curvature: Tensor  # ρ of Ẑ_j, j ≠ i, (B,)

    @classmethod
    def start(cls, problems: Problems) -> Self:
        """Start with u = 0."""
        layer = torch.zeros_like(problems.target)[:, None].expand(-1, int(problems.kernel_count.max()), -1, -1)
        layer = layer.contiguous(memory_format=torch.channels_last)  # as the networks' maps: a third of the time
        return cls(layer, layer, torch.zeros_like(problems.target_norm))

    def next(self, problems: Problems, before_relu: Tensor, moved: Tensor, schedule: ScheduleTensors) -> Self:
        """The update at Ẑ_t.

        Args:
            before_relu: Ẑ_t, (B, C, h, w).
            moved: ‖x_t − x_{t−1}‖²_{1/τ}, (B,).
            schedule: of this evaluation.
        """
        change = before_relu - self.before_relu
        change[problems.rows, problems.kernel] = 0
        kind = moved.dtype
        curvature = curvature_estimate(norms(change).to(kind).square(), moved, self.curvature, schedule)
        sigma = torch.where(schedule.begun > 0, schedule.stiffness / (curvature * problems.unit), SATURATING)
        ahead = change.add_(before_relu)  # 2·Ẑ_t − Ẑ_{t−1}
        u = ahead.to(kind).mul_(columns(sigma)).add_(self.u).clamp_(-1.0 if problems.signed else 0.0, 1)
        return type(self)(u, before_relu, curvature)
