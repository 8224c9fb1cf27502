"""Each module of the fast solver against its plain implementation, and the whole solver."""

from __future__ import annotations

import random
from dataclasses import replace
from math import inf
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit import plain, tiny
from worker.methods.suppression import FastSolver, Problems, Schedule, SolverBatch
from worker.methods.suppression import solve as solve_all
from worker.methods.suppression.constraints import Constraints
from worker.methods.suppression.descents import Descents
from worker.methods.suppression.fast import schedule_values
from worker.methods.suppression.gates import Gates
from worker.methods.suppression.multiplier import Multiplier
from worker.methods.suppression.objective import BatchLosses
from worker.methods.suppression.problem_batch import ProblemOptions
from worker.methods.suppression.rounding import network_input
from worker.methods.suppression.schedule import ScheduleTensors
from worker.methods.suppression.steps import Steps

PLAN = Schedule(budget=60, first=30, again=15, rounded_from=40)
SEEDS = pytest.mark.parametrize("seed", range(3))


def noise(*shape: int, seed: int) -> Tensor:
    """Normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def schedule_of(age: int, count: int = 2, plan: Schedule = PLAN) -> ScheduleTensors:
    """The schedule's values, the same for each problem."""
    return ScheduleTensors.of(
        [schedule_values(plan, age, ProblemOptions())] * count, torch.zeros(count, dtype=torch.float64)
    )


def test_the_schedule() -> None:
    """Fractions, step sizes, κ and the ends of the descents, at every age."""
    plan = Schedule(first=7, again=4, travel=2.0)
    for age in range(30):
        t = plain.fraction(plan, age)
        assert plan.fraction(age) == pytest.approx(t)
        assert plan.ends(age) == (t == 1)
        assert plan.step(age, 0.001) == pytest.approx(plain.step_size(plan, age))
        assert plan.revival(age, 3.0) == pytest.approx(plain.revival(plan, age), abs=1e-12)
        assert plan.gamma_rate(age) == pytest.approx(max(0.0, 2 * t - 1))
        assert plan.boost(age, 0.9) == pytest.approx(max(0.0, 1 - t / 0.9) if age < 7 else 0)


@SEEDS
@pytest.mark.parametrize("most", [inf, 0.3])
def test_the_multiplier(seed: int, most: float) -> None:
    """y, ω and ρ over several evaluations, with and without a bound, of two independent problems."""
    net = tiny.network()
    problems = tiny.problems(net, 2)
    bound = torch.full((2,), most, dtype=torch.float64)
    problems = problems.with_bounds(bound, -torch.ones(2))
    found = Multiplier.start(problems)
    slow = [plain.Multiplier([0.0] * problems.target[0].numel(), [0.0] * problems.target[0].numel()) for _ in range(2)]
    base = noise(*problems.target.shape, seed=seed)
    for age in range(8):
        residual = 0.1 * (base + 0.3 * noise(*problems.target.shape, seed=100 * seed + age))
        moved = noise(2, seed=age).square()
        found = found.next(problems, residual, moved, schedule_of(age), bound, 1e-14)
        for row, one in enumerate(slow):
            one.next(residual[row].flatten().tolist(), float(moved[row]), age, most)
            assert found.y[row].flatten().tolist() == pytest.approx(one.y, abs=1e-12)
            assert float(found.stiffness[row]) == pytest.approx(one.omega)
            assert float(found.curvature[row]) == pytest.approx(one.rho)


@SEEDS
def test_the_gates(seed: int) -> None:
    """The dual variables u of the other kernels."""
    net = tiny.network()
    problems = tiny.problems(net, 2)
    found = Gates.start(problems)
    others = [[j for j in range(5) if j != int(kernel)] for kernel in problems.kernel]
    size = 4 * problems.target[0].numel()
    slow = [plain.Gates([0.0] * size, [0.0] * size) for _ in range(2)]
    for age in range(6):
        before_relu = 0.05 * noise(2, 5, *problems.target.shape[1:], seed=10 * seed + age)
        moved = noise(2, seed=age).square()
        found = found.next(problems, before_relu, moved, schedule_of(age))
        for row, one in enumerate(slow):
            values = before_relu[row][others[row]].flatten().tolist()
            one.next(values, float(moved[row]), age, PLAN, float(problems.unit[row]))
            assert found.u[row][others[row]].flatten().tolist() == pytest.approx(one.u, abs=1e-9)
            assert float(found.curvature[row]) == pytest.approx(one.rho)


@SEEDS
@pytest.mark.parametrize("few", [False, True], ids=["everywhere", "few pixels"])
def test_the_step(seed: int, few: bool) -> None:  # noqa: FBT001
    """Momentum, step sizes, the boosted soft threshold and the box, with a gradient at all pixels and at few."""
    space, net = tiny.space(), tiny.network()
    problems = tiny.problems(net, 2)
    pixels = problems.image[0].numel()
    low, high = (((level - space.mean) / space.std).expand(3, 12, 12).flatten().tolist() for level in (0, 1))
    box = list(zip(low, high, strict=True))
    x, found = problems.image, Steps.start(problems)
    slow = [plain.Steps([0.0] * pixels, [0.0] * pixels, [0.0] * pixels) for _ in range(2)]
    plain_x = [x[row].flatten().tolist() for row in range(2)]
    base = noise(*x.shape, seed=seed)
    if few:
        base[:, :, 2:] = 0
    for age in (*range(5), 28, 29, 30, 31):
        gradient = 3 * (base + 0.5 * (base != 0) * noise(*x.shape, seed=50 * seed + age)) / pixels
        length = 0.3 + noise(2, seed=age).abs() / 10
        x, found = found.next(problems, x, gradient, schedule_of(age), length, space)
        for row, one in enumerate(slow):
            beta, own = float(problems.beta[row]), gradient[row].flatten().tolist()
            plain_x[row] = one.next(plain_x[row], own, age, PLAN, float(length[row]), beta, box)
            assert x[row].flatten().tolist() == pytest.approx(plain_x[row], abs=1e-12)
            assert float(found.moved[row]) == pytest.approx(one.moved)


def test_the_descents() -> None:
    """The best merit, the height of the next descent, and convergence."""
    generator, merit = random.Random(1), 2.0
    problems = tiny.problems(tiny.network(), 1)
    found, slow = Descents.start(problems), plain.Descents()
    for age in range(120):
        merit *= generator.choice([1.02, 0.99, 0.97]) if age < 70 else 1.0
        preservation = generator.random()
        resets = age == PLAN.rounded_from
        one = torch.tensor([merit], dtype=torch.float64)
        now = BatchLosses(torch.tensor([preservation], dtype=torch.float64), one, one, one, one)
        found = found.next(now, schedule_of(age, 1))
        slow.next(merit, preservation, age, PLAN, resets=resets)
        assert float(found.best) == pytest.approx(slow.best)
        assert float(found.height) == pytest.approx(slow.height)
        assert bool(found.settled) == slow.settled
    assert slow.settled


def test_rounding() -> None:
    """Each problem is evaluated at its own input; a byte equal to the mean colour counts as 0 in L_r."""
    space, x = tiny.space(), tiny.images(2)
    x[1, :, 0] = 0
    for rounded in ((False, False), (True, False), (True, True)):
        seen, weighed = network_input(space, x, torch.tensor(rounded), rounded)
        for row, own in enumerate(rounded):
            expected = plain.picture(x[row], space) if own else (x[row], x[row])
            assert torch.equal(seen[row], expected[0])
            assert torch.equal(weighed[row], expected[1])


def test_the_constraints() -> None:
    """ε adapts to the SSIM, and γ to L_e in the second half of a descent, each only under such a bound."""
    problems = tiny.problems(tiny.network(), 3)
    one = torch.ones(3, dtype=torch.float64)
    least, most = torch.tensor([0.9, -1.0, -1.0]), torch.tensor([torch.inf, torch.inf, 0.1])
    asked = problems.with_bounds(torch.inf * one, least).with_invention([None] * 3, 2 * one, most)
    constraints = Constraints.start(asked)
    assert constraints.preservation.tolist() == pytest.approx([0.1**0.5, 1, 1], rel=1e-6)
    assert constraints.gamma.tolist() == [2, 2, 1]
    now = BatchLosses(0.3 * one, one, one, one, one, ssim=0.8 * one, invention=0.2 * one)
    at = schedule_of(26, 3)
    t = plain.fraction(PLAN, 26)
    following = constraints.next(asked, now, at)
    factor = 2.718281828459045 ** (0.2 * (2 * t - 1) * 1)
    assert following.gamma.tolist() == pytest.approx([2, 2, factor])
    assert following.preservation.tolist() == pytest.approx([0.1**0.5 * 2.718281828459045 ** (-0.03), 1, 1], rel=1e-6)
    assert constraints.next(asked, now, schedule_of(3, 3)).gamma.tolist() == [2, 2, 1]  # the first half of a descent


@pytest.mark.parametrize("most", [inf, 0.4], ids=["free", "bound"])
@SEEDS
def test_together_they_are_the_slow_solver(seed: int, most: float) -> None:
    """The same losses at every evaluation, and the same X̂, of a batch of two with their own weights."""
    net, space = tiny.network(seed), tiny.space()
    problems = tiny.problems(net, 2, seed)
    if most < inf:
        problems = problems.with_bounds(torch.full((2,), most, dtype=torch.float64), -torch.ones(2))
    both = solve_all(net, problems, FastSolver(space, PLAN), precision=torch.float64)
    for row, solution in enumerate(both):
        weights = float(problems.alpha[row]), float(problems.beta[row])
        image = problems.image[row : row + 1]
        slow = plain.solve(net, image, int(problems.kernel[row]), *weights, space, PLAN, most)
        assert [(line[1], line[4]) for line in solution.history] == [
            pytest.approx(one, rel=1e-6) for one in slow.history
        ]
        assert torch.allclose(solution.x, slow.x, atol=1e-6)
        assert (solution.stopped == "converged") == slow.converged


def test_a_schedule_of_each_problem_is_its_own() -> None:
    """Problems with different schedules are stepped in a batch as they are alone."""
    net = tiny.network()
    problems = tiny.problems(net, 2)
    plans = [PLAN, replace(PLAN, first=20, again=10, budget=45, rounded_from=25)]
    one, other = (problems.select(torch.tensor([row])) for row in (0, 1))
    alone = [
        solve_all(net, own, FastSolver(tiny.space(), plan), precision=torch.float64)[0]
        for own, plan in zip((one, other), plans, strict=True)
    ]
    assert _together(net, [one, other], plans) == [solution.history for solution in alone]


def _together(net: Any, problems: list[Problems], plans: list[Schedule]) -> list[Any]:
    batch: SolverBatch[Any] = SolverBatch(net, torch.float64)
    numbers = [batch.add(own, FastSolver(tiny.space(), plan))[0] for own, plan in zip(problems, plans, strict=True)]
    found: dict[int, Any] = {}
    while len(batch):
        found.update(batch.step())
    return [found[number].history for number in numbers]
