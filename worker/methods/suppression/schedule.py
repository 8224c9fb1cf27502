"""The schedule of the fast solver: when a descent starts and ends, and the values that depend on it.

A solver makes one descent, or a first one and then shorter ones until one of them lowers the loss by next to nothing.
t ∈ (0, 1] is the fraction of the present descent that is spent. An evaluation's age is the number of evaluations before
it. Everything but `ScheduleTensors` is computed on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi, sqrt
from typing import NamedTuple, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """How long a problem is solved. Problems with different schedules may share a batch.

    Args:
        budget: the largest number of gradient evaluations.
        first: evaluations of the first descent.
        again: evaluations of each later descent.
        gain: a later descent that lowers the loss by less than this fraction is the last.
        rounded_from: the age from which on evaluations are at the 8-bit picture.
        travel: h·√first, in normalised units: a shorter descent takes longer steps.
    """

    budget: int = 1000
    first: int = 200
    again: int = 100
    gain: float = 0.003
    rounded_from: int = 200
    travel: float = 3.5

    @property
    def longest(self) -> float:
        """h: the longest step of a pixel, in normalised units."""
        return self.travel / sqrt(self.first)

    def fraction(self, age: int) -> float:
        """The fraction t of the present descent, including this evaluation."""
        return (age + 1) / self.first if age < self.first else ((age - self.first) % self.again + 1) / self.again

    def ends(self, age: int) -> bool:
        """Whether a descent ends with this evaluation."""
        return age + 1 == self.first or (age >= self.first and (age - self.first + 1) % self.again == 0)

    def step(self, age: int, last: float) -> float:
        """s_t·h: the step of a pixel with no gradient. s_t falls from 1 to `last` along a power of a cosine."""
        fallen = 0.5 * (1 + cos(pi * self.fraction(age)))
        return self.longest * (last + (1 - last) * fallen * sqrt(fallen))

    def revival(self, age: int, middle: float) -> float:
        """κ_t: `middle` in the middle of the first descent, 0 at the end of each."""
        t = self.fraction(age)
        t = t if age < self.first else 0.3 + 0.7 * t
        return middle * ((1 - t) / t) ** 2

    def boost(self, age: int, fraction: float) -> float:
        """The remaining part of L_r's initial boost: from 1 to 0 within this fraction of the first descent."""
        return max(0.0, 1 - self.fraction(age) / fraction) if age < self.first else 0.0

    def gamma_rate(self, age: int) -> float:
        """The rate at which γ is adapted to a bound on L_e: 0 up to the middle of a descent, 1 at its end."""
        return max(0.0, 2 * self.fraction(age) - 1)


# quick: one descent; standard: as many as lower the loss; thorough: the same, and longer ones.
EFFORTS = {
    "quick": Schedule(budget=100, first=100, rounded_from=75, travel=5.0),
    "standard": Schedule(),
    "thorough": Schedule(budget=2000, first=400, again=200, gain=0.001, rounded_from=400),
}


class ScheduleValues(NamedTuple):
    """The schedule's values for one evaluation of one problem, in the order of the fields of `ScheduleTensors`."""

    begun: bool
    has_cosine: bool
    step: float
    revival: float
    boost: float
    stiffness: float
    gamma_rate: float
    bias_correction: float
    descent_ends: bool
    later_descent_ends: bool
    gain: float
    rounded: bool
    resets_best: bool


@dataclass(frozen=True)
class ScheduleTensors:
    """The schedules' values for one evaluation of a batch: a table that is copied to the device once."""

    host: tuple[ScheduleValues, ...]  # of each problem
    begun: Tensor  # 0 at the first evaluation, before which there was no step; else 1; (B,), like all that follow
    has_cosine: Tensor  # 1 from the third evaluation on: two residuals that are not the initial zero
    step: Tensor  # s_t·h
    revival: Tensor  # κ_t
    boost: Tensor  # the remaining part of L_r's initial boost, in [0, 1]
    stiffness: Tensor  # ω of u
    gamma_rate: Tensor  # in [0, 1]
    bias_correction: Tensor  # 1 − 0.7^(age + 1), of v
    descent_ends: Tensor  # 1 where a descent ends
    later_descent_ends: Tensor  # 1 where a descent other than the first ends
    gain: Tensor
    rounded: Tensor  # 1 where the evaluation is at the 8-bit picture
    resets_best: Tensor  # 1 where it is for the first time, so that earlier losses do not compare

    @classmethod
    def of(cls, values: Sequence[ScheduleValues], like: Tensor) -> Self:
        """The table of all problems' values, in the dtype and on the device of `like`."""
        table = torch.tensor(list(values), dtype=like.dtype)
        return cls(tuple(values), *table.to(like.device, non_blocking=True).unbind(1))

    def any(self, name: str) -> bool:
        """Whether the value of this name is above 0 for any problem; needs no read from the device."""
        return any(getattr(one, name) > 0 for one in self.host)
