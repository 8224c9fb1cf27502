"""Both solvers against a plain loop, a known solution, and their documented properties."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.unit import tiny
from worker.methods.suppression import (
    EFFORTS,
    FastSolver,
    PixelSpace,
    Problems,
    ReferenceSolver,
    Schedule,
    SolverBatch,
    after,
    losses,
    solve,
)

FAST = FastSolver(tiny.space(), Schedule(budget=200))
SIDE = tiny.SIDE
SLOW = ReferenceSolver(rate=0.3, budget=300, patience=20)  # the tiny networks have 350 times fewer pixels
SOLVERS = pytest.mark.parametrize("solver", [FAST, SLOW], ids=["fast", "reference"])


def run(net: nn.Module, problems: Problems, solver: Any) -> list[Tensor]:
    """The X̂ of each problem."""
    return [solution.x for solution in solve(net, problems, solver, precision=torch.float64)]


def shortened(solver: Any, budget: int) -> Any:
    """The same solver with another budget."""
    if isinstance(solver, FastSolver):
        return replace(solver, schedule=replace(solver.schedule, budget=budget))
    return replace(solver, budget=budget)


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
