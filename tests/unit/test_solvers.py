"""Both solvers against a plain loop and by their documented properties, for any problem."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.unit import tiny
from tests.unit.tiny import FAST, SLOW, SOLVERS, run
from worker.methods.suppression import Problems, ReferenceSolver, losses, solve


def plain_reference(net: nn.Module, problems: Problems, solver: ReferenceSolver) -> tuple[Tensor, float]:
    """The procedure with torch's own optimiser and scheduler, and autograd of the printed loss, for one problem."""
    before = net(problems.image).relu()
    kernel, alpha, beta = int(problems.kernel), float(problems.alpha), float(problems.beta)
    others = [j for j in range(before.shape[1]) if j != kernel]
    x = problems.image.clone().requires_grad_()
    optimiser = torch.optim.SGD([x], lr=solver.rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.5, patience=solver.patience)
    best, best_x = float("inf"), x.detach()
    for _ in range(solver.budget):
        after = net(x).relu()
        preservation = (after[0, kernel] - before[0, kernel]).norm() / before[0, kernel].norm()
        suppression = after[0, others].abs().sum() / before[0, others].abs().sum()
        loss = preservation + alpha * suppression + beta * x.abs().mean()
        if loss.item() < best:
            best, best_x = loss.item(), x.detach().clone()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step(loss.item())
    return best_x[0], best


@pytest.mark.parametrize("seed", range(3))
def test_reference_solver_is_torch_s_sgd_on_the_printed_loss(seed: int) -> None:
    """The same trajectory, momentum, plateau and best iterate."""
    net = tiny.network(seed)
    problems = tiny.problems(net, 1, seed)
    short = replace(SLOW, budget=100, patience=3)  # later, the kinks of |x| and ReLU amplify the last digit
    expected, loss = plain_reference(net, problems, short)
    (found,) = solve(net, problems, short, precision=torch.float64)
    assert found.loss == pytest.approx(loss, rel=1e-9)
    assert torch.allclose(found.x, expected, atol=1e-9)


@SOLVERS
def test_it_ends_below_its_start_and_the_blank_picture(solver: Any) -> None:
    """The reported loss is that of the returned X̂, and below those of X and of the blank picture."""
    net = tiny.network(3)
    problems = tiny.problems(net, 4, 3)
    start = losses(problems, net(problems.image).relu(), problems.image).total
    for row, solution in enumerate(solve(net, problems, solver, precision=torch.float64)):
        one = problems.select(torch.tensor([row]))
        again = losses(one, net(solution.x[None]).relu(), solution.x[None]).total
        assert float(again) == pytest.approx(solution.loss, rel=1e-9)
        assert solution.loss < 0.8 * float(start[row])


def test_fast_solver_stays_in_the_box() -> None:
    """Every pixel of X̂ is displayable."""
    net = tiny.network()
    space = tiny.space()
    for x in run(net, tiny.problems(net, 4), FAST):
        assert bool((x >= space.low).all())
        assert bool((x <= space.high).all())


def _lowered(net: nn.Sequential, by: Tensor) -> nn.Sequential:
    """The network with a lower bias of its last convolution."""
    last = net[-1]
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    last.bias -= by
    return net


def _constant() -> tuple[nn.Module, Tensor]:
    return tiny.network(), torch.full((1, 3, tiny.SIDE, tiny.SIDE), 0.7, dtype=torch.float64)


def _saturated() -> tuple[nn.Module, Tensor]:
    space = tiny.space()
    return tiny.network(), torch.where(tiny.images(1) > 0, space.high, space.low)


def _one_active_position() -> tuple[nn.Module, Tensor]:
    net, image = tiny.network(), tiny.images(1)
    loudest = net(image).amax(dim=(0, 2, 3))
    second = net(image)[0].flatten(1).topk(2, dim=1).values[:, 1]
    return _lowered(net, torch.where(torch.arange(len(loudest)) == 0, (loudest + second) / 2, 0)), image


def _maps_of_one_position() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(_lowered(tiny.network(), -torch.ones(5)), nn.AvgPool2d(tiny.SIDE // 2)), tiny.images(1)


@pytest.mark.parametrize("make", [_constant, _saturated, _one_active_position, _maps_of_one_position])
def test_odd_problems_are_solved_too(make: Any) -> None:
    """Finite, in the box, and no worse than the start, for any image and however small the map."""
    net, image = make()
    features = net(image).relu()
    kernel = 0 if make is _one_active_position else int(features.mean(dim=(0, 2, 3)).argmax())
    weight = torch.ones(1, dtype=torch.float64)
    problem = Problems.pose(image, features, torch.tensor([kernel]), weight, weight)
    start = float(losses(problem, features, image).total)
    (solution,) = solve(net, problem, FAST, precision=torch.float64)
    assert bool(solution.x.isfinite().all())
    assert float((solution.x - solution.x.clamp(tiny.space().low, tiny.space().high)).abs().max()) == 0
    assert solution.loss < start
    if make is _one_active_position:
        assert int((features[0, 0] > 0).sum()) == 1


def test_others_of_no_weight_do_not_pull() -> None:
    """With α = 0, doubling the other kernels changes nothing, and nothing is divided by α."""
    net, louder = tiny.network(), tiny.network()
    one = tiny.problems(net, 1)
    nothing = torch.zeros_like(one.alpha)
    one = Problems.pose(one.image, net(one.image).relu(), one.kernel, nothing, one.beta)
    last = louder[-1]
    assert isinstance(last, nn.Conv2d)
    last.weight *= torch.where(torch.arange(len(last.weight)) == one.kernel, 1, 2)[:, None, None, None]
    same = Problems.pose(one.image, louder(one.image).relu(), one.kernel, one.alpha, one.beta)
    assert float(same.others_sum) > 1.2 * float(one.others_sum)
    (quiet,), (loud,) = run(net, one, FAST), run(louder, same, FAST)
    assert float((quiet - one.image[0]).abs().max()) > 0.1
    assert torch.allclose(quiet, loud, atol=1e-8)


def test_fast_solver_is_deterministic() -> None:
    """The same problem twice, the same X̂."""
    net = tiny.network()
    problems = tiny.problems(net, 2)
    assert all(torch.equal(a, b) for a, b in zip(run(net, problems, FAST), run(net, problems, FAST), strict=True))


def test_without_other_terms_the_image_stays() -> None:
    """With α = β = 0, X itself is the solution, found at once."""
    net = tiny.network()
    problems = tiny.problems(net, 1)
    zero = torch.zeros_like(problems.alpha)
    still = Problems.pose(problems.image, net(problems.image).relu(), problems.kernel, zero, zero)
    (solution,) = solve(net, still, FAST, precision=torch.float64)
    assert solution.stopped == "converged"
    assert torch.equal(solution.x, problems.image[0])
