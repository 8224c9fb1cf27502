"""Solutions that are known in closed form, and those under bounds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.unit import tiny
from worker.methods.suppression import FastSolver, PixelSpace, Problems, Schedule, losses, solve


def test_closed_form_colour_kernels() -> None:
    """X̂ of the green kernel keeps green where it is active and is the mean colour elsewhere, to 1/255.

    L_p alone can hold a pixel against L_r, because Σ over the active pixels of (β/N)·‖F‖ stays below 1; red, blue and
    the inactive green have nothing that holds them. So X̂ = max(X, 0) in green and 0 in the other channels.
    """
    space = PixelSpace.of((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(1, 3, 32, 32, generator=generator)
    image = (pixels - space.mean) / space.std
    net = nn.Conv2d(3, 3, 1, bias=False).requires_grad_(False)  # each kernel reads one colour channel
    net.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
    weight = torch.ones(1)
    problem = Problems.pose(image, net(image).relu(), torch.tensor([1]), weight, weight)
    (solution,) = solve(net, problem, FastSolver(space))
    expected = torch.zeros_like(image[0])
    expected[1] = image[0, 1].clamp_min(0)
    assert float(((solution.x - expected) * space.std).abs().max()) <= 1 / 255
    shown = space.to_bytes(solution.x)
    assert torch.equal(shown[[0, 2]], space.mean_bytes[[0, 2]].expand(2, 32, 32))


def test_a_bound_on_preservation_has_the_known_minimiser() -> None:
    """The minimum of ‖x‖₁ under ‖x − F‖₂ ≤ ε·‖F‖₂ is F less the same t everywhere: ‖min(F, t)‖₂ = ε·‖F‖₂."""
    space = PixelSpace.of((124 / 255, 116 / 255, 104 / 255), (0.229, 0.224, 0.225))  # the mean is an 8-bit colour
    pixels = (torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 255).round() / 255
    image = (pixels - space.mean) / space.std
    net = nn.Conv2d(3, 3, 1, bias=False).requires_grad_(False)  # each kernel reads one colour channel
    net.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
    weight = torch.ones(1)
    features = net(image).relu()
    problem = Problems.pose(image, features, torch.tensor([1]), weight, weight).with_bounds(0.3 * weight, -weight)
    (solution,) = solve(net, problem, FastSolver(space))
    shown = space.from_bytes(space.to_bytes(solution.x[None]))
    found = losses(problem, net(shown).relu(), shown)
    target = features[0, 1]
    low, high = 0.0, float(target.max())
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if target.clamp_max(middle).norm() < 0.3 * target.norm() else (low, middle)
    expected = torch.zeros_like(image)
    expected[0, 1] = (target - low).clamp_min(0)
    ideal = losses(problem, net(expected).relu(), expected)
    assert float(ideal.preservation) == pytest.approx(0.3, abs=1e-4)
    assert 0.29 <= float(found.preservation) <= 0.3
    least = float(ideal.suppression + ideal.regularization)
    assert float(found.suppression + found.regularization) == pytest.approx(least, rel=0.03)


def test_a_bound_on_ssim_is_kept_and_used() -> None:
    """The 8-bit picture satisfies it, and a lower bound gives lower activations of the others."""
    net = tiny.network(2)
    one = tiny.problems(net, 1, 2)
    image = tiny.space().from_bytes(tiny.space().to_bytes(one.image)).double()
    one = Problems.pose(image, net(image).relu(), one.kernel, one.alpha, one.beta)
    rest = []
    for least in (0.5, 0.9):
        bounded = one.with_bounds(torch.full_like(one.alpha, torch.inf), torch.full_like(one.alpha, least))
        (solution,) = solve(net, bounded, FastSolver(tiny.space()), precision=torch.float64)
        shown = tiny.space().from_bytes(tiny.space().to_bytes(solution.x[None])).double()
        found = losses(bounded, net(shown).relu(), shown)
        assert found.ssim is not None
        assert least <= float(found.ssim) <= least + 0.09
        rest.append(float(one.alpha * found.suppression + one.beta * found.regularization))
    assert rest[0] < rest[1] < float(one.alpha + one.beta * one.image.abs().mean())


def test_x_is_the_picture_that_is_delivered() -> None:
    """Rounding to 8 bits changes only pixels of the mean colour, and the loss hardly."""
    net = tiny.network(4)
    problems = tiny.problems(net, 3, 4)
    space = tiny.space()
    for row, solution in enumerate(solve(net, problems, FastSolver.of(space, "quick"), precision=torch.float64)):
        one = problems.select(torch.tensor([row]))
        picture = space.to_bytes(solution.x[None])
        assert torch.allclose(space.weighed(picture), solution.x[None], atol=1e-12)
        found = losses(one, net(space.from_bytes(picture)).relu(), space.weighed(picture))
        assert float(found.total) == pytest.approx(solution.loss, rel=0.02)
        assert solution.loss < 0.8 * solution.history[0][-1]


def test_what_may_only_remove_adds_nothing() -> None:
    """Each value is between X's and the mean colour; the other problem is free, and the same as alone."""
    net = tiny.network()
    both = tiny.problems(net, 2)
    mixed = both.with_only_remove(torch.tensor([True, False]))
    solver = FastSolver(tiny.space(), Schedule(budget=60, first=60, rounded_from=60))
    removed, free = (solution.x for solution in solve(net, mixed, solver))
    image = both.image[0]
    assert bool(((removed * image >= 0) & (removed.abs() <= image.abs() + 1e-12)).all())
    (_, alone) = solve(net, both, solver)
    torch.testing.assert_close(free, alone.x)
    assert bool(((free * both.image[1] < 0) | (free.abs() > both.image[1].abs())).any())
