"""The step of X̂: momentum, a length of each pixel's own, shrinking towards the mean colour, the box.

    m ← b·m + (1 − b)·g,   v ← 0.7·v + 0.3·g²
    x ← clip( shrink( x − τ·m, τ·β/N ) )                          N = 3·H·W

* τ = s_t·h·N / (1 + N·√v): where the gradient is small against L_r's 1/N a pixel moves h a step, elsewhere less, as in
  Adam. s_t falls in a descent; the step waits while L_p is large.
* The momentum b follows cos(g_t, g_{t−1}): gradients that alternate are averaged over more steps.
* In a problem of many layers the pull of the pixels is loud, mean |m| several times β/N, nearly everywhere, and what it
  puts into x the shrinking cannot take away in a short descent. So at first the threshold is that of the mean |m|, at
  most four times its own; it falls to its own, β, in the first nine tenths of the first descent. Where a few pixels are
  pulled and most are not, (mean √|m|)² < ½·mean |m|, the pull is what holds the map, and nothing is louder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from worker.methods.suppression.multiplier import tiny
from worker.methods.suppression.objective import columns, norms
from worker.methods.suppression.problems import PixelSpace, Problems, Rows
from worker.methods.suppression.schedule import Moment

LEAST, INDEPENDENT, MOST = 0.3, 0.65, 0.9  # b; that of gradients that have nothing to do with each other
AGREEMENT_MEMORY = 0.8
SQUARE_MEMORY = 0.7
LAST = 0.001  # what is left of the step at the end of a descent
LOUDEST, LASTING = 4.0, 0.9  # times β at most at the start, and the share of the first descent that it lasts
EVERYWHERE = 0.5  # (mean √|m|)² over mean |m|: 0.86 of noise, 0.67 to 0.85 on VGG-16, 0.33 where few pixels are pulled


@dataclass(frozen=True)
class Steps(Rows):
    """What the steps so far have left."""

    slope: Tensor  # g_{t−1}, (B, 3, H, W)
    length: Tensor  # ‖g_{t−1}‖, (B,)
    agreement: Tensor  # cos(g_t, g_{t−1}), averaged, (B,)
    mean: Tensor  # m, (B, 3, H, W)
    forgotten: Tensor  # Π b: the weight of 0 in m, (B,)
    square: Tensor  # v, (B, 3, H, W)
    moved: Tensor  # ‖x_t − x_{t−1}‖²_{1/τ}, (B,)

    @classmethod
    def start(cls, problems: Problems) -> Self:
        """None."""
        zeros, none = torch.zeros_like(problems.image), torch.zeros_like(problems.target_norm)
        return cls(zeros, none, none, zeros, torch.ones_like(none), zeros, none)

    def next(
        self, problems: Problems, x: Tensor, slope: Tensor, moment: Moment, length: Tensor, space: PixelSpace
    ) -> tuple[Tensor, Self]:
        """The step from x along g = `slope`; `length` is that of a pixel that nothing pulls at, s_t·h, (B,)."""
        pixels, size = slope[0].numel(), norms(slope)
        cosine = (slope * self.slope).sum(dim=(1, 2, 3)) / (size * self.length).clamp_min(tiny(size))
        agreement = torch.lerp(cosine, self.agreement, AGREEMENT_MEMORY)
        memory = (INDEPENDENT - 0.5 * agreement).clamp(LEAST, MOST)
        mean = torch.lerp(slope, self.mean, columns(memory))
        forgotten = memory * self.forgotten
        square = torch.lerp(slope.square(), self.square, SQUARE_MEMORY)
        root = (square / columns(moment.unbiased)).sqrt_().mul_(pixels).add_(1)
        tau = columns(length * pixels) / root
        pull = mean / columns(1 - forgotten)
        beta = self._beta(problems, pull, moment) if moment.any("louder") else problems.beta
        threshold = columns(beta / pixels)
        new = boxed(problems, shrunk(torch.addcmul(x, tau, pull, value=-1), tau * threshold), space)
        moved = ((new - x).square() / tau).sum(dim=(1, 2, 3))
        return new, type(self)(slope, size, agreement, mean, forgotten, square, moved)

    @staticmethod
    def _beta(problems: Problems, pull: Tensor, moment: Moment) -> Tensor:
        """The weight of L_r that this step shrinks by, (B,): louder at first where the pixels' pull is."""
        strength = pull.abs()
        mean, roots = strength.mean(dim=(1, 2, 3)), strength.sqrt().mean(dim=(1, 2, 3))
        loud = (mean * pull[0].numel() / problems.beta.clamp_min(1e-9)).clamp(1, LOUDEST)
        left = torch.where(roots.square() > EVERYWHERE * mean, moment.louder, 0)
        return problems.beta * torch.addcmul(torch.ones_like(left), left, loud - 1)


def shrunk(x: Tensor, threshold: Tensor) -> Tensor:
    """The proximal map of threshold·|x|."""
    return x - x.clamp(-threshold, threshold)


def boxed(problems: Problems, x: Tensor, space: PixelSpace) -> Tensor:
    """What can be displayed; between X and the mean colour where nothing may be added."""
    low, high = space.box(x.dtype)
    if problems.any_asks("removing"):
        least, most = problems.image.clamp_max(0), problems.image.clamp_min(0)
        if not all(asks.removing for asks in problems.asks):
            removing = columns(problems.removing)
            least, most = torch.where(removing, least, low), torch.where(removing, most, high)
        low, high = least, most
    return x.clamp(low, high)
