"""The reference procedure: SGD with momentum on X̂, the learning rate halved on a plateau, the best iterate kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from worker.methods.suppression.objective import Losses, gradient, subgradient
from worker.methods.suppression.problems import Asks, Problems, Rows


@dataclass(frozen=True)
class ReferenceState(Rows):
    """Where each problem stands."""

    x: Tensor  # (B, 3, H, W)
    velocity: Tensor  # (B, 3, H, W)
    rate: Tensor  # (B,)
    plateau_loss: Tensor  # (B,): the loss that has to be beaten by 10⁻⁴ of itself
    plateau: Tensor  # (B,): evaluations since it was


@dataclass(frozen=True)
class ReferenceSolver:
    """As in the authors' experiments. The paper prints plain gradient descent: `momentum=0`.

    X̂ is neither clamped nor projected, except between X and the mean colour where a problem may only remove. It is
    slow: |X̂| can only shrink by rate·β / (3·H·W) / (1 − momentum) a step.
    """

    rate: float = 10.0
    momentum: float = 0.9
    factor: float = 0.5
    patience: int = 200
    budget: int = 10_000

    def start(self, problems: Problems) -> ReferenceState:
        """X̂ = X."""
        batch = len(problems)
        fill = problems.image.new_full
        return ReferenceState(
            x=problems.image,
            velocity=torch.zeros_like(problems.image),
            rate=fill((batch,), self.rate),
            plateau_loss=fill((batch,), torch.inf),
            plateau=fill((batch,), 0),
        )

    def step(
        self,
        network: nn.Module,
        problems: Problems,
        state: ReferenceState,
        _when: Sequence[tuple[Self, int]],
        precision: torch.dtype,
    ) -> tuple[Losses, ReferenceState]:
        """One evaluation and one step. Returns the losses at the old X̂."""
        now, slope = gradient(network, problems, state.x, subgradient(problems), precision)
        pixels = state.x[0].numel()
        slope = slope + problems.beta[:, None, None, None] / pixels * state.x.sign()
        velocity = self.momentum * state.velocity + slope
        better = now.merit < state.plateau_loss * (1 - 1e-4)
        plateau = torch.where(better, 0, state.plateau + 1)
        halve = plateau > self.patience
        x = state.x - state.rate[:, None, None, None] * velocity
        return now, ReferenceState(
            x=torch.where(problems.removing[:, None, None, None], _between(x, problems.image), x),
            velocity=velocity,
            rate=torch.where(halve, state.rate * self.factor, state.rate),
            plateau_loss=torch.where(better, now.merit, state.plateau_loss),
            plateau=torch.where(halve, 0, plateau),
        )

    def forgets(self, _age: int, _asks: Asks) -> bool:
        """Never; every evaluation is of the same loss."""
        return False

    def handed_out(self, _problems: Problems, x: Tensor, _when: Sequence[tuple[Self, int]]) -> Tensor:
        """The best iterate itself, which need not be displayable."""
        return x

    def converged(self, state: ReferenceState) -> Tensor:
        """(B,) bool: never; the procedure is a fixed number of iterations."""
        return torch.zeros_like(state.rate, dtype=torch.bool)


def _between(x: Tensor, image: Tensor) -> Tensor:
    """Each value between that of X and the mean colour, 0."""
    return torch.minimum(torch.maximum(x, image.clamp_max(0)), image.clamp_min(0))
