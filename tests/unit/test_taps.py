"""The invention L_e against a plain float64 implementation, and its documented properties."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.unit import tiny
from worker.methods.suppression import FastSolver, Problems, ReferenceSolver, Schedule, TappedNetwork, losses, solve
from worker.methods.suppression.objective import losses_and_gradient, subgradient

FAST = FastSolver.of(tiny.space(), iterations=120)
SLOW = ReferenceSolver(rate=0.3, budget=150, patience=20)
NONE = torch.full((), inf, dtype=torch.float64)


def deep(seed: int = 0) -> nn.Sequential:
    """Three convolutions, a ReLU after each but the last: D = 2."""
    torch.manual_seed(seed)
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3, padding=1),
    )
    return layers.double().requires_grad_(False).eval()


def tapped(net: nn.Module, problems: Problems, gamma: float, most: float = inf) -> tuple[TappedNetwork, Problems]:
    """The network, and the problems with γ·L_e in their loss or with L_e ≤ ε."""
    network = TappedNetwork(net)
    below = [network.bounds(image[None], torch.float64) for image in problems.image]
    size = len(problems)
    return network, problems.with_invention(below, NONE.new_full((size,), gamma), NONE.new_full((size,), most))


def maps_below(net: nn.Sequential, x: Tensor) -> list[Tensor]:
    """ĥ_d of each ReLU layer below, module by module."""
    found = []
    for module in net:
        x = module(x)
        if isinstance(module, nn.ReLU):
            found.append(x)
    return found


def plain_invention(net: nn.Sequential, image: Tensor, x: Tensor, *, blank: bool) -> Tensor:
    """L_e of x (1, 3, H, W) by the printed formula."""
    terms = []
    for after, before, empty in zip(
        maps_below(net, x), maps_below(net, image), maps_below(net, torch.zeros_like(x)), strict=True
    ):
        bound = torch.maximum(before, empty) if blank else before
        over = sum(max(a - b, a.new_zeros(())) for a, b in zip(after.flatten(), bound.flatten(), strict=True))
        terms.append(over / before.sum())
    return sum(terms, torch.zeros((), dtype=torch.float64)) / max(1, len(terms))


@pytest.mark.parametrize("seed", range(3))
def test_the_term_is_the_printed_one(seed: int) -> None:
    """L_e of the evaluation and of the report against a sum over single neurons."""
    net = deep(seed)
    problems = tiny.problems(net, 1, seed)
    network, asked = tapped(net, problems, 1.0)
    x = tiny.images(1, seed + 50)
    _, found = network.forward_with_invention(x, asked.activation_bounds, torch.ones(1, dtype=torch.float64))
    assert float(found) == pytest.approx(float(plain_invention(net, problems.image, x, blank=True)), rel=1e-12)
    _, shares, beyond = network.invention(problems.image, x, [0])
    assert float(shares.mean()) == pytest.approx(float(plain_invention(net, problems.image, x, blank=False)), rel=1e-12)
    assert float(beyond.mean()) == pytest.approx(float(plain_invention(net, problems.image, x, blank=True)), rel=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.7])
@pytest.mark.parametrize("seed", range(3))
def test_its_gradient_is_autograd_s(seed: int, alpha: float) -> None:
    """The gradient of L_p + α·L_s + γ·L_e as printed, in a batch of three images."""
    net = deep(seed)
    problems = tiny.problems(net, 3, seed)
    problems = problems.with_weights(torch.full_like(problems.alpha, alpha), problems.beta)
    network, asked = tapped(net, problems, 2.5)
    x = tiny.images(3, seed + 50)
    now, gradient = losses_and_gradient(network, asked, x, subgradient(asked), torch.float64)
    for row in range(3):
        own = x[row : row + 1].clone().requires_grad_()
        after, kernel = net(own).relu(), int(problems.kernel[row])
        others = [j for j in range(after.shape[1]) if j != kernel]
        loss = (after[0, kernel] - problems.target[row]).norm() / problems.target_norm[row]
        loss = loss + alpha * after[0, others].sum() / problems.others_sum[row]
        loss = loss + 2.5 * plain_invention(net, problems.image[row : row + 1], own, blank=True)
        (expected,) = torch.autograd.grad(loss, own)
        assert torch.allclose(gradient[row], expected[0], atol=1e-12)
        assert now.invention is not None
        assert float(now.merit[row] - now.total[row]) == pytest.approx(2.5 * float(now.invention[row]))


def test_it_is_zero_at_the_image_and_where_nothing_is_below() -> None:
    """L_e(X) = 0; without a ReLU below, and for a layer that X leaves silent, the term and its gradient are 0."""
    net = deep()
    problems = tiny.problems(net, 1)
    network, asked = tapped(net, problems, 1.0)
    assert (
        float(network.forward_with_invention(problems.image, asked.activation_bounds, torch.ones(1).double())[1]) == 0
    )

    first = net[:1]
    alone = tiny.problems(first, 1)
    network, asked = tapped(first, alone, 1.0)
    now, gradient = losses_and_gradient(network, asked, tiny.images(1, 9), subgradient(asked), torch.float64)
    _, without = losses_and_gradient(first, alone, tiny.images(1, 9), subgradient(alone), torch.float64)
    assert now.invention is not None
    assert float(now.invention) == 0
    assert torch.equal(gradient, without)
    assert network.invention(alone.image, alone.image, [0])[1].shape == (1, 0)

    silent = deep()
    second = silent[2]
    assert isinstance(second, nn.Conv2d)
    assert second.bias is not None
    second.bias.fill_(-1.0)
    second.weight.copy_(second.weight.abs())  # it is active only where the first layer is very active
    x = 100 * tiny.images(1)
    network, asked = tapped(silent, replace(problems, image=torch.zeros_like(x)), 1.0)
    assert float(asked.activation_bounds[0].scale[1]) == 0  # type: ignore[union-attr]
    _, found = network.forward_with_invention(x, asked.activation_bounds, torch.ones(1).double())
    over = (maps_below(silent, x)[0] - maps_below(silent, torch.zeros_like(x))[0]).clamp_min(0).sum()
    assert float(maps_below(silent, x)[1].sum()) > 0
    assert float(found) == pytest.approx(float(over / maps_below(silent, torch.zeros_like(x))[0].sum() / 2))


@pytest.mark.parametrize("solver", [FAST, SLOW], ids=["fast", "reference"])
def test_without_the_term_nothing_changes(solver: Any) -> None:
    """A tapped network gives the same X̂, bit for bit, and the original network is unchanged."""
    net = deep()
    before = [type(module) for module in net.modules()]
    problems = tiny.problems(net, 2)
    network = TappedNetwork(net)
    alone = solve(net, problems, solver, precision=torch.float64)
    for one, other in zip(solve(network, problems, solver, precision=torch.float64), alone, strict=True):
        assert torch.equal(one.x, other.x)
        assert one.history == other.history
    _, shares, _ = network.invention(problems.image[:1], problems.image[1:], [0] * (len(problems) - 1))
    assert float(shares.mean()) > 0
    assert [type(module) for module in net.modules()] == before
    assert all(a is b for a, b in zip(net.parameters(), network.parameters(), strict=True))


@pytest.mark.parametrize("solver", [FAST, SLOW], ids=["fast", "reference"])
def test_batch_mates_do_not_matter(solver: Any) -> None:
    """Problems of two images, weighted, bounded and neither, in an order that mixes them."""
    net = deep()
    posed = tiny.problems(net, 2)
    network = TappedNetwork(net)
    below = [network.bounds(image[None], torch.float64) for image in posed.image]
    rows = [0, 1, 0, 0, 1]
    many = posed.select(torch.tensor(rows)).with_invention(
        [below[0], below[1], None, below[0], below[1]],
        torch.tensor([1.0, 0.0, 0.0, 1.0, 3.0], dtype=torch.float64),
        torch.tensor([inf, 0.05 if solver is FAST else inf, inf, inf, inf], dtype=torch.float64),
    )
    together = solve(network, many, solver, precision=torch.float64)
    for row, found in enumerate(together):
        (alone,) = solve(network, many.select(torch.tensor([row])), solver, precision=torch.float64)
        assert torch.allclose(found.x, alone.x, atol=1e-9)
    assert torch.allclose(together[0].x, together[3].x, atol=1e-9)
    assert not torch.allclose(together[0].x, together[2].x, atol=1e-3)


@pytest.mark.parametrize("solver", [FAST, replace(SLOW, budget=400)], ids=["fast", "reference"])
def test_the_weighted_loss_falls(solver: Any) -> None:
    """X̂ of L + γ·L_e has a lower L + γ·L_e, and invents less, than X̂ of L alone."""
    for seed in range(3):
        net = deep(seed)
        problems = tiny.problems(net, 1, seed)
        network, asked = tapped(net, problems, 2.0)
        found = []
        for posed in (problems, asked):
            (solution,) = solve(network, posed, solver, precision=torch.float64)
            before_relu, invention = network.forward_with_invention(
                solution.x[None], asked.activation_bounds, torch.ones(1).double()
            )
            now = losses(asked, before_relu.clamp_min(0), solution.x[None], invention)
            found.append((float(now.merit), float(invention)))
        assert found[1][0] < found[0][0]
        assert found[1][1] < found[0][1]


@pytest.mark.parametrize("bound", [0.2, 0.1])
def test_a_bound_is_kept_in_the_picture(bound: float) -> None:
    """L_e ≤ ε in 8 bits; where L alone would exceed it, most of the bound is used."""
    used = []
    for seed in range(2):
        net = deep(seed)
        problems = tiny.problems(net, 1, seed)
        network, asked = tapped(net, problems, 0.0, bound)
        space = tiny.space()
        (solution,) = solve(network, asked, FastSolver(space, Schedule(budget=400)), precision=torch.float64)
        picture = (space.to_bytes(solution.x[None]).double() / 255 - space.mean) / space.std
        found = float(plain_invention(net, problems.image, picture, blank=True))
        assert found <= bound
        used.append(found / bound)
    assert max(used) > 0.7


@pytest.mark.parametrize("solver", [FAST, SLOW], ids=["fast", "reference"])
def test_both_solvers_only_remove(solver: Any) -> None:
    """Each value of X̂ is between the image's and the mean colour."""
    net = deep()
    problems = tiny.problems(net, 2).with_only_remove(torch.tensor([True, True]))
    network, asked = tapped(net, problems, 1.0)
    for row, solution in enumerate(solve(network, asked, solver, precision=torch.float64)):
        image = problems.image[row]
        tolerance = 1e-9 if solver is SLOW else 0.5 / 255 / 0.2  # of rounding to 8 bits
        assert bool((solution.x.abs() <= image.abs() + tolerance).all())
        assert bool((solution.x * image >= -tolerance).all())


def test_what_two_problems_of_an_image_share_is_shared() -> None:
    """Rows are selected and joined with their bounds, which are not copied."""
    net = deep()
    _, asked = tapped(net, tiny.problems(net, 3), 1.0)
    picked = asked.select(torch.tensor([1, 2])).join(asked.select(torch.tensor([0])))
    assert [
        one is other
        for one, other in zip(
            picked.activation_bounds, (*asked.activation_bounds[1:], asked.activation_bounds[0]), strict=True
        )
    ] == [True] * 3
