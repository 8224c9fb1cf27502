"""The default solver: a preconditioned primal-dual method on the same loss, inside the displayable box.

‖r‖ is the maximum of ⟨y, r⟩ over ‖y‖ ≤ 1, and F̂_j = max(Ẑ_j, 0) that of u·Ẑ_j over 0 ≤ u ≤ 1. So L_p and L_s are
replaced by their multipliers y and u (Chambolle & Pock 2011), with Ẑ the layer before its ReLU:

    y ← project( y + σ_y·(2·r_t − r_{t−1}) )                      onto the unit ball                   multiplier.py
    u ← clip( u + σ_u·(2·Ẑ_t − Ẑ_{t−1}), 0, 1 )                                                        gates.py
    m ← b·m + (1 − b)·g,   v ← 0.7·v + 0.3·g²                      with g = ∇( ⟨y, r⟩ + α·Σ_{j≠i} ⟨u_j, Ẑ_j⟩ / Σ‖F_j‖₁ )
    x ← clip( shrink( x − τ·m, τ·β/N ) )                          N = 3·H·W                            steps.py

At the start r = 0 and y = 0, so nothing but what the others and L_r ask for moves the picture, and y grows where
F̂_i begins to go: the picture stays in the basin in which F_i is kept. A subgradient of ‖r‖ would jump there.

r = (Ẑ_i − F_i) / ‖F_i‖ where F_i > 0 and Ẑ_i > −κ_t·F_i, and (F̂_i − F_i) / ‖F_i‖ elsewhere: a position of the map that
has died is pulled back, which the formula's own gradient cannot do, unless it is far gone. κ_t falls to 0, so that in
the end the loss is the formula's own.

Where a layer's maps have a sign (F = Z), −1 ≤ u ≤ 1 and r = (F̂_i − F_i) / ‖F_i‖ everywhere.

Step lengths, κ and ω follow schedule.py, descent after descent (descents.py); what the network is shown is in
rounding.py, bounds that are to be kept in bounds.py. Where γ·L_e is in the loss (taps.py) its subgradient is part of g.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self

import torch
from torch import Tensor, nn

from worker.methods.suppression import gates, steps
from worker.methods.suppression.bounds import Limits
from worker.methods.suppression.descents import Descents
from worker.methods.suppression.gates import Gates
from worker.methods.suppression.multiplier import NOISE, Multiplier
from worker.methods.suppression.objective import Evaluation, Losses, norms
from worker.methods.suppression.problems import Asks, PixelSpace, Problems, Rows
from worker.methods.suppression.rounding import shown
from worker.methods.suppression.schedule import EFFORTS, Moment, Numbers, Schedule
from worker.methods.suppression.steps import Steps

HOPE = 3.0  # κ half-way
STILL = 1e-3 / 255  # of x: a thousandth of an 8-bit level
TURNED = 1e-4  # of y


@dataclass(frozen=True)
class FastState(Rows):
    """Where each problem stands."""

    x: Tensor  # X̂, (B, 3, H, W)
    multiplier: Multiplier
    gates: Gates
    steps: Steps
    descents: Descents
    limits: Limits
    still: Tensor  # bool: neither X̂ nor y moved, (B,)


@dataclass(frozen=True)
class FastSolver:
    """One default for every layer; nothing is tuned by hand.

    Args:
        space: X̂ stays inside its displayable box.
        schedule: how long it tries.
    """

    space: PixelSpace
    schedule: Schedule = EFFORTS["standard"]

    @classmethod
    def of(cls, space: PixelSpace, effort: str = "standard", iterations: int | None = None) -> Self:
        """By how long it is to try (`quick`, `standard`, `thorough`), or one descent of `iterations` evaluations."""
        if iterations is not None:
            faithful = iterations - iterations // 4
            return cls(space, Schedule(budget=iterations, first=iterations, faithful=faithful))
        return cls(space, EFFORTS[effort])

    @property
    def budget(self) -> int:
        """The most gradient evaluations."""
        return self.schedule.budget

    def start(self, problems: Problems) -> FastState:
        """X̂ = X inside the box, multipliers 0."""
        return FastState(
            x=steps.boxed(problems, problems.image, self.space),
            multiplier=Multiplier.start(problems),
            gates=Gates.start(problems),
            steps=Steps.start(problems),
            descents=Descents.start(problems),
            limits=Limits.start(problems),
            still=torch.zeros_like(problems.kernel, dtype=torch.bool),
        )

    def step(
        self,
        network: nn.Module,
        problems: Problems,
        state: FastState,
        when: Sequence[tuple[Self, int]],
        precision: torch.dtype,
    ) -> tuple[Losses, FastState]:
        """One evaluation, one dual and one primal step. Returns the losses at the old X̂."""
        asks = zip(when, problems.asks, strict=True)
        moment = Moment.of([numbers(solver.schedule, age, own) for (solver, age), own in asks], problems.target_norm)
        rounded = tuple(one.rounded for one in moment.host)
        seen, weighed = shown(self.space, state.x, moment.rounded, rounded)
        priced = replace(problems, gamma=state.limits.price) if problems.watched else problems
        found = Evaluation.at(network, priced, seen, precision, weighed)
        chosen, moved = found.chosen, state.steps.moved
        hoped = self._hoped(problems, chosen, moment)
        residual = torch.where(hoped, chosen, chosen.clamp_min(0)) - problems.target
        residual = residual / problems.target_norm[:, None, None]
        limit = state.limits.preservation
        multiplier = state.multiplier.next(problems, residual, moved, moment, limit, NOISE[precision])
        opened = state.gates.next(problems, found.before_relu, moved, moment)
        slope = found.slope(multiplier.y * (hoped | (chosen > 0)), opened.u)
        length = moment.step * state.descents.height / (1 + found.now.preservation)
        x, walked = state.steps.next(problems, state.x, slope, moment, length, self.space)
        largest = (x - state.x).abs().amax(dim=(1, 2, 3))
        still = (largest < STILL) & (norms(multiplier.y - state.multiplier.y) < TURNED)
        descents = state.descents.next(found.now, moment)
        return found.now, FastState(
            x, multiplier, opened, walked, descents, state.limits.next(problems, found.now, moment), still
        )

    @staticmethod
    def _hoped(problems: Problems, chosen: Tensor, moment: Moment) -> Tensor:
        """Where r is of Ẑ_i instead of F̂_i, (B, h, w) bool: everywhere where maps have a sign."""
        if problems.signed:
            return torch.ones_like(chosen, dtype=torch.bool)
        return (problems.target > 0) & (chosen > -moment.hope[:, None, None] * problems.target)

    def converged(self, state: FastState) -> Tensor:
        """(B,) bool: X̂ and what pulls at it stand still, or a whole descent gained next to nothing."""
        return state.still | state.descents.settled

    def forgets(self, age: int, asks: Asks) -> bool:
        """The first evaluation of the 8-bit picture, whose losses earlier ones cannot be compared with."""
        return numbers(self.schedule, age, asks).forgets

    def handed_out(self, problems: Problems, x: Tensor, when: Sequence[tuple[Self, int]]) -> Tensor:
        """X̂ of the best iterate: its 8-bit picture, with the mean colour at 0, once that is what is evaluated."""
        asks = zip(when, problems.asks, strict=True)
        rounded = tuple(numbers(solver.schedule, max(0, age - 1), own).rounded for (solver, age), own in asks)
        return shown(self.space, x, torch.tensor(rounded, device=x.device), rounded)[1]


@lru_cache(maxsize=4096)  # the problems of a batch are mostly of one schedule and age
def numbers(plan: Schedule, age: int, asks: Asks) -> Numbers:
    """What the schedule says of the evaluation after `age` others."""
    return Numbers(
        begun=age > 0,
        swinging=age > 1,
        step=plan.step(age, steps.LAST),
        hope=plan.hope(age, HOPE),
        louder=plan.louder(age, steps.LASTING),
        stiffness=gates.stiffness(plan.share(age)),
        pricing=plan.pricing(age),
        unbiased=1 - steps.SQUARE_MEMORY ** (age + 1),
        ends=plan.ends(age),
        last=plan.ends(age) and age >= plan.first,
        gain=plan.gain,
        rounded=asks.constrained or age >= plan.faithful,
        forgets=age == plan.faithful and not asks.constrained,
    )
