"""The fast solver once more, one problem at a time and number by number: slow, in float64, of no code of the solver's.

Each function is the rule of one module of `worker/methods/suppression`, as its docstring prints it.
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


def share(plan: Any, age: int) -> float:
    """t: what is spent of the present descent."""
    ends = [plan.first]
    while ends[-1] <= age:
        ends.append(ends[-1] + plan.again)
    length = plan.first if len(ends) == 1 else plan.again
    return float(1 - (ends[-1] - age - 1) / length)


def curvature(met: float, moved: float, before: float, age: int) -> float:
    """ρ: the largest that was met, forgotten slowly."""
    now = met / max(moved, 1e-30) if age else 0.0
    return max(now, 0.9 * before, 1e-12)


@dataclass
class Multiplier:
    """y."""

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
    """u of the other kernels, all in one row."""

    u: Row
    before_relu: Row
    rho: float = 0.0

    def next(self, before_relu: Row, moved: float, age: int, plan: Any, unit: float) -> None:
        """U ← clip(u + σ·(2·Ẑ_t − Ẑ_{t−1}), 0, 1)."""
        change = [new - old for new, old in zip(before_relu, self.before_relu, strict=True)]
        self.rho = curvature(norm(change) ** 2, moved, self.rho, age)
        sigma = 10 ** share(plan, age) / (self.rho * unit) if age else 1e30
        self.u = [
            clip(u + sigma * (new + step), 0, 1) for u, new, step in zip(self.u, before_relu, change, strict=True)
        ]
        self.before_relu = before_relu


@dataclass
class Steps:
    """m, v and what the step of X̂ needs of them."""

    slope: Row
    mean: Row
    square: Row
    agreement: float = 0.0
    forgotten: float = 1.0
    moved: float = 0.0

    def next(  # noqa: PLR0917
        self, x: Row, slope: Row, age: int, plan: Any, length: float, beta: float, box: Sequence[tuple[float, float]]
    ) -> Row:
        """X ← clip(shrink(x − τ·m, τ·β/N)), τ = s_t·h·N / (1 + N·√v)."""
        pixels = len(x)
        self.agreement = 0.8 * self.agreement + 0.2 * cosine(slope, self.slope)
        b = clip(0.65 - 0.5 * self.agreement, 0.3, 0.9)
        self.forgotten *= b
        self.slope = slope
        self.mean = [b * m + (1 - b) * g for m, g in zip(self.mean, slope, strict=True)]
        self.square = [0.7 * v + 0.3 * g * g for v, g in zip(self.square, slope, strict=True)]
        pull = [m / (1 - self.forgotten) for m in self.mean]
        loud, roots = sum(map(abs, pull)) / pixels, sum(sqrt(abs(value)) for value in pull) / pixels
        if age < plan.first and roots**2 > 0.5 * loud:
            left = max(0.0, 1 - share(plan, age) / 0.9)
            beta = beta * (1 + left * (clip(loud * pixels / max(beta, 1e-9), 1, 4) - 1))
        new, self.moved = [], 0.0
        for old, m, v, (low, high) in zip(x, pull, self.square, box, strict=True):
            tau = length * pixels / (1 + pixels * sqrt(v / (1 - 0.7 ** (age + 1))))
            walked = old - tau * m
            shrunk = max(abs(walked) - tau * beta / pixels, 0.0) * (1 if walked > 0 else -1)
            new.append(clip(shrunk, low, high))
            self.moved += (new[-1] - old) ** 2 / tau
        return new


@dataclass
class Descents:
    """What they have reached."""

    best: float = inf
    descended: float = inf
    height: float = 1.0
    settled: bool = False

    def next(self, merit: float, preservation: float, age: int, plan: Any, *, forgets: bool) -> None:
        """A later descent that gains less than `gain` is the last."""
        self.best = merit if forgets else min(self.best, merit)
        self.descended = merit if forgets else self.descended
        if share(plan, age) == 1:
            self.settled = age >= plan.first and self.best > (1 - plan.gain) * self.descended
            self.descended, self.height = self.best, clip(preservation, 0.1, 1)


def step_size(plan: Any, age: int) -> float:
    """s_t·h."""
    fallen = (1 + cos(pi * share(plan, age))) / 2
    return float(plan.travel / sqrt(plan.first) * (0.001 + 0.999 * fallen**1.5))


def hope(plan: Any, age: int) -> float:
    """κ_t."""
    t = share(plan, age) if age < plan.first else 0.3 + 0.7 * share(plan, age)
    return 3 * ((1 - t) / t) ** 2


def picture(x: Tensor, space: Any) -> tuple[Tensor, Tensor]:
    """The 8-bit picture of x as the network sees it, and with the mean colour at 0."""
    levels = ((x * space.std + space.mean) * 255).round().clamp(0, 255)
    seen = ((levels.float() / 255 - space.mean) / space.std).to(x)
    return seen, torch.where(levels == (space.mean * 255).round(), torch.zeros_like(x), seen)


@dataclass
class Found:
    """What the slow solver ends with."""

    x: Tensor
    history: list[tuple[float, float]] = field(default_factory=list)  # L_p, L
    converged: bool = False


def solve(  # noqa: PLR0917
    net: nn.Module, image: Tensor, kernel: int, alpha: float, beta: float, space: Any, plan: Any, most: float = inf
) -> Found:
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
    found, best = Found(image[0]), inf
    for age in range(plan.budget):
        own = torch.tensor(x, dtype=image.dtype).view_as(image)
        faithful = age >= plan.faithful or most < inf
        seen, weighed = picture(own, space) if faithful else (own, own)
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
        forgets = age == plan.faithful and most == inf
        if merit < best or forgets:
            best, found.x = merit, (weighed if faithful else own)[0]
        hoped = (target > 0) & (chosen > -hope(plan, age) * target)
        residual = (torch.where(hoped, chosen, chosen.relu()) - target) / target.norm()
        y.next(residual.flatten().tolist(), steps.moved, age, 0.99 * most if most < inf else inf)
        u.next(maps.detach()[others].flatten().tolist(), steps.moved, age, plan, unit)
        pulled = torch.tensor(y.y, dtype=maps.dtype).view_as(target) * (hoped | (chosen > 0))
        surrogate = (pulled * maps[kernel]).sum() / target.norm()
        if alpha > 0:
            surrogate = (
                surrogate + unit * (torch.tensor(u.u, dtype=maps.dtype).view_as(maps[others]) * maps[others]).sum()
            )
        (slope,) = torch.autograd.grad(surrogate, seen)
        length = step_size(plan, age) * descents.height / (1 + preservation)
        x = steps.next(x, slope.flatten().tolist(), age, plan, length, beta, box)
        descents.next(merit, preservation, age, plan, forgets=forgets)
        if descents.settled:
            found.converged = True
            break
    return found
