"""The reference procedure: SGD with momentum, and the learning rate halved on a plateau. X̂ is the best iterate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from worker.methods.suppression.objective import BatchLosses, losses_and_gradient, subgradient
from worker.methods.suppression.problem_batch import ProblemOptions, Problems, Rows


@dataclass(frozen=True)
class ReferenceState(Rows):
    """The iterate of each problem."""

    x: Tensor  # X̂, (B, 3, H, W)
    velocity: Tensor  # (B, 3, H, W)
    rate: Tensor  # the learning rate, (B,)
    plateau_loss: Tensor  # the lowest merit, replaced only by one that is lower by a factor of 1 − 10⁻⁴, (B,)
    plateau: Tensor  # evaluations since it was replaced, (B,)


@dataclass(frozen=True)
class ReferenceSolver:
    """The procedure of the authors' experiments. The paper prints plain gradient descent, which is `momentum=0`.

    X̂ is not projected onto the displayable box, but onto the values between X and the mean colour where `only_remove`.
    The procedure is slow: |X̂| can only shrink by rate·β / (3·H·W) / (1 − momentum) per step.

    Args:
        rate: the learning rate.
        momentum: in [0, 1).
        factor: of the learning rate on a plateau.
        patience: evaluations without a lower loss that are a plateau.
        budget: the number of gradient evaluations.
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
    ) -> tuple[BatchLosses, ReferenceState]:
        """One gradient evaluation and one step. Returns the losses before the step."""
        now, gradient = losses_and_gradient(network, problems, state.x, subgradient(problems), precision)
        pixels = state.x[0].numel()
        gradient = gradient + problems.beta[:, None, None, None] / pixels * state.x.sign()
        velocity = self.momentum * state.velocity + gradient
        better = now.merit < state.plateau_loss * (1 - 1e-4)
        plateau = torch.where(better, 0, state.plateau + 1)
        halve = plateau > self.patience
        x = state.x - state.rate[:, None, None, None] * velocity
        return now, ReferenceState(
            x=torch.where(problems.only_remove[:, None, None, None], _between(x, problems.image), x),
            velocity=velocity,
            rate=torch.where(halve, state.rate * self.factor, state.rate),
            plateau_loss=torch.where(better, now.merit, state.plateau_loss),
            plateau=torch.where(halve, 0, plateau),
        )

    def resets_best(self, _age: int, _options: ProblemOptions) -> bool:
        """Never: all evaluations are of the same loss."""
        return False

    def delivered(self, _problems: Problems, x: Tensor, _when: Sequence[tuple[Self, int]]) -> Tensor:
        """The best iterate itself, which may be outside the displayable box."""
        return x

    def converged(self, state: ReferenceState) -> Tensor:
        """(B,) bool: never, since the procedure has a fixed number of iterations."""
        return torch.zeros_like(state.rate, dtype=torch.bool)


def _between(x: Tensor, image: Tensor) -> Tensor:
    """Each value between that of X and the mean colour, 0."""
    return torch.minimum(torch.maximum(x, image.clamp_max(0)), image.clamp_min(0))
