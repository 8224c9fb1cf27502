"""What the descents have reached, and whether another is worth it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from worker.methods.suppression.objective import BROKEN, Losses
from worker.methods.suppression.problems import Problems, Rows
from worker.methods.suppression.schedule import Moment

LOWEST = 0.1  # where the step of a later descent begins, or at L_p where more of the map is lost


@dataclass(frozen=True)
class Descents(Rows):
    """Of each problem."""

    best: Tensor  # the lowest merit that was seen, (B,)
    descended: Tensor  # what it was when the last descent ended, (B,)
    height: Tensor  # where the step of this descent begins, of the longest, (B,)
    settled: Tensor  # bool: a descent ended that gained next to nothing, (B,)

    @classmethod
    def start(cls, problems: Problems) -> Self:
        """Nothing yet."""
        none = torch.zeros_like(problems.target_norm)
        worst = torch.full_like(none, torch.inf)
        return cls(worst, worst, torch.ones_like(none), torch.zeros_like(none, dtype=torch.bool))

    def next(self, now: Losses, moment: Moment) -> Self:
        """After an evaluation."""
        best, descended = torch.fmin(self.best, now.merit), self.descended
        if moment.any("forgets"):
            forgets = moment.forgets > 0
            best, descended = (torch.where(forgets, now.merit, one) for one in (best, descended))
        if not moment.any("ends"):
            return type(self)(best, descended, self.height, self.settled)
        ends = moment.ends > 0
        gained = best > (1 - moment.gain) * descended
        return type(self)(
            best,
            torch.where(ends, best, descended),
            torch.where(ends, now.preservation.clamp(LOWEST, 1), self.height),
            (moment.last > 0) & gained & (best < BROKEN),
        )
