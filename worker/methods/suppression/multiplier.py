"""y, the multiplier of the selected map: ‖r‖ is the maximum of ⟨y, r⟩ over ‖y‖ ≤ 1.

    y ← project( y + σ·(2·r_t − r_{t−1}) )            onto the unit ball

σ = ω/ρ, where ρ = ‖r_t − r_{t−1}‖² / ‖x_t − x_{t−1}‖²_{1/τ} is the curvature that the last steps met, keeps σ·τ·‖K‖²
bounded whatever the layer. How stiff y should be, ω, differs between problems by a factor of 30, and r tells: one that
swings to and fro, cos(r_t, r_{t−1}) < 0.4, asks for less, one that drifts for more.

Under a bound L_p ≤ ε, y is that constraint's multiplier: it is not projected but shortened by σ·ε.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from worker.methods.suppression.objective import norms
from worker.methods.suppression.problems import Problems, Rows
from worker.methods.suppression.schedule import Moment

# ‖r‖ below which a change of it is rounding and says nothing about the curvature.
NOISE = {torch.bfloat16: 1e-3, torch.float32: 1e-6, torch.float64: 1e-14}
SWING = 0.4  # cos(r_t, r_{t−1}) at which ω is right
LEARNING = 0.2  # how fast ω follows
LEAST, AT_START, MOST = 0.003, 0.1, 30.0  # ω
CURVATURE_MEMORY = 0.9


@dataclass(frozen=True)
class Multiplier(Rows):
    """Where it stands."""

    y: Tensor  # (B, h, w)
    residual: Tensor  # r_{t−1}, (B, h, w)
    length: Tensor  # ‖r_{t−1}‖, (B,)
    curvature: Tensor  # ρ, (B,)
    stiffness: Tensor  # ω, (B,)

    @classmethod
    def start(cls, problems: Problems) -> Self:
        """At the start r = 0, as X̂ = X."""
        flat, none = torch.zeros_like(problems.target), torch.zeros_like(problems.target_norm)
        return cls(flat, flat, none, none, torch.full_like(none, AT_START))

    def next(
        self, problems: Problems, residual: Tensor, moved: Tensor, moment: Moment, bound: Tensor, noise: float
    ) -> Self:
        """After a step of the length `moved`, (B,), that has led to r = `residual`; `bound` is ε, (B,)."""
        change = norms(residual - self.residual)
        met = torch.where(change > noise, change, 0).square()
        curvature = met_curvature(met, moved, self.curvature, moment)
        length = norms(residual)
        cosine = (residual * self.residual).sum(dim=(1, 2)) / (length * self.length).clamp_min(tiny(length))
        stiffness = self.stiffness * torch.exp(LEARNING * moment.swinging * (cosine - SWING))
        stiffness = stiffness.clamp(LEAST, MOST)
        sigma = moment.begun * stiffness / curvature
        y = self.y + sigma[:, None, None] * (2 * residual - self.residual)
        size = norms(y)
        shorter = 1 / size.clamp_min(1)
        if problems.any_asks("bound"):
            bounded = (1 - sigma * bound / size.clamp_min(1e-30)).clamp_min(0)
            shorter = torch.where(problems.bounded, bounded, shorter)
        return type(self)(y * shorter[:, None, None], residual, length, curvature, stiffness)


def met_curvature(met: Tensor, moved: Tensor, before: Tensor, moment: Moment) -> Tensor:
    """ρ, (B,): the largest that was met, forgotten slowly."""
    now = moment.begun * met / moved.clamp_min(1e-30)
    return torch.maximum(now, CURVATURE_MEMORY * before).clamp_min(1e-12)


def tiny(rows: Tensor) -> float:
    """What nothing is divided by less than."""
    return torch.finfo(rows.dtype).tiny
