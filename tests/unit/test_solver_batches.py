"""Problems in a batch do not affect one another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.unit import tiny
from tests.unit.tiny import FAST, SOLVERS, run, shortened
from worker.methods.suppression import FastSolver, PixelSpace, Problems, Schedule, SolverBatch, solve


@SOLVERS
def test_a_problem_does_not_know_its_batch_mates(solver: Any) -> None:
    """Alone, and in a batch of 16 in either order: the same X̂ to float64 precision."""
    net = tiny.network()
    problems = tiny.problems(net, 16)
    together = run(net, problems, solver)
    backwards = run(net, problems.select(torch.arange(15, -1, -1)), solver)[::-1]
    for row in (0, 7, 15):
        (alone,) = run(net, problems.select(torch.tensor([row])), solver)
        assert torch.allclose(alone, together[row], atol=1e-10)
        assert torch.allclose(alone, backwards[row], atol=1e-10)


def test_a_bounded_batch_mate_changes_nothing() -> None:
    """Bounds belong to a problem, not to the batch."""
    net = tiny.network()
    problems = tiny.problems(net, 3)
    most = torch.tensor([torch.inf, 0.2, torch.inf], dtype=torch.float64)
    least = torch.tensor([-1.0, -1.0, 0.8], dtype=torch.float64)
    mixed = run(net, problems.with_bounds(most, least), FAST)
    (alone,) = run(net, problems.select(torch.tensor([0])), FAST)
    assert torch.allclose(mixed[0], alone, atol=1e-10)
    (bounded,) = run(net, problems.with_bounds(most, least).select(torch.tensor([2])), FAST)
    assert torch.allclose(mixed[2], bounded, atol=1e-10)


@SOLVERS
def test_problems_come_and_go(solver: Any) -> None:
    """One joins later with a smaller budget, one is removed, one is stopped: the others are not affected."""
    net = tiny.network()
    problems = tiny.problems(net, 4)
    rows = [problems.select(torch.tensor([row])) for row in range(4)]
    alone = [run(net, row, shortened(solver, budget))[0] for row, budget in zip(rows, (40, 40, 40, 25), strict=True)]
    batch: SolverBatch[Any] = SolverBatch(net, torch.float64)
    first, dropped, stopped = batch.add(problems.select(torch.arange(3)), shortened(solver, 40))
    found: dict[int, Any] = {}
    for _ in range(10):
        assert batch.step() == []
    (late,) = batch.add(rows[3], shortened(solver, 25))
    batch.drop([dropped])
    found.update(batch.stop([stopped], "deadline"))
    while len(batch):
        found.update(batch.step())
    assert set(found) == {first, stopped, late}
    assert torch.equal(found[first].x, alone[0])
    assert torch.equal(found[late].x, alone[3])
    assert (found[stopped].iterations, found[stopped].stopped) == (10, "deadline")
    assert (found[late].iterations, found[late].stopped) == (25, "budget")


@SOLVERS
def test_the_read_out_changes_nothing(solver: Any) -> None:
    """If the host reads only every seventh evaluation, a problem still ends at its own evaluation."""
    net = tiny.network()
    problems = tiny.problems(net, 3)
    each = solve(net, problems, shortened(solver, 150), precision=torch.float64)
    batch: SolverBatch[Any] = SolverBatch(net, torch.float64)
    batch.add(problems, shortened(solver, 150))
    found: list[Any] = []
    while len(batch):
        found += batch.step(7)
    for expected, (_, solution) in zip(each, found, strict=True):
        assert torch.equal(solution.x, expected.x)
        assert (solution.iterations, solution.stopped) == (expected.iterations, expected.stopped)
        assert solution.history == expected.history


class _NotANumber(nn.Module):
    """From the third evaluation on the second image's maps are NaN."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.evaluations = 0

    def forward(self, x: Tensor) -> Tensor:
        self.evaluations += 1
        maps: Tensor = self.net(x)
        return maps * torch.tensor([1, torch.nan])[:, None, None, None] if self.evaluations >= 3 else maps


def test_a_loss_that_is_not_a_number_ends_its_problem_alone() -> None:
    """It has no solution, at once; the other problem has the same X̂ as alone."""
    net = tiny.network().float()
    images = tiny.images(2).float()
    weight = torch.ones(2)
    problems = Problems.pose(images, net(images).relu(), torch.tensor([0, 0]), weight, weight)
    solver = FastSolver(PixelSpace(tiny.space().mean.float(), tiny.space().std.float()), Schedule(budget=30))
    batch: SolverBatch[Any] = SolverBatch(_NotANumber(net))
    mate, lost = batch.add(problems, solver)
    assert [batch.step() for _ in range(3)] == [[], [], [(lost, None)]]
    batch.network = net
    (ended,) = [one for _ in range(27) for one in batch.step()]
    (expected,) = solve(net, problems.select(torch.tensor([0])), solver)
    assert ended[0] == mate
    assert ended[1] is not None
    assert torch.allclose(ended[1].x, expected.x, atol=1e-3)
    with pytest.raises(ArithmeticError, match="the loss of problem 1 is not finite"):
        solve(_NotANumber(net), problems, solver)
