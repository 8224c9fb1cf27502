"""The loss and its gradient against an independent implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from tests.unit import tiny
from worker.methods.suppression import Problems, losses
from worker.methods.suppression.objective import losses_and_gradient, subgradient

Array = NDArray[np.float64]


def plain_forward(net: nn.Sequential, image: Array) -> Array:
    """The network by loops over positions: (3, H, W) → (C, h, w)."""
    maps = image
    for layer in net:
        if isinstance(layer, nn.Conv2d):
            maps = _convolve(maps, layer.weight.numpy(), layer.bias.numpy())  # type: ignore[union-attr]
        elif isinstance(layer, nn.ReLU):
            maps = np.where(maps > 0, maps, 0)
        else:
            height, width = maps.shape[1] // 2, maps.shape[2] // 2
            maps = np.array(
                [
                    [[one[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].max() for x in range(width)] for y in range(height)]
                    for one in maps
                ]
            )
    return np.where(maps > 0, maps, 0)  # the layer's own ReLU


def _convolve(maps: Array, weight: Array, bias: Array) -> Array:
    _, height, width = maps.shape
    padded = np.pad(maps, ((0, 0), (1, 1), (1, 1)))
    out = np.zeros((len(weight), height, width))
    for kernel, (filters, shift) in enumerate(zip(weight, bias, strict=True)):
        for y in range(height):
            for x in range(width):
                out[kernel, y, x] = (filters * padded[:, y : y + 3, x : x + 3]).sum() + shift
    return out


def plain_loss(
    net: nn.Sequential, original: Array, changed: Array, kernel: int, alpha: float, beta: float
) -> tuple[float, ...]:
    """Formulas 1 to 4 as printed, one problem at a time."""
    before, after = plain_forward(net, original), plain_forward(net, changed)
    preservation = np.sqrt(((after[kernel] - before[kernel]) ** 2).sum()) / np.sqrt((before[kernel] ** 2).sum())
    others = [j for j in range(len(before)) if j != kernel]
    suppression = sum(np.abs(after[j]).sum() for j in others) / sum(np.abs(before[j]).sum() for j in others)
    regularization = np.abs(changed).sum() / changed.size
    return preservation, suppression, regularization, preservation + alpha * suppression + beta * regularization


def one(problems: Problems, row: int) -> tuple[int, float, float]:
    """Kernel, α and β of a row."""
    return int(problems.kernel[row]), float(problems.alpha[row]), float(problems.beta[row])


@pytest.mark.parametrize("seed", range(5))
def test_losses_equal_a_plain_implementation(seed: int) -> None:
    """All four terms, for a batch of problems with different weights, to float64 precision."""
    net = tiny.network(seed)
    problems = tiny.problems(net, 3, seed)
    x = tiny.images(3, seed + 50)
    found = losses(problems, net(x).clamp_min(0), x)
    for row in range(3):
        expected = plain_loss(net, problems.image[row].numpy(), x[row].numpy(), *one(problems, row))
        terms = [found.preservation[row], found.suppression[row], found.regularization[row], found.total[row]]
        assert [float(term) for term in terms] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_gradient_equals_finite_differences(seed: int) -> None:
    """With y = r/‖r‖ it is the gradient of L_p + α·L_s of each problem by itself, not of a mean over the batch."""
    net = tiny.network(seed)
    problems = tiny.problems(net, 2, seed)
    problems = problems.with_weights(problems.alpha * torch.tensor([1, seed]), problems.beta)  # none, once
    x = tiny.images(2, seed + 50)
    _, gradient = losses_and_gradient(net, problems, x, subgradient(problems), torch.float64)
    generator = np.random.default_rng(seed)
    step = 1e-6
    for row in range(2):
        kernel, alpha, _ = one(problems, row)
        for _ in range(8):
            at = tuple(int(generator.integers(size)) for size in x.shape[1:])
            sides = []
            for sign in (1, -1):
                moved = x[row].numpy().copy()
                moved[at] += sign * step
                sides.append(plain_loss(net, problems.image[row].numpy(), moved, kernel, alpha, 0)[3])
            assert float(gradient[row][at]) == pytest.approx((sides[0] - sides[1]) / (2 * step), abs=1e-7)


def test_the_start_has_no_pull_from_preservation() -> None:
    """At X̂ = X the norm is not differentiable; its subgradient there is 0, not NaN."""
    net = tiny.network()
    problems = tiny.problems(net, 2)
    now, gradient = losses_and_gradient(net, problems, problems.image, subgradient(problems), torch.float64)
    alone = problems.alpha[0] / problems.others_sum[0] * torch.ones(1, dtype=torch.float64)
    image = problems.image[:1].clone().requires_grad_()
    features = net(image).clamp_min(0)
    others = features.sum() - features[0, problems.kernel[0]].sum()
    (expected,) = torch.autograd.grad(others * alone, image)
    assert now.preservation.tolist() == [0, 0]
    assert torch.allclose(gradient[:1], expected)


def test_silent_and_lone_kernels_are_seen() -> None:
    """‖F_i‖ = 0 and Σ‖F_j‖ = 0 are marked, not divided by."""
    features = torch.zeros(2, 3, 4, 4)
    features[0, 1] = 1  # only kernel 1 is active on the first image
    features[1, 0] = 1
    one_each = torch.ones(2)
    posed = Problems.pose(torch.zeros(2, 3, 8, 8), features, torch.tensor([1, 2]), one_each, one_each)
    assert posed.lone.tolist() == [True, False]
    assert posed.silent.tolist() == [False, True]


def test_select_and_join_undo_each_other() -> None:
    """Rows are selected and joined together, which continuous batching relies on."""
    problems = tiny.problems(tiny.network(), 4)
    mask = torch.tensor([True, False, True, False])
    again = problems.select(mask.nonzero()[:, 0]).join(problems.select((~mask).nonzero()[:, 0]))
    assert again.kernel.tolist() == problems.kernel[[0, 2, 1, 3]].tolist()
    assert torch.equal(again.target, problems.target[[0, 2, 1, 3]])


def test_a_lone_kernel_can_be_asked_without_suppression() -> None:
    """If all others are silent there is nothing to suppress with α > 0, and no division by 0 with α = 0."""
    features = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    features[:, 1] = 1
    image, kernel = torch.zeros(2, 3, 8, 8, dtype=torch.float64), torch.tensor([1, 1])
    alpha, one = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    problems = Problems.pose(image, features, kernel, alpha, one)
    assert problems.lone.tolist() == [True, False]
    assert float(losses(problems, features, image).total[1]) == 0
