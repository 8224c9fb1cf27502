"""The default solver: a preconditioned primal-dual method on the paper's loss, inside the displayable box.

‖r‖ is the maximum of ⟨y, r⟩ over ‖y‖ ≤ 1, and F̂_j = max(Ẑ_j, 0) that of u·Ẑ_j over 0 ≤ u ≤ 1, where Ẑ is the layer
before its ReLU. With the dual variables y and u in place of L_p and L_s, each iteration is (Chambolle & Pock 2011):

    y ← project( y + σ_y·(2·r_t − r_{t−1}) )                      onto the unit ball                   multiplier.py
    u ← clip( u + σ_u·(2·Ẑ_t − Ẑ_{t−1}), 0, 1 )                                                        gates.py
    m ← b·m + (1 − b)·g,   v ← 0.7·v + 0.3·g²                      with g = ∇( ⟨y, r⟩ + α·Σ_{j≠i} ⟨u_j, Ẑ_j⟩ / Σ‖F_j‖₁ )
    x ← clip( shrink( x − τ·m, τ·β/N ) )                          N = 3·H·W                            steps.py

The start is X̂ = X, where r = 0 and y = 0. The first steps therefore follow L_s and L_r only, and y grows where F̂_i
departs from F_i, so X̂ stays in the basin in which F_i is preserved. Subgradient descent on ‖r‖ leaves that basin.

Revival: r = (Ẑ_i − F_i) / ‖F_i‖ at positions with F_i > 0 and Ẑ_i > −κ_t·F_i, and (F̂_i − F_i) / ‖F_i‖ elsewhere. A
position whose response has fallen below 0 has no gradient in the paper's formula; here it has one, unless Ẑ_i is far
below 0. κ_t falls to 0 in each descent, so the final loss is the paper's.

Where a layer's maps have a sign (F = Z), −1 ≤ u ≤ 1 and r = (F̂_i − F_i) / ‖F_i‖ everywhere.

Step sizes, κ and ω follow the schedule of each descent (schedule.py, descents.py). Late evaluations are at the 8-bit
picture (rounding.py); constraints.py treats bounds. Where γ·L_e is part of the loss (taps.py), its subgradient is part
of g.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self

import torch
from torch import Tensor, nn

from worker.methods.suppression import gates, steps
from worker.methods.suppression.constraints import Constraints
from worker.methods.suppression.descents import Descents
from worker.methods.suppression.gates import Gates
from worker.methods.suppression.multiplier import NOISE, Multiplier
from worker.methods.suppression.objective import BatchLosses, Evaluation, norms
from worker.methods.suppression.pixel_space import PixelSpace
from worker.methods.suppression.problem_batch import ProblemOptions, Problems, Rows
from worker.methods.suppression.rounding import network_input
from worker.methods.suppression.schedule import EFFORTS, Schedule, ScheduleTensors, ScheduleValues
from worker.methods.suppression.steps import Steps

REVIVAL = 3.0  # κ in the middle of the first descent
X_TOLERANCE = 1e-3 / 255  # normalised units; a change of every value of X̂ below it, and
Y_TOLERANCE = 1e-4  # a change of y with a norm below it, are convergence


@dataclass(frozen=True)
class FastState(Rows):
    """The iterate of each problem."""

    x: Tensor  # X̂, (B, 3, H, W)
    multiplier: Multiplier
    gates: Gates
    steps: Steps
    descents: Descents
    constraints: Constraints
    stationary: Tensor  # bool: neither X̂ nor y changed, (B,)


@dataclass(frozen=True)
class FastSolver:
    """The primal-dual solver, with the same parameters for every layer.

    Args:
        space: X̂ stays inside its displayable box.
        schedule: how long a problem is solved.
    """

    space: PixelSpace
    schedule: Schedule = EFFORTS["standard"]

    @classmethod
    def of(cls, space: PixelSpace, effort: str = "standard", iterations: int | None = None) -> Self:
        """The solver of an effort (`quick`, `standard`, `thorough`), or of one descent of `iterations` evaluations."""
        if iterations is not None:
            rounded_from = iterations - iterations // 4
            return cls(space, Schedule(budget=iterations, first=iterations, rounded_from=rounded_from))
        return cls(space, EFFORTS[effort])

    @property
    def budget(self) -> int:
        """The largest number of gradient evaluations."""
        return self.schedule.budget

    def start(self, problems: Problems) -> FastState:
        """X̂ = X, projected onto the box; y = 0 and u = 0."""
        return FastState(
            x=steps.boxed(problems, problems.image, self.space),
            multiplier=Multiplier.start(problems),
            gates=Gates.start(problems),
            steps=Steps.start(problems),
            descents=Descents.start(problems),
            constraints=Constraints.start(problems),
            stationary=torch.zeros_like(problems.kernel, dtype=torch.bool),
        )

    def step(
        self,
        network: nn.Module,
        problems: Problems,
        state: FastState,
        when: Sequence[tuple[Self, int]],
        precision: torch.dtype,
    ) -> tuple[BatchLosses, FastState]:
        """One gradient evaluation, one dual step and one primal step. Returns the losses before the step."""
        pairs = zip(when, problems.options, strict=True)
        values = [schedule_values(solver.schedule, age, options) for (solver, age), options in pairs]
        schedule = ScheduleTensors.of(values, problems.target_norm)
        rounded = tuple(one.rounded for one in schedule.host)
        seen, weighed = network_input(self.space, state.x, schedule.rounded, rounded)
        weighted = replace(problems, gamma=state.constraints.gamma) if problems.uses_invention else problems
        found = Evaluation.at(network, weighted, seen, precision, weighed)
        chosen, moved = found.chosen, state.steps.moved
        revived = self._revived(problems, chosen, schedule)
        residual = torch.where(revived, chosen, chosen.clamp_min(0)) - problems.target
        residual = residual / problems.target_norm[:, None, None]
        bound = state.constraints.preservation
        multiplier = state.multiplier.next(problems, residual, moved, schedule, bound, NOISE[precision])
        next_gates = state.gates.next(problems, found.before_relu, moved, schedule)
        gradient = found.gradient(multiplier.y * (revived | (chosen > 0)), next_gates.u)
        length = schedule.step * state.descents.height / (1 + found.now.preservation)
        x, next_steps = state.steps.next(problems, state.x, gradient, schedule, length, self.space)
        largest = (x - state.x).abs().amax(dim=(1, 2, 3))
        stationary = (largest < X_TOLERANCE) & (norms(multiplier.y - state.multiplier.y) < Y_TOLERANCE)
        descents = state.descents.next(found.now, schedule)
        constraints = state.constraints.next(problems, found.now, schedule)
        return found.now, FastState(x, multiplier, next_gates, next_steps, descents, constraints, stationary)

    @staticmethod
    def _revived(problems: Problems, chosen: Tensor, schedule: ScheduleTensors) -> Tensor:
        """Where r is of Ẑ_i instead of F̂_i, (B, h, w) bool: everywhere where maps have a sign."""
        if problems.signed:
            return torch.ones_like(chosen, dtype=torch.bool)
        return (problems.target > 0) & (chosen > -schedule.revival[:, None, None] * problems.target)

    def converged(self, state: FastState) -> Tensor:
        """(B,) bool: X̂ and y are stationary, or a whole descent lowered the loss by next to nothing."""
        return state.stationary | state.descents.settled

    def resets_best(self, age: int, options: ProblemOptions) -> bool:
        """Whether this is the first evaluation at the 8-bit picture: losses of earlier ones do not compare."""
        return schedule_values(self.schedule, age, options).resets_best

    def delivered(self, problems: Problems, x: Tensor, when: Sequence[tuple[Self, int]]) -> Tensor:
        """X̂ from the best iterate x: its 8-bit picture with the mean colour at 0, once evaluations are at that."""
        pairs = zip(when, problems.options, strict=True)
        rounded = tuple(
            schedule_values(solver.schedule, max(0, age - 1), options).rounded for (solver, age), options in pairs
        )
        return network_input(self.space, x, torch.tensor(rounded, device=x.device), rounded)[1]


@lru_cache(maxsize=4096)  # the problems of a batch mostly share their schedule and age
def schedule_values(schedule: Schedule, age: int, options: ProblemOptions) -> ScheduleValues:
    """The schedule's values for the evaluation at this age."""
    return ScheduleValues(
        begun=age > 0,
        has_cosine=age > 1,
        step=schedule.step(age, steps.LAST),
        revival=schedule.revival(age, REVIVAL),
        boost=schedule.boost(age, steps.BOOST_FRACTION),
        stiffness=gates.stiffness(schedule.fraction(age)),
        gamma_rate=schedule.gamma_rate(age),
        bias_correction=1 - steps.SQUARE_DECAY ** (age + 1),
        descent_ends=schedule.ends(age),
        later_descent_ends=schedule.ends(age) and age >= schedule.first,
        gain=schedule.gain,
        rounded=options.constrained or age >= schedule.rounded_from,
        resets_best=age == schedule.rounded_from and not options.constrained,
    )
