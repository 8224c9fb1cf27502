"""Constraints on L_p, SSIM and L_e: the bound that y works with, and the dual variable of the bound on L_e.

* L_p ≤ ε: y is the dual variable of this constraint, and its update subtracts σ·ε from its length (multiplier.py).
* SSIM(F̂_i, F_i) ≥ s is enforced as L_p ≤ ε_t, where ε_t shrinks while SSIM < s and grows while SSIM > s.
* L_e ≤ ε: γ is the dual variable. It is multiplied by a factor > 1 while L_e is above the bound and by one < 1 while it
  is below. γ changes only in the second half of a descent: the long steps before cause invention that the short steps
  undo.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from worker.methods.suppression.objective import BatchLosses
from worker.methods.suppression.problem_batch import Problems, Rows
from worker.methods.suppression.schedule import ScheduleTensors

PRESERVATION_MARGIN = 0.99  # the iterates oscillate about a bound, so the solver aims for less: ε of L_p times this
INVENTION_MARGIN = 0.96  # the same of L_e
SSIM_RATE = 0.03  # log change of ε_t per evaluation, at most
GAMMA_MIN, GAMMA_START, GAMMA_MAX = 0.01, 1.0, 100.0  # γ where L_e is bounded
GAMMA_RATE = 0.2  # log change of γ per evaluation at the end of a descent, at most


@dataclass(frozen=True)
class Constraints(Rows):
    """The present bounds and dual variables."""

    preservation: Tensor  # ε_t: the upper bound on L_p, (B,)
    gamma: Tensor  # γ: the weight of L_e, or the dual variable of its bound, (B,)

    @classmethod
    def start(cls, problems: Problems) -> Self:
        """ε_0 = √(1 − s) where SSIM is bounded, since 1 − SSIM grows with the square of L_p."""
        guess = (1 - problems.min_ssim).clamp_min(0).sqrt()
        guess = torch.where(problems.min_ssim > -1, guess, 1).minimum(PRESERVATION_MARGIN * problems.max_preservation)
        return cls(guess, torch.where(problems.max_invention.isfinite(), GAMMA_START, problems.gamma))

    def next(self, problems: Problems, now: BatchLosses, schedule: ScheduleTensors) -> Self:
        """The update after an evaluation with the losses `now`."""
        return type(self)(self._preservation(problems, now), self._gamma(problems, now, schedule))

    def _preservation(self, problems: Problems, now: BatchLosses) -> Tensor:
        """ε_t grows only where L_p is near it."""
        if now.ssim is None:
            return self.preservation
        bound = self.preservation
        slack = ((now.ssim - problems.min_ssim) / (1 - problems.min_ssim).clamp_min(1e-6)).clamp(-1, 1)
        slack = torch.where(now.preservation > 0.8 * bound, slack, slack.clamp_max(0))
        updated = (bound * torch.exp(SSIM_RATE * slack)).clamp(1e-6, 1)
        updated = updated.minimum(PRESERVATION_MARGIN * problems.max_preservation)
        return torch.where(problems.min_ssim > -1, updated, bound)

    def _gamma(self, problems: Problems, now: BatchLosses, schedule: ScheduleTensors) -> Tensor:
        """γ changes the faster the shorter the steps are."""
        if now.invention is None or not problems.any_option("max_invention"):
            return self.gamma
        violation = (now.invention / (INVENTION_MARGIN * problems.max_invention) - 1).clamp(-1, 1)
        updated = (self.gamma * torch.exp(GAMMA_RATE * schedule.gamma_rate * violation)).clamp(GAMMA_MIN, GAMMA_MAX)
        return torch.where(problems.max_invention.isfinite(), updated, self.gamma)
