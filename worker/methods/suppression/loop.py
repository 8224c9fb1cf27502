"""The iteration: each problem of a batch is stepped until it converges, has used its budget or is stopped."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import inf, nan
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from worker.methods.suppression.objective import BatchLosses
from worker.methods.suppression.problem_batch import ProblemOptions, Problems, Rows

Stop = Literal["converged", "budget", "deadline", "cancelled"]
StateT = TypeVar("StateT", bound=Rows)
Terms = tuple[float, float, float, float]  # L_p, L_s, L_r, L
HistoryRow = tuple[int, float, float, float, float]  # iteration, L_p, L_s, L_r, L
HISTORY_POINTS = 500

_numbers = count()


class Solver(Protocol[StateT]):
    """A solver as pure functions of a state whose row b belongs to problem b.

    The problems of a batch may have solvers of one kind with different parameters (budget, schedule). One of these
    solvers steps the whole batch, and reads each problem's parameters from `when`.
    """

    @property
    def budget(self) -> int:
        """The largest number of evaluations of a problem."""
        ...

    def start(self, problems: Problems) -> StateT:
        """The state before the first evaluation, with X̂ = X."""
        ...

    def step(
        self, network: nn.Module, problems: Problems, state: StateT, when: Sequence[Any], precision: torch.dtype, /
    ) -> tuple[BatchLosses, StateT]:
        """One gradient evaluation and one step. Returns the losses before the step, and the next state.

        Args:
            network: as of `SolverBatch`.
            problems: in the order of the state's rows.
            state: as `start` or `step` returned it.
            when: each problem's solver, and the number of evaluations before this one.
            precision: of the evaluation.
        """
        ...

    def resets_best(self, age: int, options: ProblemOptions, /) -> bool:
        """Whether the merit of earlier evaluations does not compare with that of the evaluation after `age` others."""
        ...

    def delivered(self, problems: Problems, x: Tensor, when: Sequence[Any], /) -> Tensor:
        """X̂ from the best iterate x, (B, 3, H, W). `when` is as of `step`, with the number of all evaluations."""
        ...

    def converged(self, state: StateT, /) -> Tensor:
        """(B,) bool: further steps would not change X̂ visibly."""
        ...


@dataclass(frozen=True)
class Solution:
    """The result of one problem."""

    x: Tensor  # X̂, from the best iterate, (3, H, W)
    loss: float  # its merit as evaluated; ∞ without an evaluation
    iterations: int  # gradient evaluations
    seconds: float  # since the problem joined the batch
    stopped: Stop
    precision: str  # of its evaluations
    history: list[HistoryRow]


@dataclass
class Progress:
    """A problem's progress on the host."""

    solver: Any
    iteration: int = 0  # evaluations that the host has read
    age: int = 0  # evaluations that were started, including those after the problem's end
    terms: Terms = (nan, nan, nan, nan)
    started: float = field(default_factory=time.perf_counter)
    history: list[HistoryRow] = field(default_factory=list)

    @property
    def budget(self) -> int:
        """The largest number of evaluations."""
        return int(self.solver.budget)

    def record(self, row: list[float]) -> None:
        """Record an evaluation, a row of `SolverBatch._evaluate`, unless the problem had ended before it."""
        if not row[0]:
            return
        self.iteration, self.terms = self.iteration + 1, (row[1], row[2], row[3], row[4])
        every = max(1, self.budget // HISTORY_POINTS)
        if (self.iteration - 1) % every == 0 or self.iteration == self.budget:
            self.history.append((self.iteration, row[1], row[2], row[3], row[4]))


@dataclass(frozen=True)
class _Best(Rows):
    """The best iterate of each problem and whether it has ended, for any solver."""

    done: Tensor  # bool: converged, (B,)
    not_finite: Tensor  # bool: a loss was NaN or infinite, (B,)
    best_x: Tensor  # (B, 3, H, W)
    best_merit: Tensor  # (B,)

    @classmethod
    def start(cls, problems: Problems) -> _Best:
        never, worst = torch.zeros_like(problems.kernel, dtype=torch.bool), torch.full_like(problems.target_norm, inf)
        return cls(never, never, problems.image, worst)


class SolverBatch(Generic[StateT]):
    """Problems on one network that are solved together. They join and leave at any step, and do not affect each other.

    Args:
        network: up to the layer without its ReLU, frozen: (B, 3, H, W) → Z (B, C, h, w), where F = max(Z, 0); a
            `TappedNetwork` if a problem uses L_e.
        precision: of the evaluations.
    """

    def __init__(self, network: nn.Module, precision: torch.dtype = torch.float32) -> None:
        self.network = network
        self.precision = precision
        self.progress: dict[int, Progress] = {}  # by the problem's number, in the order of the rows
        self.solver: Solver[StateT]
        self.problems: Problems
        self.state: StateT
        self.best: _Best

    def __len__(self) -> int:
        """The number of problems."""
        return len(self.progress)

    def add(self, problems: Problems, solver: Solver[StateT]) -> list[int]:
        """Add problems, none silent and none lone, with a solver of the batch's kind. Returns their numbers."""
        state, best = solver.start(problems), _Best.start(problems)
        if len(self):
            problems, state = self.problems.join(problems), self.state.join(state)
            best = self.best.join(best)
        self.solver, self.problems, self.state, self.best = solver, problems, state, best
        numbers = [next(_numbers) for _ in range(len(problems) - len(self))]
        self.progress.update((number, Progress(solver)) for number in numbers)
        return numbers

    def step(self, evaluations: int = 1) -> list[tuple[int, Solution | None]]:
        """Evaluate each problem this many times, then read the results from the device once.

        Returns:
            The problems that have ended, by number. One whose loss is not finite has no solution.
        """
        tables = [self._evaluate() for _ in range(evaluations)]
        failed = self.best.not_finite
        flags = torch.stack([self.best.done, failed, failed, failed, failed], dim=1).to(tables[0])
        *rows, last = torch.stack([*tables, flags]).tolist()
        for number, *row in zip(self.progress, *rows, strict=True):
            for evaluation in row:
                self.progress[number].record(evaluation)
        not_finite = [number for number, (_, failed, *_) in zip(self.progress, last, strict=True) if failed]
        ended: dict[int, Stop] = {
            number: "converged" if done else "budget"
            for (number, progress), (done, failed, *_) in zip(self.progress.items(), last, strict=True)
            if (done or progress.iteration >= progress.budget) and not failed
        }
        solutions = self._end(ended)
        self.drop(not_finite)
        return [*solutions, *((number, None) for number in not_finite)]

    def stop(self, numbers: Collection[int], reason: Stop) -> list[tuple[int, Solution]]:
        """End these problems now, with the best X̂ so far; X itself without an evaluation."""
        return self._end(dict.fromkeys(numbers, reason))

    def iterates(self, numbers: Collection[int]) -> Tensor:
        """The present X̂ of these problems, (b, 3, H, W), in the order of `progress`."""
        rows = [row for row, number in enumerate(self.progress) if number in numbers]
        x: Tensor = self.state.x  # type: ignore[attr-defined]
        return x[torch.tensor(rows, dtype=torch.long, device=x.device)]

    def drop(self, numbers: Collection[int]) -> None:
        """Remove these problems."""
        if numbers:
            self._keep([row for row, number in enumerate(self.progress) if number not in numbers])

    def _keep(self, rows: Sequence[int]) -> None:
        numbers = list(self.progress)
        index = torch.tensor(list(rows), dtype=torch.long, device=self.problems.kernel.device)
        kept = self.problems.select(index), self.state.select(index), self.best.select(index)
        self.problems, self.state, self.best = kept  # assigned together: if memory runs out above, nothing changes
        self.progress = {numbers[row]: self.progress[numbers[row]] for row in rows}

    def _evaluate(self) -> Tensor:
        """One evaluation of each problem. Returns (B, 5): whether the problem was open, L_p, L_s, L_r and L.

        Nothing here waits for the device. A problem that has ended is still evaluated until the host reads the results,
        without effect.
        """
        before, all_progress = self.best, list(self.progress.values())
        evaluated: Tensor = self.state.x  # type: ignore[attr-defined]
        when = [(progress.solver, progress.age) for progress in all_progress]
        now, state = self.solver.step(self.network, self.problems, self.state, when, self.precision)
        open_ = ~before.done
        within_budget = [progress.age < progress.budget for progress in all_progress]
        if not all(within_budget):
            open_ = open_ & torch.tensor(within_budget).to(open_.device)
        better = (now.merit < before.best_merit) & open_  # false for NaN
        resets = [
            solver.resets_best(age, options) for (solver, age), options in zip(when, self.problems.options, strict=True)
        ]
        if any(resets):
            better |= torch.tensor(resets).to(open_.device) & now.merit.isfinite() & open_
        self.best = _Best(
            done=before.done | (self.solver.converged(state) & open_),
            not_finite=before.not_finite | (~now.total.isfinite() & open_),
            best_x=torch.where(better[:, None, None, None], evaluated, before.best_x),
            best_merit=torch.where(better, now.merit, before.best_merit),
        )
        self.state = state
        for progress in all_progress:
            progress.age += 1
        terms = (now.preservation, now.suppression, now.regularization, now.total)
        return torch.stack([open_.to(now.total), *terms], dim=1)

    def _end(self, reasons: dict[int, Stop]) -> list[tuple[int, Solution]]:
        rows = [row for row, number in enumerate(self.progress) if number in reasons]
        if not rows:
            return []
        index = torch.tensor(rows, device=self.problems.kernel.device)
        problems, best = self.problems.select(index), self.best.select(index)
        numbers, now = list(self.progress), time.perf_counter()
        ending = [self.progress[numbers[row]] for row in rows]
        when = [(progress.solver, progress.iteration) for progress in ending]
        x = self.solver.delivered(problems, best.best_x, when)
        solutions = []
        for row, progress, image, merit in zip(rows, ending, x, best.best_merit.tolist(), strict=True):
            solution = Solution(
                x=image.clone(),
                loss=merit,
                iterations=progress.iteration,
                seconds=now - progress.started,
                stopped=reasons[numbers[row]],
                precision=str(self.precision).removeprefix("torch."),
                history=progress.history,
            )
            solutions.append((numbers[row], solution))
        self.drop([number for number, _ in solutions])
        return solutions
