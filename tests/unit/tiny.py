"""Small networks, problems and both solvers, for tests of the solvers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from worker.methods.suppression import FastSolver, PixelSpace, Problems, ReferenceSolver, Schedule, solve

SIDE = 12


def network(seed: int = 0, width: int = 5) -> nn.Sequential:
    """Two convolutions with a ReLU and a pooling between them, random, float64, frozen: images → Z."""
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, width, 3, padding=1))
    return layers.double().requires_grad_(False).eval()


def space() -> PixelSpace:
    """A normalised space with three different channels."""
    return PixelSpace(
        *(torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)))
    )


def images(count: int, seed: int = 0, side: int = SIDE) -> Tensor:
    """(count, 3, side, side), normalised, inside the box."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(count, 3, side, side, generator=generator, dtype=torch.float64)
    return (pixels - space().mean) / space().std


def problems(net: nn.Module, count: int, seed: int = 0) -> Problems:
    """Problems on different images and kernels with different weights, none silent."""
    generator = torch.Generator().manual_seed(seed + 100)
    image = images(count, seed)
    features = net(image).clamp_min(0)
    kernel = features.mean(dim=(2, 3)).argsort(dim=1, descending=True)[torch.arange(count), torch.arange(count) % 2]
    alpha, beta = 0.5 + torch.rand(2, count, generator=generator, dtype=torch.float64)
    return Problems.pose(image, features, kernel, alpha, beta)


FAST = FastSolver(space(), Schedule(budget=200))
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
