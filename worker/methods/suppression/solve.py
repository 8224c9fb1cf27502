"""Solve the problems of a batch at once, without an engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from torch import nn

from worker.methods.suppression.loop import Solution, Solver, SolverBatch, Stop
from worker.methods.suppression.problem_batch import Problems


def after(seconds: float, otherwise: Callable[[], Stop | None] = lambda: None) -> Callable[[], Stop | None]:
    """A `should_stop` that returns "deadline" once `seconds` have passed since this call."""
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
    """Solve all problems of a batch. The result of one does not depend on the others.

    Args:
        network: as of `SolverBatch`.
        problems: posed on that network, none silent and none lone.
        solver: of all problems.
        precision: of the evaluations.
        on_step: called with the number of evaluations after each of them.
        should_stop: called before each evaluation; a reason that it returns ends all problems.

    Returns:
        The solutions, in the order of the problems. One that was stopped before its first evaluation has X̂ = X.

    Raises:
        ArithmeticError: the loss of a problem is not finite.
    """
    batch: SolverBatch[Any] = SolverBatch(network, precision)
    place = {number: row for row, number in enumerate(batch.add(problems, solver) if len(problems) else [])}
    solutions: dict[int, Solution] = {}
    for evaluations in count(1):
        if not len(batch):
            break
        reason = should_stop()
        for number, solution in batch.stop(place, reason) if reason else batch.step():
            if solution is None:
                raise ArithmeticError(f"the loss of problem {place[number]} is not finite")
            solutions[place[number]] = solution
        if not reason:
            on_step(evaluations)
    return [solutions[row] for row in range(len(problems))]
