"""When a solver stops, and what it reports on the way."""

from __future__ import annotations

from typing import Any

import torch

from tests.unit import tiny
from tests.unit.tiny import FAST, SOLVERS, shortened
from worker.methods.suppression import EFFORTS, FastSolver, ReferenceSolver, Schedule, after, solve


@SOLVERS
def test_progress_and_stopping(solver: Any) -> None:
    """It reports each evaluation, and stops on request with the best X̂ so far."""
    net = tiny.network()
    seen: list[int] = []
    solutions = solve(
        net,
        tiny.problems(net, 2),
        solver,
        precision=torch.float64,
        on_step=seen.append,
        should_stop=lambda: "cancelled" if len(seen) == 7 else None,
    )
    assert seen == list(range(1, 8))
    assert [solution.stopped for solution in solutions] == ["cancelled", "cancelled"]
    assert [solution.iterations for solution in solutions] == [7, 7]
    assert solutions[0].loss == min(row[-1] for row in solutions[0].history)


def test_a_time_limit() -> None:
    """The best X̂ so far, with the reason in `stopped`; another reason has priority."""
    net = tiny.network()
    endless = FastSolver(tiny.space(), Schedule(budget=10**6, again=10**6, first=10**6))
    (solution,) = solve(net, tiny.problems(net, 1), endless, precision=torch.float64, should_stop=after(0.3))
    assert solution.stopped == "deadline"
    assert solution.iterations > 1
    assert solution.loss < solution.history[0][-1]
    assert after(0, lambda: "cancelled")() == "cancelled"


def test_efforts_and_iterations() -> None:
    """`quick` is 100 evaluations, `thorough` may take more than `standard`; N evaluations are one descent of N."""
    space = tiny.space()
    quick, standard, thorough = (FastSolver.of(space, effort) for effort in EFFORTS)
    assert quick.budget == quick.schedule.first == 100
    assert standard == FastSolver(space)
    assert thorough.budget > standard.budget
    net = tiny.network()
    for count in (1, 37):
        solver = FastSolver.of(tiny.space(), iterations=count)
        (solution,) = solve(net, tiny.problems(net, 1), solver, precision=torch.float64)
        assert (solution.iterations, solution.stopped) == (count, "budget")


def test_descents_end_when_one_gains_next_to_nothing() -> None:
    """The reason is `converged`, at the end of a descent, and longer efforts do not end higher."""
    net = tiny.network(1)
    problems = tiny.problems(net, 4, 1)
    solver = FastSolver(tiny.space(), Schedule(first=60, again=40))
    short = solve(net, problems, shortened(solver, 60), precision=torch.float64)
    for once, solution in zip(short, solve(net, problems, solver, precision=torch.float64), strict=True):
        assert solution.loss <= once.loss
        assert solution.stopped == "converged"
        assert solution.iterations < 1000


def test_stopped_before_the_first_evaluation() -> None:
    """X̂ = X, and its own loss."""
    net = tiny.network()
    (solution,) = solve(net, tiny.problems(net, 1), FAST, should_stop=lambda: "deadline")
    assert solution.iterations == 0
    assert solution.stopped == "deadline"
    assert solution.history == []


def test_history_is_bounded_and_keeps_the_end() -> None:
    """A run of 10,000 evaluations does not make a file of 10,000 lines."""
    net = tiny.network()
    (solution,) = solve(net, tiny.problems(net, 1), ReferenceSolver(rate=0.3, budget=1500), precision=torch.float64)
    assert len(solution.history) <= 502
    assert solution.history[0][0] == 1
    assert solution.history[-1][0] == 1500
