"""Step after step, until each problem has converged, has used its budget, or is told to stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import nan
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from worker.suppression.objective import Losses, losses
from worker.suppression.problems import Problems, Rows

log = logging.getLogger(__name__)

Stop = Literal["converged", "budget", "deadline", "cancelled"]
StateT = TypeVar("StateT", bound=Rows)
Terms = tuple[float, float, float, float]  # L_p, L_s, L_r, L
HistoryRow = tuple[int, float, float, float, float]  # iteration, L_p, L_s, L_r, L
HISTORY_POINTS = 500

_numbers = count()


class Solver(Protocol[StateT]):
    """A method as pure functions of a state whose row b belongs to problem b.

    What a solver was told (its budget, the lengths of its descents) goes into the state at the start, so that problems
    of solvers that were told different things can be stepped together.
    """

    @property
    def budget(self) -> int:
        """The most evaluations that a problem may take."""
        ...

    def start(self, problems: Problems) -> StateT:
        """The state before the first evaluation: X̂ = X."""
        ...

    def step(
        self, network: nn.Module, problems: Problems, state: StateT, age: Tensor, precision: torch.dtype, /
    ) -> tuple[Losses, StateT]:
        """One gradient evaluation at X̂, after `age` (B,) earlier ones: the losses there, and the next state."""
        ...

    def forgets(self, problems: Problems, state: StateT, age: Tensor, /) -> Tensor:
        """(B,) bool: the merit of earlier evaluations cannot be compared with that at `age`."""
        ...

    def handed_out(self, problems: Problems, state: StateT, x: Tensor, age: Tensor, /) -> Tensor:
        """X̂ of the best iterate x after `age` evaluations."""
        ...

    def converged(self, state: StateT, /) -> Tensor:
        """(B,) bool: more steps would not change X̂ visibly."""
        ...


@dataclass(frozen=True)
class Solution:
    """What became of one problem."""

    x: Tensor  # X̂, the best that was seen, (3, H, W)
    loss: float  # its total loss, in the dtype of X and never above X's own
    iterations: int
    seconds: float  # since it was added
    stopped: Stop
    precision: str  # of its evaluations
    history: list[HistoryRow]


@dataclass
class Course:
    """What the host knows of a problem that is being solved."""

    budget: int
    iteration: int = 0
    terms: Terms = (nan, nan, nan, nan)
    began: float = field(default_factory=time.perf_counter)
    history: list[HistoryRow] = field(default_factory=list)

    def note(self, row: list[float]) -> None:
        """One evaluation; a problem that had ended before it notes nothing."""
        if row[0] <= self.iteration:
            return
        self.iteration, self.terms = int(row[0]), (row[1], row[2], row[3], row[4])
        every = max(1, self.budget // HISTORY_POINTS)
        if (self.iteration - 1) % every == 0 or self.iteration == self.budget:
            self.history.append((self.iteration, row[1], row[2], row[3], row[4]))


@dataclass(frozen=True)
class _Standing(Rows):
    """Where each problem stands, whatever the solver."""

    age: Tensor  # evaluations so far, (B,)
    budget: Tensor  # (B,)
    done: Tensor  # bool: converged, (B,)
    lost: Tensor  # bool: its loss was not a number, (B,)
    best_x: Tensor  # (B, 3, H, W)
    best_merit: Tensor  # (B,)

    @classmethod
    def at_start(cls, problems: Problems, budget: int) -> _Standing:
        age, never = torch.zeros_like(problems.kernel), torch.zeros_like(problems.kernel, dtype=torch.bool)
        worst = torch.full_like(problems.target_norm, torch.inf)
        return cls(age, torch.full_like(age, budget), never, never, problems.image, worst)


class Batch(Generic[StateT]):
    """Problems on one network that are solved together. They come and go, and none sees the others.

    Args:
        network: up to the layer but for its ReLU, frozen: (B, 3, H, W) → Z (B, C, h, w), with F = max(Z, 0);
            `Watched` where a problem asks for L_e.
        precision: of the evaluations.
    """

    def __init__(self, network: nn.Module, precision: torch.dtype = torch.float32) -> None:
        self.network = network
        self.precision = precision
        self.courses: dict[int, Course] = {}  # by the problem's number, in the order of the rows
        self.solver: Solver[StateT]
        self.problems: Problems
        self.state: StateT
        self.standing: _Standing

    def __len__(self) -> int:
        """How many problems are being solved."""
        return len(self.courses)

    def add(self, problems: Problems, solver: Solver[StateT]) -> list[int]:
        """Begin to solve these too, by a solver of the same kind; none silent, none lone. Returns their numbers."""
        state, standing = solver.start(problems), _Standing.at_start(problems, solver.budget)
        if len(self):
            problems, state = self.problems.join(problems), self.state.join(state)
            standing = self.standing.join(standing)
        self.solver, self.problems, self.state, self.standing = solver, problems, state, standing
        numbers = [next(_numbers) for _ in range(len(problems) - len(self))]
        self.courses.update((number, Course(solver.budget)) for number in numbers)
        return numbers

    def step(self, evaluations: int = 1) -> list[tuple[int, Solution | None]]:
        """So many evaluations of each problem, then one read-out, which is all that the host waits for.

        Returns:
            The problems that have ended. One has no solution if its loss in bfloat16 was not a number: pose it again
            in float32.
        """
        tables = [self._evaluate() for _ in range(evaluations)]
        now = self.standing
        spent = now.age >= now.budget
        flags = torch.stack([now.done, now.lost, spent, spent, spent], dim=1).to(tables[0])
        *rows, last = torch.stack([*tables, flags]).tolist()
        for number, *row in zip(self.courses, *rows, strict=True):
            for evaluation in row:
                self.courses[number].note(evaluation)
        lost = [number for number, (_, gone, *_) in zip(self.courses, last, strict=True) if gone]
        ended: dict[int, Stop] = {
            number: "converged" if done else "budget"
            for number, (done, gone, over, *_) in zip(self.courses, last, strict=True)
            if (done or over) and not gone
        }
        solutions = self._retire(ended)
        self.drop(lost)
        return [*solutions, *((number, None) for number in lost)]

    def stop(self, numbers: Collection[int], reason: Stop) -> list[tuple[int, Solution]]:
        """End these problems now: the best X̂ so far; X itself where there was no evaluation yet."""
        return self._retire(dict.fromkeys(numbers, reason))

    def iterates(self, numbers: Collection[int]) -> Tensor:
        """X̂ as it is now of these problems, (b, 3, H, W), in the order of the courses."""
        rows = [row for row, number in enumerate(self.courses) if number in numbers]
        x: Tensor = self.state.x  # type: ignore[attr-defined]
        return x[torch.tensor(rows, dtype=torch.long, device=x.device)]

    def drop(self, numbers: Collection[int]) -> None:
        """Forget these problems."""
        if numbers:
            self._keep([row for row, number in enumerate(self.courses) if number not in numbers])

    def _selected(self, rows: Tensor) -> tuple[Problems, StateT, _Standing]:
        return self.problems.select(rows), self.state.select(rows), self.standing.select(rows)

    def _keep(self, rows: Sequence[int]) -> None:
        numbers = list(self.courses)
        self.courses = {numbers[row]: self.courses[numbers[row]] for row in rows}
        index = torch.tensor(list(rows), dtype=torch.long, device=self.problems.kernel.device)
        self.problems, self.state, self.standing = self._selected(index)

    def _evaluate(self) -> Tensor:
        """One evaluation of each problem. Returns (B, 5): evaluations so far and the terms of the loss.

        Nothing here waits for the device. A problem that has ended is evaluated until the read-out, to no effect.
        """
        before, problems, age = self.standing, self.problems, self.standing.age
        shown: Tensor = self.state.x  # type: ignore[attr-defined]
        now, state = self.solver.step(self.network, problems, self.state, age, self.precision)
        open_ = ~before.done & (age < before.budget)
        forgets = self.solver.forgets(problems, self.state, age) & now.merit.isfinite()
        better = ((now.merit < before.best_merit) | forgets) & open_  # false for NaN
        overflows = ~now.total.isfinite() if self.precision is torch.bfloat16 else torch.zeros_like(open_)
        self.standing = _Standing(
            age=age + open_,
            budget=before.budget,
            done=before.done | (self.solver.converged(state) & open_),
            lost=before.lost | (overflows & open_),
            best_x=torch.where(better[:, None, None, None], shown, before.best_x),
            best_merit=torch.where(better, now.merit, before.best_merit),
        )
        self.state = state
        terms = (now.preservation, now.suppression, now.regularization, now.total)
        return torch.stack([self.standing.age.to(now.total), *terms], dim=1)

    def _retire(self, reasons: dict[int, Stop]) -> list[tuple[int, Solution]]:
        rows = [row for row, number in enumerate(self.courses) if number in reasons]
        if not rows:
            return []
        x, loss = self._in_full_precision(torch.tensor(rows, device=self.problems.kernel.device))
        numbers, now = list(self.courses), time.perf_counter()
        solutions = []
        for row, image, total in zip(rows, x, loss.tolist(), strict=True):
            course = self.courses[numbers[row]]
            solution = Solution(
                x=image.clone(),
                loss=total,
                iterations=course.iteration,
                seconds=now - course.began,
                stopped=reasons[numbers[row]],
                precision=str(self.precision).removeprefix("torch."),
                history=course.history,
            )
            solutions.append((numbers[row], solution))
        self.drop([number for number, _ in solutions])
        return solutions

    @torch.no_grad()
    def _in_full_precision(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The best X̂ (b, 3, H, W) and its loss (b,) in the dtype of X: X itself where the best was so by rounding."""
        problems, state, standing = self._selected(rows)
        x = self.solver.handed_out(problems, state, standing.best_x, standing.age)
        seen = losses(problems, self.network(x).clamp_min(0), x)
        start = problems.alpha + problems.beta * problems.image.abs().mean(dim=(1, 2, 3))  # L_p = 0, L_s = 1
        worse = (seen.total > start) & ~problems.bounded
        return torch.where(worse[:, None, None, None], problems.image, x), torch.where(worse, start, seen.total)


def after(seconds: float, otherwise: Callable[[], Stop | None] = lambda: None) -> Callable[[], Stop | None]:
    """A `should_stop` with a time limit: "deadline" once `seconds` have passed since this call."""
    end = time.perf_counter() + seconds
    return lambda: otherwise() or ("deadline" if time.perf_counter() >= end else None)


def solve(
    network: nn.Module,
    problems: Problems,
    solver: Solver[Any],
    *,
    precision: torch.dtype = torch.float32,
    on_step: Callable[[int], None] = lambda _: None,
    should_stop: Callable[[], Stop | None] = lambda: None,
) -> list[Solution]:
    """Solve every problem of a batch; the result of one does not depend on the others.

    Args:
        network: as of `Batch`.
        problems: posed on that network; none silent, none lone.
        on_step: called with the number of evaluations after each of them.
        should_stop: asked before each evaluation; what it returns becomes every unfinished solution's `stopped`.

    Returns:
        The solutions, in the order of the problems. A problem that was stopped before its first evaluation has X̂ = X.
        One whose loss in bfloat16 is not a number is solved again in float32, and its `precision` says so.
    """
    batch: Batch[Any] = Batch(network, precision)
    place = {number: row for row, number in enumerate(batch.add(problems, solver) if len(problems) else [])}
    solutions: dict[int, Solution] = {}
    overflowed: list[int] = []
    for evaluations in count(1):
        if not len(batch):
            break
        reason = should_stop()
        for number, solution in batch.stop(place, reason) if reason else batch.step():
            if solution is None:
                overflowed.append(place[number])
            else:
                solutions[place[number]] = solution
        if not reason:
            on_step(evaluations)
    if overflowed:
        log.warning("%d of %d problems overflow in bfloat16: solved in float32", len(overflowed), len(problems))
        rows = torch.tensor(overflowed, device=problems.kernel.device)
        again = solve(network, problems.select(rows), solver, on_step=on_step, should_stop=should_stop)
        solutions.update(zip(overflowed, again, strict=True))
    return [solutions[row] for row in range(len(problems))]
