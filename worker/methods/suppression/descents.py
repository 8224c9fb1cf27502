"""The lowest merit of each descent, and whether another descent follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from worker.methods.suppression.objective import VIOLATED, BatchLosses
from worker.methods.suppression.problem_batch import Problems, Rows
from worker.methods.suppression.schedule import ScheduleTensors

LEAST_HEIGHT = 0.1  # of a later descent's first step, relative to the longest; L_p where that is higher


@dataclass(frozen=True)
class Descents(Rows):
    """The descents of each problem."""

    best: Tensor  # the lowest merit of all evaluations, (B,)
    previous: Tensor  # the lowest merit when the last descent ended, (B,)
    height: Tensor  # the first step of this descent relative to the longest step h, in (0, 1], (B,)
    settled: Tensor  # bool: a later descent has ended and lowered the merit by less than `gain`, (B,)

    @classmethod
    def start(cls, problems: Problems) -> Self:
        """Before the first evaluation."""
        zero = torch.zeros_like(problems.target_norm)
        worst = torch.full_like(zero, torch.inf)
        return cls(worst, worst, torch.ones_like(zero), torch.zeros_like(zero, dtype=torch.bool))

    def next(self, now: BatchLosses, schedule: ScheduleTensors) -> Self:
        """The update after an evaluation with the losses `now`."""
        best, previous = torch.fmin(self.best, now.merit), self.previous
        if schedule.any("resets_best"):
            resets = schedule.resets_best > 0
            best, previous = (torch.where(resets, now.merit, one) for one in (best, previous))
        if not schedule.any("descent_ends"):
            return type(self)(best, previous, self.height, self.settled)
        ends = schedule.descent_ends > 0
        gained_little = best > (1 - schedule.gain) * previous
        return type(self)(
            best,
            torch.where(ends, best, previous),
            torch.where(ends, now.preservation.clamp(LEAST_HEIGHT, 1), self.height),
            (schedule.later_descent_ends > 0) & gained_little & (best < VIOLATED),
        )
