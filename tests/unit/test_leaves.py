"""The modules of the fast solver, each against its slow twin, and all of them together."""

from __future__ import annotations

import random
from dataclasses import replace
from math import inf
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit import plain, tiny
from worker.methods.suppression import Batch, FastSolver, Problems, Schedule
from worker.methods.suppression import solve as solve_all
from worker.methods.suppression.bounds import Limits
from worker.methods.suppression.descents import Descents
from worker.methods.suppression.fast import numbers
from worker.methods.suppression.gates import Gates
from worker.methods.suppression.multiplier import Multiplier
from worker.methods.suppression.objective import Losses
from worker.methods.suppression.problems import Asks
from worker.methods.suppression.rounding import shown
from worker.methods.suppression.schedule import Moment
from worker.methods.suppression.steps import Steps

PLAN = Schedule(budget=60, first=30, again=15, faithful=40)
SEEDS = pytest.mark.parametrize("seed", range(3))


def noise(*shape: int, seed: int) -> Tensor:
    """Normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(age: int, count: int = 2, plan: Schedule = PLAN) -> Moment:
    """The same of each problem."""
    return Moment.of([numbers(plan, age, Asks())] * count, torch.zeros(count, dtype=torch.float64))


def test_the_schedule() -> None:
    """Shares, step lengths, hope and ends of the descents, at every age."""
    plan = Schedule(first=7, again=4, travel=2.0)
    for age in range(30):
        t = plain.share(plan, age)
        assert plan.share(age) == pytest.approx(t)
        assert plan.ends(age) == (t == 1)
        assert plan.step(age, 0.001) == pytest.approx(plain.step_size(plan, age))
        assert plan.hope(age, 3.0) == pytest.approx(plain.hope(plan, age), abs=1e-12)
        assert plan.pricing(age) == pytest.approx(max(0.0, 2 * t - 1))
        assert plan.louder(age, 0.9) == pytest.approx(max(0.0, 1 - t / 0.9) if age < 7 else 0)


@SEEDS
@pytest.mark.parametrize("most", [inf, 0.3])
def test_the_multiplier(seed: int, most: float) -> None:
    """y, ω and ρ over several evaluations, with and without a bound, of two problems that do not know each other."""
    net = tiny.network()
    problems = tiny.problems(net, 2)
    bound = torch.full((2,), most, dtype=torch.float64)
    problems = problems.within(bound, -torch.ones(2))
    found = Multiplier.start(problems)
    slow = [plain.Multiplier([0.0] * problems.target[0].numel(), [0.0] * problems.target[0].numel()) for _ in range(2)]
    base = noise(*problems.target.shape, seed=seed)
    for age in range(8):
        residual = 0.1 * (base + 0.3 * noise(*problems.target.shape, seed=100 * seed + age))
        moved = noise(2, seed=age).square()
        found = found.next(problems, residual, moved, moment(age), bound, 1e-14)
        for row, one in enumerate(slow):
            one.next(residual[row].flatten().tolist(), float(moved[row]), age, most)
            assert found.y[row].flatten().tolist() == pytest.approx(one.y, abs=1e-12)
            assert float(found.stiffness[row]) == pytest.approx(one.omega)
            assert float(found.curvature[row]) == pytest.approx(one.rho)


@SEEDS
def test_the_gates(seed: int) -> None:
    """U of the other kernels; that of the selected one does not count."""
    net = tiny.network()
    problems = tiny.problems(net, 2)
    found = Gates.start(problems)
    others = [[j for j in range(5) if j != int(kernel)] for kernel in problems.kernel]
    size = 4 * problems.target[0].numel()
    slow = [plain.Gates([0.0] * size, [0.0] * size) for _ in range(2)]
    for age in range(6):
        before_relu = 0.05 * noise(2, 5, *problems.target.shape[1:], seed=10 * seed + age)
        moved = noise(2, seed=age).square()
        found = found.next(problems, before_relu, moved, moment(age))
        for row, one in enumerate(slow):
            values = before_relu[row][others[row]].flatten().tolist()
            one.next(values, float(moved[row]), age, PLAN, float(problems.unit[row]))
            assert found.u[row][others[row]].flatten().tolist() == pytest.approx(one.u, abs=1e-9)
            assert float(found.curvature[row]) == pytest.approx(one.rho)


@SEEDS
@pytest.mark.parametrize("few", [False, True], ids=["everywhere", "few pixels"])
def test_the_step(seed: int, few: bool) -> None:  # noqa: FBT001
    """Momentum, lengths, shrinking that is louder at first, the box: where all pixels are pulled, and where few are."""
    space, net = tiny.space(), tiny.network()
    problems = tiny.problems(net, 2)
    pixels = problems.image[0].numel()
    low, high = (((level - space.mean) / space.std).expand(3, 12, 12).flatten().tolist() for level in (0, 1))
    box = list(zip(low, high, strict=True))
    x, found = problems.image, Steps.start(problems)
    slow = [plain.Steps([0.0] * pixels, [0.0] * pixels, [0.0] * pixels) for _ in range(2)]
    walked = [x[row].flatten().tolist() for row in range(2)]
    base = noise(*x.shape, seed=seed)
    if few:
        base[:, :, 2:] = 0
    for age in (*range(5), 28, 29, 30, 31):
        slope = 3 * (base + 0.5 * (base != 0) * noise(*x.shape, seed=50 * seed + age)) / pixels
        length = 0.3 + noise(2, seed=age).abs() / 10
        x, found = found.next(problems, x, slope, moment(age), length, space)
        for row, one in enumerate(slow):
            beta, own = float(problems.beta[row]), slope[row].flatten().tolist()
            walked[row] = one.next(walked[row], own, age, PLAN, float(length[row]), beta, box)
            assert x[row].flatten().tolist() == pytest.approx(walked[row], abs=1e-12)
            assert float(found.moved[row]) == pytest.approx(one.moved)


def test_the_descents() -> None:
    """The best, the height of the next, and when it is enough."""
    generator, merit = random.Random(1), 2.0
    problems = tiny.problems(tiny.network(), 1)
    found, slow = Descents.start(problems), plain.Descents()
    for age in range(120):
        merit *= generator.choice([1.02, 0.99, 0.97]) if age < 70 else 1.0
        preservation = generator.random()
        forgets = age == PLAN.faithful
        one = torch.tensor([merit], dtype=torch.float64)
        now = Losses(torch.tensor([preservation], dtype=torch.float64), one, one, one, one)
        found = found.next(now, moment(age, 1))
        slow.next(merit, preservation, age, PLAN, forgets=forgets)
        assert float(found.best) == pytest.approx(slow.best)
        assert float(found.height) == pytest.approx(slow.height)
        assert bool(found.settled) == slow.settled
    assert slow.settled


def test_rounding() -> None:
    """Of those problems that ask for it; a byte that is the mean colour's weighs nothing."""
    space, x = tiny.space(), tiny.images(2)
    x[1, :, 0] = 0
    for rounded in ((False, False), (True, False), (True, True)):
        seen, weighed = shown(space, x, torch.tensor(rounded), rounded)
        for row, own in enumerate(rounded):
            expected = plain.picture(x[row], space) if own else (x[row], x[row])
            assert torch.equal(seen[row], expected[0])
            assert torch.equal(weighed[row], expected[1])


def test_the_limits() -> None:
    """ε follows the SSIM, γ follows L_e in the second half of a descent, each only where there is such a bound."""
    problems = tiny.problems(tiny.network(), 3)
    one = torch.ones(3, dtype=torch.float64)
    least, most = torch.tensor([0.9, -1.0, -1.0]), torch.tensor([torch.inf, torch.inf, 0.1])
    asked = problems.within(torch.inf * one, least).watching([None] * 3, 2 * one, most)
    limits = Limits.start(asked)
    assert limits.preservation.tolist() == pytest.approx([0.1**0.5, 1, 1], rel=1e-6)
    assert limits.price.tolist() == [2, 2, 1]
    now = Losses(0.3 * one, one, one, one, one, ssim=0.8 * one, invention=0.2 * one)
    at = moment(26, 3)
    t = plain.share(PLAN, 26)
    following = limits.next(asked, now, at)
    factor = 2.718281828459045 ** (0.2 * (2 * t - 1) * 1)
    assert following.price.tolist() == pytest.approx([2, 2, factor])
    assert following.preservation.tolist() == pytest.approx([0.1**0.5 * 2.718281828459045 ** (-0.03), 1, 1], rel=1e-6)
    assert limits.next(asked, now, moment(3, 3)).price.tolist() == [2, 2, 1]  # the first half of a descent


@pytest.mark.parametrize("most", [inf, 0.4], ids=["free", "bound"])
@SEEDS
def test_together_they_are_the_slow_solver(seed: int, most: float) -> None:
    """The same losses at every evaluation, and the same X̂, of a batch of two with weights of their own."""
    net, space = tiny.network(seed), tiny.space()
    problems = tiny.problems(net, 2, seed)
    if most < inf:
        problems = problems.within(torch.full((2,), most, dtype=torch.float64), -torch.ones(2))
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
    """Problems that were told different things are stepped together as they are alone."""
    net = tiny.network()
    problems = tiny.problems(net, 2)
    plans = [PLAN, replace(PLAN, first=20, again=10, budget=45, faithful=25)]
    one, other = (problems.select(torch.tensor([row])) for row in (0, 1))
    alone = [
        solve_all(net, own, FastSolver(tiny.space(), plan), precision=torch.float64)[0]
        for own, plan in zip((one, other), plans, strict=True)
    ]
    assert _together(net, [one, other], plans) == [solution.history for solution in alone]


def _together(net: Any, problems: list[Problems], plans: list[Schedule]) -> list[Any]:
    batch: Batch[Any] = Batch(net, torch.float64)
    numbers = [batch.add(own, FastSolver(tiny.space(), plan))[0] for own, plan in zip(problems, plans, strict=True)]
    found: dict[int, Any] = {}
    while len(batch):
        found.update(batch.step())
    return [found[number].history for number in numbers]
