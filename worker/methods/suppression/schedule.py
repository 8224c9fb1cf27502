"""When a descent begins and ends, and what follows from that: plain numbers of the host, and no tensor's business.

A solver makes one descent, or a first and then shorter ones until one of them gains next to nothing. t is the share of
the present descent that is spent, in (0, 1].
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
    """What a solver was told of how long it is to try. Problems that were told different things share a batch.

    Args:
        budget: the most gradient evaluations.
        first: evaluations of the first descent.
        again: evaluations of each later one.
        gain: a later descent that lowers the loss by less than this share is the last.
        faithful: the evaluation from which on the network is shown the 8-bit picture.
        travel: h·√first, in normalised units: a short descent takes longer steps.
    """

    budget: int = 1000
    first: int = 200
    again: int = 100
    gain: float = 0.003
    faithful: int = 200
    travel: float = 3.5

    @property
    def longest(self) -> float:
        """The longest step of a pixel, h, in normalised units."""
        return self.travel / sqrt(self.first)

    def share(self, age: int) -> float:
        """Of the evaluation after `age` others: t."""
        return (age + 1) / self.first if age < self.first else ((age - self.first) % self.again + 1) / self.again

    def ends(self, age: int) -> bool:
        """Whether a descent does, with this evaluation."""
        return age + 1 == self.first or (age >= self.first and (age - self.first + 1) % self.again == 0)

    def step(self, age: int, last: float) -> float:
        """s_t·h: the step of a pixel that nothing pulls at, which falls to a share `last` of the longest."""
        fallen = 0.5 * (1 + cos(pi * self.share(age)))
        return self.longest * (last + (1 - last) * fallen * sqrt(fallen))

    def hope(self, age: int, middle: float) -> float:
        """κ_t, which is `middle` in the middle of the first descent and falls to 0."""
        share = self.share(age)
        share = share if age < self.first else 0.3 + 0.7 * share
        return middle * ((1 - share) / share) ** 2

    def louder(self, age: int, lasting: float) -> float:
        """How much of the louder shrinking is left: from 1 to 0 in a share `lasting` of the first descent."""
        return max(0.0, 1 - self.share(age) / lasting) if age < self.first else 0.0

    def pricing(self, age: int) -> float:
        """How fast the price of a bound follows: from 0 in the middle of a descent to 1 at its end."""
        return max(0.0, 2 * self.share(age) - 1)


# One descent; as many as gain something; longer ones.
EFFORTS = {
    "quick": Schedule(budget=100, first=100, faithful=75, travel=5.0),
    "standard": Schedule(),
    "thorough": Schedule(budget=2000, first=400, again=200, gain=0.001, faithful=400),
}


class Numbers(NamedTuple):
    """What it says of one evaluation of one problem, in the order of the fields of `Moment`, which tells them."""

    begun: bool
    swinging: bool
    step: float
    hope: float
    louder: float
    stiffness: float
    pricing: float
    unbiased: float
    ends: bool
    last: bool
    gain: float
    rounded: bool
    forgets: bool


@dataclass(frozen=True)
class Moment:
    """What the schedules say of one evaluation, a column of numbers for each: one copy to the device."""

    host: tuple[Numbers, ...]  # of each problem
    begun: Tensor  # 0 at the first evaluation, which no step has led to; else 1: (B,), like all of them
    swinging: Tensor  # 1 from the third evaluation on: there were two residuals before
    step: Tensor  # s_t·h
    hope: Tensor  # κ_t
    louder: Tensor
    stiffness: Tensor  # ω of u
    pricing: Tensor
    unbiased: Tensor  # 1 − (memory of v)^(age + 1)
    ends: Tensor  # 1 where a descent ends
    last: Tensor  # 1 where a later descent ends
    gain: Tensor
    rounded: Tensor  # 1 where the network is shown the 8-bit picture
    forgets: Tensor  # 1 where it is for the first time

    @classmethod
    def of(cls, numbers: Sequence[Numbers], like: Tensor) -> Self:
        """Of each problem's numbers, in the dtype of `like` and on its device."""
        table = torch.tensor(list(numbers), dtype=like.dtype)
        return cls(tuple(numbers), *table.to(like.device, non_blocking=True).unbind(1))

    def any(self, what: str) -> bool:
        """Whether a number is above 0 for any problem, as the host knows it."""
        return any(getattr(one, what) > 0 for one in self.host)
