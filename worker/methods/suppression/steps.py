"""The primal step: momentum, a step size for each pixel, the proximal map of L_r, the displayable box.

    m ← b·m + (1 − b)·g,   v ← 0.7·v + 0.3·g²
    x ← clip( shrink( x − τ·m, τ·β/N ) )                          N = 3·H·W

* τ = s_t·h·N / (1 + N·√v), per pixel: where the gradient is small against L_r's 1/N a pixel moves by h, elsewhere by
  less, as in Adam. s_t falls within a descent, and the caller divides it by 1 + L_p.
* The momentum b follows the averaged cos(g_t, g_{t−1}): gradients that alternate are averaged over more steps.
* m and v are divided by their bias corrections, as in Adam.
* On a deep layer mean |m| is several times β/N and nearly all pixels have a large m. What such gradients write into x
  cannot be removed by the soft threshold in a short descent. Therefore the threshold starts at τ·mean |m|, at most four
  times τ·β/N, and falls to τ·β/N within the first nine tenths of the first descent. Where only a few pixels have a
  large m, (mean √|m|)² < ½·mean |m|, these gradients preserve the map, and the threshold is τ·β/N throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from worker.methods.suppression.multiplier import tiny
from worker.methods.suppression.objective import columns, norms
from worker.methods.suppression.pixel_space import PixelSpace
from worker.methods.suppression.problem_batch import Problems, Rows
from worker.methods.suppression.schedule import ScheduleTensors

MOMENTUM_MIN, MOMENTUM_UNCORRELATED, MOMENTUM_MAX = 0.3, 0.65, 0.9  # b; in the middle: that of a cosine of 0
COSINE_DECAY = 0.8
SQUARE_DECAY = 0.7  # of v
LAST = 0.001  # s_t at the end of a descent
BOOST_MAX, BOOST_FRACTION = 4.0, 0.9  # of β at the start, and the fraction of the first descent that the boost lasts
DENSE = 0.5  # (mean √|m|)² / mean |m|: 0.86 of noise, 0.67 to 0.85 on VGG-16, 0.33 where few pixels have a large m


@dataclass(frozen=True)
class Steps(Rows):
    """The running averages of the primal step."""

    gradient: Tensor  # g_{t−1}, (B, 3, H, W)
    length: Tensor  # ‖g_{t−1}‖, (B,)
    cosine: Tensor  # the average of cos(g_t, g_{t−1}), (B,)
    mean: Tensor  # m, (B, 3, H, W)
    bias: Tensor  # Π b: the weight of the initial 0 in m, (B,)
    square: Tensor  # v, (B, 3, H, W)
    moved: Tensor  # ‖x_t − x_{t−1}‖²_{1/τ}, (B,)

    @classmethod
    def start(cls, problems: Problems) -> Self:
        """Before the first step."""
        zeros, zero = torch.zeros_like(problems.image), torch.zeros_like(problems.target_norm)
        return cls(zeros, zero, zero, zeros, torch.ones_like(zero), zeros, zero)

    def next(
        self,
        problems: Problems,
        x: Tensor,
        gradient: Tensor,
        schedule: ScheduleTensors,
        length: Tensor,
        space: PixelSpace,
    ) -> tuple[Tensor, Self]:
        """One step.

        Args:
            x: (B, 3, H, W).
            gradient: g_t at x, (B, 3, H, W).
            schedule: of this evaluation.
            length: the step of a pixel with no gradient, in normalised units, (B,).
            space: its box contains the next x.

        Returns:
            The next x, and the averages.
        """
        pixels, size = gradient[0].numel(), norms(gradient)
        cosine = (gradient * self.gradient).sum(dim=(1, 2, 3)) / (size * self.length).clamp_min(tiny(size))
        averaged = torch.lerp(cosine, self.cosine, COSINE_DECAY)
        momentum = (MOMENTUM_UNCORRELATED - 0.5 * averaged).clamp(MOMENTUM_MIN, MOMENTUM_MAX)
        mean = torch.lerp(gradient, self.mean, columns(momentum))
        bias = momentum * self.bias
        square = torch.lerp(gradient.square(), self.square, SQUARE_DECAY)
        root = (square / columns(schedule.bias_correction)).sqrt_().mul_(pixels).add_(1)
        tau = columns(length * pixels) / root
        direction = mean / columns(1 - bias)
        beta = self._beta(problems, direction, schedule) if schedule.any("boost") else problems.beta
        threshold = columns(beta / pixels)
        new = boxed(problems, shrunk(torch.addcmul(x, tau, direction, value=-1), tau * threshold), space)
        moved = ((new - x).square() / tau).sum(dim=(1, 2, 3))
        return new, type(self)(gradient, size, averaged, mean, bias, square, moved)

    @staticmethod
    def _beta(problems: Problems, direction: Tensor, schedule: ScheduleTensors) -> Tensor:
        """β of the soft threshold, (B,): boosted at first where nearly all pixels have a large m."""
        strength = direction.abs()
        mean, roots = strength.mean(dim=(1, 2, 3)), strength.sqrt().mean(dim=(1, 2, 3))
        boost = (mean * direction[0].numel() / problems.beta.clamp_min(1e-9)).clamp(1, BOOST_MAX)
        remaining = torch.where(roots.square() > DENSE * mean, schedule.boost, 0)
        return problems.beta * torch.addcmul(torch.ones_like(remaining), remaining, boost - 1)


def shrunk(x: Tensor, threshold: Tensor) -> Tensor:
    """The soft threshold: the proximal map of threshold·|x|."""
    return x - x.clamp(-threshold, threshold)


def boxed(problems: Problems, x: Tensor, space: PixelSpace) -> Tensor:
    """The projection onto the displayable box; where `only_remove`, onto the values between X and the mean colour."""
    low, high = space.box(x.dtype)
    if problems.any_option("only_remove"):
        least, most = problems.image.clamp_max(0), problems.image.clamp_min(0)
        if not all(options.only_remove for options in problems.options):
            only_remove = columns(problems.only_remove)
            least, most = torch.where(only_remove, least, low), torch.where(only_remove, most, high)
        low, high = least, most
    return x.clamp(low, high)
