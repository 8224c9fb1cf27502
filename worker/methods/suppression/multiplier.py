"""y, the dual variable of the selected map: ‖r‖ is the maximum of ⟨y, r⟩ over ‖y‖ ≤ 1.

    y ← project( y + σ·(2·r_t − r_{t−1}) )            onto the unit ball

σ = ω/ρ. The curvature ρ = ‖r_t − r_{t−1}‖² / ‖x_t − x_{t−1}‖²_{1/τ} is estimated from the last steps, so σ·τ·‖K‖² stays
bounded on every layer (K is the Jacobian of r). The best stiffness ω differs between problems by a factor of 30. It is
adapted: a residual that oscillates, cos(r_t, r_{t−1}) < 0.4, lowers ω; one that drifts raises it.

Under a constraint L_p ≤ ε, y is its dual variable: instead of being projected, y is shortened by σ·ε.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from worker.methods.suppression.objective import norms
from worker.methods.suppression.problem_batch import Problems, Rows
from worker.methods.suppression.schedule import ScheduleTensors

# A change of r with a norm below this is rounding error, and says nothing about the curvature.
NOISE = {torch.bfloat16: 1e-3, torch.float32: 1e-6, torch.float64: 1e-14}
TARGET_COSINE = 0.4  # of r_t and r_{t−1}: ω is left unchanged
STIFFNESS_RATE = 0.2  # log change of ω per evaluation and unit of the cosine
STIFFNESS_MIN, STIFFNESS_START, STIFFNESS_MAX = 0.003, 0.1, 30.0  # ω
CURVATURE_DECAY = 0.9  # per evaluation


@dataclass(frozen=True)
class Multiplier(Rows):
    """y and what its update needs."""

    y: Tensor  # (B, h, w)
    residual: Tensor  # r_{t−1}, (B, h, w)
    length: Tensor  # ‖r_{t−1}‖, (B,)
    curvature: Tensor  # ρ, (B,)
    stiffness: Tensor  # ω, (B,)

    @classmethod
    def start(cls, problems: Problems) -> Self:
        """Start with y = 0, and with r = 0 since X̂ = X."""
        flat, zero = torch.zeros_like(problems.target), torch.zeros_like(problems.target_norm)
        return cls(flat, flat, zero, zero, torch.full_like(zero, STIFFNESS_START))

    def next(
        self,
        problems: Problems,
        residual: Tensor,
        moved: Tensor,
        schedule: ScheduleTensors,
        bound: Tensor,
        noise: float,
    ) -> Self:
        """The update at r_t.

        Args:
            residual: r_t, (B, h, w).
            moved: ‖x_t − x_{t−1}‖²_{1/τ}, (B,).
            schedule: of this evaluation.
            bound: ε, (B,), for problems with a constraint on L_p or SSIM.
            noise: the norm of a change of r below which it is ignored, as in `NOISE`.
        """
        change = norms(residual - self.residual)
        squared = torch.where(change > noise, change, 0).square()
        curvature = curvature_estimate(squared, moved, self.curvature, schedule)
        length = norms(residual)
        cosine = (residual * self.residual).sum(dim=(1, 2)) / (length * self.length).clamp_min(tiny(length))
        stiffness = self.stiffness * torch.exp(STIFFNESS_RATE * schedule.has_cosine * (cosine - TARGET_COSINE))
        stiffness = stiffness.clamp(STIFFNESS_MIN, STIFFNESS_MAX)
        sigma = schedule.begun * stiffness / curvature
        y = self.y + sigma[:, None, None] * (2 * residual - self.residual)
        size = norms(y)
        scale = 1 / size.clamp_min(1)
        if problems.any_option("bound"):
            shortened = (1 - sigma * bound / size.clamp_min(1e-30)).clamp_min(0)
            scale = torch.where(problems.bounded, shortened, scale)
        return type(self)(y * scale[:, None, None], residual, length, curvature, stiffness)


def curvature_estimate(changed: Tensor, moved: Tensor, before: Tensor, schedule: ScheduleTensors) -> Tensor:
    """ρ, (B,): the running maximum of `changed` / `moved`, which decays by 0.9 per evaluation.

    Args:
        changed: the squared norm of the change of r or Ẑ, (B,).
        moved: ‖x_t − x_{t−1}‖²_{1/τ}, (B,).
        before: ρ of the previous evaluation, (B,).
        schedule: of this evaluation; at the first one nothing has moved.
    """
    now = schedule.begun * changed / moved.clamp_min(1e-30)
    return torch.maximum(now, CURVATURE_DECAY * before).clamp_min(1e-12)


def tiny(rows: Tensor) -> float:
    """The smallest normal number of the dtype, as a lower bound of denominators."""
    return torch.finfo(rows.dtype).tiny
