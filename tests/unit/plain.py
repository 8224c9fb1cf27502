"""A plain second implementation of the fast solver: one problem at a time, number by number, in float64.

It shares no code with the solver. Each class or function implements the docstring of one module of
`worker/methods/suppression`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import cos, exp, inf, pi, sqrt
from typing import Any

import torch
from torch import Tensor, nn

Row = list[float]


def norm(values: Sequence[float]) -> float:
    """‖·‖₂."""
    return float(sqrt(sum(value * value for value in values)))


def cosine(a: Row, b: Row) -> float:
    """Of two vectors; 0 where one of them is 0."""
    lengths, product = norm(a) * norm(b), sum(one * other for one, other in zip(a, b, strict=True))
    return float(product) / lengths if lengths else 0.0


def clip(value: float, least: float, most: float) -> float:
    """Between two numbers."""
    return min(max(value, least), most)


def fraction(plan: Any, age: int) -> float:
    """The fraction t of the present descent that is spent."""
    ends = [plan.first]
    while ends[-1] <= age:
        ends.append(ends[-1] + plan.again)
    length = plan.first if len(ends) == 1 else plan.again
    return float(1 - (ends[-1] - age - 1) / length)


def curvature(met: float, moved: float, before: float, age: int) -> float:
    """The running maximum ρ, which decays by 0.9 per evaluation."""
    now = met / max(moved, 1e-30) if age else 0.0
    return max(now, 0.9 * before, 1e-12)


@dataclass
class Multiplier:
    """The dual variable y."""

    y: Row
    residual: Row
    rho: float = 0.0
    omega: float = 0.1

    def next(self, residual: Row, moved: float, age: int, bound: float = inf) -> None:
        """Y ← project(y + σ·(2·r_t − r_{t−1})), or shortened by σ·ε."""
        change = norm([new - old for new, old in zip(residual, self.residual, strict=True)])
        self.rho = curvature(change**2 if change > 1e-14 else 0.0, moved, self.rho, age)
        if age > 1:
            self.omega = self.omega * exp(0.2 * (cosine(residual, self.residual) - 0.4))
        self.omega = clip(self.omega, 0.003, 30.0)
        sigma = self.omega / self.rho if age else 0.0
        y = [old + sigma * (2 * r - before) for old, r, before in zip(self.y, residual, self.residual, strict=True)]
        length = norm(y)
        scale = 1 / max(length, 1) if bound == inf else max(0.0, 1 - sigma * bound / max(length, 1e-30))
        self.y, self.residual = [scale * value for value in y], residual


@dataclass
class Gates:
    """The dual variables u of the other kernels, in one row."""

    u: Row
    before_relu: Row
    rho: float = 0.0

    def next(self, before_relu: Row, moved: float, age: int, plan: Any, unit: float) -> None:
        """U ← clip(u + σ·(2·Ẑ_t − Ẑ_{t−1}), 0, 1)."""
        change = [new - old for new, old in zip(before_relu, self.before_relu, strict=True)]
        self.rho = curvature(norm(change) ** 2, moved, self.rho, age)
        sigma = 10 ** fraction(plan, age) / (self.rho * unit) if age else 1e30
        self.u = [
            clip(u + sigma * (new + step), 0, 1) for u, new, step in zip(self.u, before_relu, change, strict=True)
        ]
        self.before_relu = before_relu


@dataclass
class Steps:
    """The running averages of the primal step."""

    gradient: Row
    mean: Row
    square: Row
    cosine: float = 0.0
    bias: float = 1.0
    moved: float = 0.0

    def next(  # noqa: PLR0917
        self, x: Row, gradient: Row, age: int, plan: Any, length: float, beta: float, box: Sequence[tuple[float, float]]
    ) -> Row:
        """X ← clip(shrink(x − τ·m, τ·β/N)), τ = s_t·h·N / (1 + N·√v)."""
        pixels = len(x)
        self.cosine = 0.8 * self.cosine + 0.2 * cosine(gradient, self.gradient)
        b = clip(0.65 - 0.5 * self.cosine, 0.3, 0.9)
        self.bias *= b
        self.gradient = gradient
        self.mean = [b * m + (1 - b) * g for m, g in zip(self.mean, gradient, strict=True)]
        self.square = [0.7 * v + 0.3 * g * g for v, g in zip(self.square, gradient, strict=True)]
        direction = [m / (1 - self.bias) for m in self.mean]
        strength, roots = sum(map(abs, direction)) / pixels, sum(sqrt(abs(value)) for value in direction) / pixels
        if age < plan.first and roots**2 > 0.5 * strength:
            left = max(0.0, 1 - fraction(plan, age) / 0.9)
            beta = beta * (1 + left * (clip(strength * pixels / max(beta, 1e-9), 1, 4) - 1))
        new, self.moved = [], 0.0
        for old, m, v, (low, high) in zip(x, direction, self.square, box, strict=True):
            tau = length * pixels / (1 + pixels * sqrt(v / (1 - 0.7 ** (age + 1))))
            stepped = old - tau * m
            shrunk = max(abs(stepped) - tau * beta / pixels, 0.0) * (1 if stepped > 0 else -1)
            new.append(clip(shrunk, low, high))
            self.moved += (new[-1] - old) ** 2 / tau
        return new


@dataclass
class Descents:
    """The lowest merit of each descent, and convergence."""

    best: float = inf
    previous: float = inf
    height: float = 1.0
    settled: bool = False

    def next(self, merit: float, preservation: float, age: int, plan: Any, *, resets: bool) -> None:
        """A later descent that lowers the merit by less than `gain` is the last."""
        self.best = merit if resets else min(self.best, merit)
        self.previous = merit if resets else self.previous
        if fraction(plan, age) == 1:
            self.settled = age >= plan.first and self.best > (1 - plan.gain) * self.previous
            self.previous, self.height = self.best, clip(preservation, 0.1, 1)


def step_size(plan: Any, age: int) -> float:
    """The step s_t·h of a pixel with no gradient."""
    fallen = (1 + cos(pi * fraction(plan, age))) / 2
    return float(plan.travel / sqrt(plan.first) * (0.001 + 0.999 * fallen**1.5))


def revival(plan: Any, age: int) -> float:
    """The revival threshold κ_t."""
    t = fraction(plan, age) if age < plan.first else 0.3 + 0.7 * fraction(plan, age)
    return 3 * ((1 - t) / t) ** 2


def picture(x: Tensor, space: Any) -> tuple[Tensor, Tensor]:
    """The 8-bit picture of x as the network sees it, and with the mean colour at 0."""
    levels = ((x * space.std + space.mean) * 255).round().clamp(0, 255)
    seen = ((levels.float() / 255 - space.mean) / space.std).to(x)
    return seen, torch.where(levels == (space.mean * 255).round(), torch.zeros_like(x), seen)


@dataclass
class PlainSolution:
    """The result."""

    x: Tensor
    history: list[tuple[float, float]] = field(default_factory=list)  # L_p, L
    converged: bool = False


def solve(  # noqa: PLR0917
    net: nn.Module, image: Tensor, kernel: int, alpha: float, beta: float, space: Any, plan: Any, most: float = inf
) -> PlainSolution:
    """One problem, X (1, 3, H, W); `most` is a bound on L_p."""
    before = net(image)[0]
    others = [j for j in range(len(before)) if j != kernel]
    target = before[kernel].relu()
    whole = float(before[others].relu().sum())
    unit = (alpha if alpha > 0 else 1.0) / whole
    low, high = (((level - space.mean) / space.std).expand_as(image[0]).flatten().tolist() for level in (0, 1))
    box = list(zip(low, high, strict=True))
    x: Row = image.flatten().tolist()
    nothing: Row = [0.0] * len(x)
    y = Multiplier([0.0] * target.numel(), [0.0] * target.numel())
    u = Gates([0.0] * before[others].numel(), [0.0] * before[others].numel())
    steps, descents = Steps(nothing, nothing, nothing), Descents()
    found, best = PlainSolution(image[0]), inf
    for age in range(plan.budget):
        own = torch.tensor(x, dtype=image.dtype).view_as(image)
        rounded = age >= plan.rounded_from or most < inf
        seen, weighed = picture(own, space) if rounded else (own, own)
        seen = seen.clone().requires_grad_()
        maps = net(seen)[0]
        chosen = maps.detach()[kernel]
        preservation = float((chosen.relu() - target).norm() / target.norm())
        rest = alpha * float(maps.detach()[others].relu().sum()) / whole + beta * float(weighed.abs().mean())
        merit = preservation + rest
        found.history.append((preservation, merit))
        if most < inf:
            too_far = max(0.0, preservation - (1 - 1e-4) * most)
            merit = 1e6 * (1 + too_far) if too_far else rest
        resets = age == plan.rounded_from and most == inf
        if merit < best or resets:
            best, found.x = merit, (weighed if rounded else own)[0]
        revived = (target > 0) & (chosen > -revival(plan, age) * target)
        residual = (torch.where(revived, chosen, chosen.relu()) - target) / target.norm()
        y.next(residual.flatten().tolist(), steps.moved, age, 0.99 * most if most < inf else inf)
        u.next(maps.detach()[others].flatten().tolist(), steps.moved, age, plan, unit)
        weights = torch.tensor(y.y, dtype=maps.dtype).view_as(target) * (revived | (chosen > 0))
        surrogate = (weights * maps[kernel]).sum() / target.norm()
        if alpha > 0:
            surrogate = (
                surrogate + unit * (torch.tensor(u.u, dtype=maps.dtype).view_as(maps[others]) * maps[others]).sum()
            )
        (gradient,) = torch.autograd.grad(surrogate, seen)
        length = step_size(plan, age) * descents.height / (1 + preservation)
        x = steps.next(x, gradient.flatten().tolist(), age, plan, length, beta, box)
        descents.next(merit, preservation, age, plan, resets=resets)
        if descents.settled:
            found.converged = True
            break
    return found
