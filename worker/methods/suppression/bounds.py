"""Where a bound is to be kept: how near the iterates are let to it, and what breaking it costs.

* Under a bound L_p ≤ ε the multiplier y is shortened by σ·ε. Where the bound is one of SSIM, ε follows: it shrinks
  while SSIM is below the bound and grows while above.
* Under a bound L_e ≤ ε, γ is that constraint's multiplier: it grows by a factor while L_e is above the bound and
  shrinks while it is below, in the second half of each descent; before, long steps invent what short ones take back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from worker.methods.suppression.objective import Losses
from worker.methods.suppression.problems import Problems, Rows
from worker.methods.suppression.schedule import Moment

INSIDE = 0.99  # of the bound of L_p, about which the iterates swing
FOLLOWING = 0.03  # how fast ε follows the SSIM
INSIDE_BELOW = 0.96  # of the bound of L_e, about which the iterates swing
LEAST, AT_START, MOST = 0.01, 1.0, 100.0  # γ under a bound of L_e
PRICING = 0.2  # how fast it follows L_e at the end of a descent


@dataclass(frozen=True)
class Limits(Rows):
    """What they are now."""

    preservation: Tensor  # ε: what L_p may be, (B,)
    price: Tensor  # γ: the weight of L_e, or the multiplier of its bound, (B,)

    @classmethod
    def start(cls, problems: Problems) -> Self:
        """SSIM falls with the square of L_p."""
        guess = (1 - problems.min_ssim).clamp_min(0).sqrt()
        guess = torch.where(problems.min_ssim > -1, guess, 1).minimum(INSIDE * problems.max_preservation)
        return cls(guess, torch.where(problems.max_invention.isfinite(), AT_START, problems.gamma))

    def next(self, problems: Problems, now: Losses, moment: Moment) -> Self:
        """After the losses of an evaluation."""
        return type(self)(self._preservation(problems, now), self._price(problems, now, moment))

    def _preservation(self, problems: Problems, now: Losses) -> Tensor:
        """Larger only where L_p makes use of it."""
        if now.ssim is None:
            return self.preservation
        bound = self.preservation
        room = ((now.ssim - problems.min_ssim) / (1 - problems.min_ssim).clamp_min(1e-6)).clamp(-1, 1)
        room = torch.where(now.preservation > 0.8 * bound, room, room.clamp_max(0))
        follows = (bound * torch.exp(FOLLOWING * room)).clamp(1e-6, 1).minimum(INSIDE * problems.max_preservation)
        return torch.where(problems.min_ssim > -1, follows, bound)

    def _price(self, problems: Problems, now: Losses, moment: Moment) -> Tensor:
        """The faster the shorter the steps are."""
        if now.invention is None or not problems.any_asks("max_invention"):
            return self.price
        over = (now.invention / (INSIDE_BELOW * problems.max_invention) - 1).clamp(-1, 1)
        follows = (self.price * torch.exp(PRICING * moment.pricing * over)).clamp(LEAST, MOST)
        return torch.where(problems.max_invention.isfinite(), follows, self.price)
