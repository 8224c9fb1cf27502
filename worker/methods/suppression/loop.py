"""Step after step, until each problem has converged, has used its budget, or is told to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import inf, nan
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from worker.methods.suppression.objective import Losses
from worker.methods.suppression.problems import Asks, Problems, Rows

Stop = Literal["converged", "budget", "deadline", "cancelled"]
StateT = TypeVar("StateT", bound=Rows)
Terms = tuple[float, float, float, float]  # L_p, L_s, L_r, L
HistoryRow = tuple[int, float, float, float, float]  # iteration, L_p, L_s, L_r, L
HISTORY_POINTS = 500

_numbers = count()


class Solver(Protocol[StateT]):
    """A method as pure functions of a state whose row b belongs to problem b.

    Solvers of one kind may have been told different things (their budget, the lengths of their descents): each problem
    has its own, and one of them makes the steps of all.
    """

    @property
    def budget(self) -> int:
        """The most evaluations that a problem may take."""
        ...

    def start(self, problems: Problems) -> StateT:
        """The state before the first evaluation: X̂ = X."""
        ...

    def step(
        self, network: nn.Module, problems: Problems, state: StateT, when: Sequence[Any], precision: torch.dtype, /
    ) -> tuple[Losses, StateT]:
        """One gradient evaluation at X̂: the losses there, and the next state.

        Args:
            when: of each problem, its solver and after how many evaluations this one is.
        """
        ...

    def forgets(self, age: int, asks: Asks, /) -> bool:
        """Whether the merit of earlier evaluations cannot be compared with that at `age`."""
        ...

    def handed_out(self, problems: Problems, x: Tensor, when: Sequence[Any], /) -> Tensor:
        """X̂ of the best iterate x; `when` is as of `step`, after how many evaluations it is handed out."""
        ...

    def converged(self, state: StateT, /) -> Tensor:
        """(B,) bool: more steps would not change X̂ visibly."""
        ...


@dataclass(frozen=True)
class Solution:
    """What became of one problem."""

    x: Tensor  # X̂, the best that was seen, (3, H, W)
    loss: float  # its merit, as it was evaluated; ∞ where there was no evaluation
    iterations: int
    seconds: float  # since it was added
    stopped: Stop
    precision: str  # of its evaluations
    history: list[HistoryRow]


@dataclass
class Course:
    """What the host knows of a problem that is being solved."""

    solver: Any
    iteration: int = 0
    age: int = 0  # evaluations so far, those after its end too, of which the host has not heard yet
    terms: Terms = (nan, nan, nan, nan)
    began: float = field(default_factory=time.perf_counter)
    history: list[HistoryRow] = field(default_factory=list)

    @property
    def budget(self) -> int:
        """The most evaluations that it may take."""
        return int(self.solver.budget)

    def note(self, row: list[float]) -> None:
        """One evaluation; a problem that had ended before it notes nothing."""
        if not row[0]:
            return
        self.iteration, self.terms = self.iteration + 1, (row[1], row[2], row[3], row[4])
        every = max(1, self.budget // HISTORY_POINTS)
        if (self.iteration - 1) % every == 0 or self.iteration == self.budget:
            self.history.append((self.iteration, row[1], row[2], row[3], row[4]))


@dataclass(frozen=True)
class _Standing(Rows):
    """Where each problem stands, whatever the solver."""

    done: Tensor  # bool: converged, (B,)
    lost: Tensor  # bool: its loss was not a number, (B,)
    best_x: Tensor  # (B, 3, H, W)
    best_merit: Tensor  # (B,)

    @classmethod
    def at_start(cls, problems: Problems) -> _Standing:
        never, worst = torch.zeros_like(problems.kernel, dtype=torch.bool), torch.full_like(problems.target_norm, inf)
        return cls(never, never, problems.image, worst)


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
        state, standing = solver.start(problems), _Standing.at_start(problems)
        if len(self):
            problems, state = self.problems.join(problems), self.state.join(state)
            standing = self.standing.join(standing)
        self.solver, self.problems, self.state, self.standing = solver, problems, state, standing
        numbers = [next(_numbers) for _ in range(len(problems) - len(self))]
        self.courses.update((number, Course(solver)) for number in numbers)
        return numbers

    def step(self, evaluations: int = 1) -> list[tuple[int, Solution | None]]:
        """So many evaluations of each problem, then one read-out, which is all that the host waits for.

        Returns:
            The problems that have ended. One has no solution if its loss is not a number.
        """
        tables = [self._evaluate() for _ in range(evaluations)]
        now = self.standing
        flags = torch.stack([now.done, now.lost, now.lost, now.lost, now.lost], dim=1).to(tables[0])
        *rows, last = torch.stack([*tables, flags]).tolist()
        for number, *row in zip(self.courses, *rows, strict=True):
            for evaluation in row:
                self.courses[number].note(evaluation)
        lost = [number for number, (_, gone, *_) in zip(self.courses, last, strict=True) if gone]
        ended: dict[int, Stop] = {
            number: "converged" if done else "budget"
            for (number, course), (done, gone, *_) in zip(self.courses.items(), last, strict=True)
            if (done or course.iteration >= course.budget) and not gone
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

    def _keep(self, rows: Sequence[int]) -> None:
        numbers = list(self.courses)
        index = torch.tensor(list(rows), dtype=torch.long, device=self.problems.kernel.device)
        kept = self.problems.select(index), self.state.select(index), self.standing.select(index)
        self.problems, self.state, self.standing = kept  # all or, where memory has run out, nothing
        self.courses = {numbers[row]: self.courses[numbers[row]] for row in rows}

    def _evaluate(self) -> Tensor:
        """One evaluation of each problem. Returns (B, 5): whether it counts, and the terms of the loss.

        Nothing here waits for the device. A problem that has ended is evaluated until the read-out, to no effect.
        """
        before, courses = self.standing, list(self.courses.values())
        shown: Tensor = self.state.x  # type: ignore[attr-defined]
        when = [(course.solver, course.age) for course in courses]
        now, state = self.solver.step(self.network, self.problems, self.state, when, self.precision)
        open_ = ~before.done
        if not all(course.age < course.budget for course in courses):
            open_ = open_ & torch.tensor([course.age < course.budget for course in courses]).to(open_.device)
        better = (now.merit < before.best_merit) & open_  # false for NaN
        forgets = [
            course.solver.forgets(course.age, asks) for course, asks in zip(courses, self.problems.asks, strict=True)
        ]
        if any(forgets):
            better |= torch.tensor(forgets).to(open_.device) & now.merit.isfinite() & open_
        self.standing = _Standing(
            done=before.done | (self.solver.converged(state) & open_),
            lost=before.lost | (~now.total.isfinite() & open_),
            best_x=torch.where(better[:, None, None, None], shown, before.best_x),
            best_merit=torch.where(better, now.merit, before.best_merit),
        )
        self.state = state
        for course in courses:
            course.age += 1
        terms = (now.preservation, now.suppression, now.regularization, now.total)
        return torch.stack([open_.to(now.total), *terms], dim=1)

    def _retire(self, reasons: dict[int, Stop]) -> list[tuple[int, Solution]]:
        rows = [row for row, number in enumerate(self.courses) if number in reasons]
        if not rows:
            return []
        index = torch.tensor(rows, device=self.problems.kernel.device)
        problems, standing = self.problems.select(index), self.standing.select(index)
        numbers, now = list(self.courses), time.perf_counter()
        courses = [self.courses[numbers[row]] for row in rows]
        when = [(course.solver, course.iteration) for course in courses]
        x = self.solver.handed_out(problems, standing.best_x, when)
        solutions = []
        for row, course, image, merit in zip(rows, courses, x, standing.best_merit.tolist(), strict=True):
            solution = Solution(
                x=image.clone(),
                loss=merit,
                iterations=course.iteration,
                seconds=now - course.began,
                stopped=reasons[numbers[row]],
                precision=str(self.precision).removeprefix("torch."),
                history=course.history,
            )
            solutions.append((numbers[row], solution))
        self.drop([number for number, _ in solutions])
        return solutions


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

    Raises:
        ArithmeticError: the loss of a problem is not a number.
    """
    batch: Batch[Any] = Batch(network, precision)
    place = {number: row for row, number in enumerate(batch.add(problems, solver) if len(problems) else [])}
    solutions: dict[int, Solution] = {}
    for evaluations in count(1):
        if not len(batch):
            break
        reason = should_stop()
        for number, solution in batch.stop(place, reason) if reason else batch.step():
            if solution is None:
                raise ArithmeticError(f"the loss of problem {place[number]} is not a number")
            solutions[place[number]] = solution
        if not reason:
            on_step(evaluations)
    return [solutions[row] for row in range(len(problems))]
