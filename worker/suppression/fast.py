"""The default solver: a preconditioned primal-dual method on the same loss, inside the displayable box.

‖r‖ is the maximum of ⟨y, r⟩ over ‖y‖ ≤ 1, and F̂_j = max(Ẑ_j, 0) that of u·Ẑ_j over 0 ≤ u ≤ 1. So L_p and L_s are
replaced by their multipliers y and u (Chambolle & Pock 2011), with Ẑ the layer before its ReLU:

    y ← project( y + σ_y·(2·r_t − r_{t−1}) )                      onto the unit ball
    u ← clip( u + σ_u·(2·Ẑ_t − Ẑ_{t−1}), 0, 1 )
    m ← b·m + (1 − b)·g,   v ← 0.7·v + 0.3·g²                      with g = ∇( ⟨y, r⟩ + α·Σ_{j≠i} ⟨u_j, Ẑ_j⟩ / Σ‖F_j‖₁ )
    x ← clip( shrink( x − τ·m, τ·β/N ) )                          N = 3·H·W

At the start r = 0 and y = 0, so nothing but what the others and L_r ask for moves the picture, and y grows where
F̂_i begins to go: the picture stays in the basin in which F_i is kept. A subgradient of ‖r‖ would jump there. And at
the end most of the other kernels' responses stand at 0, where a subgradient of F̂_j flickers between 0 and 1; u settles.

* r = (Ẑ_i − F_i) / ‖F_i‖ where F_i > 0 and Ẑ_i > −κ_t·F_i, and (F̂_i − F_i) / ‖F_i‖ elsewhere: a position of the map
  that has died is pulled back, which the formula's own gradient cannot do, unless it is far gone. κ_t falls to 0, so
  that in the end the loss is the formula's own.
* τ = s_t·h·N / (1 + N·√v) is a step of each pixel's own: where the gradient is small against L_r's 1/N a pixel moves h
  a step, elsewhere less, as in Adam. s_t falls in a descent of a given number of evaluations; shorter descents from a
  lower step follow, until one of them gains next to nothing.
* σ = ω/ρ, where ρ = ‖r_t − r_{t−1}‖² / ‖x_t − x_{t−1}‖²_{1/τ} is the curvature that the last steps met, keeps σ·τ·‖K‖²
  bounded whatever the layer. How stiff y should be, ω, differs between problems by a factor of 30, and r tells: one
  that swings to and fro, cos(r_t, r_{t−1}) < 0.4, asks for less, one that drifts for more.
* The momentum b follows the same way from cos(g_t, g_{t−1}): gradients that alternate are averaged over more steps.
* The later descents, or the last quarter where there is one only, show the network the 8-bit picture of x, and X̂ is the
  best of these pictures: rounding alone can add 45 % to the loss of an x that is near its end.
* In a problem of many layers the pull of the pixels is loud, mean |m| several times β/N, nearly everywhere, and what it
  puts into x the shrinking cannot take away in a short descent. So at first the threshold is that of the mean |m|, at
  most four times its own; it falls to its own, β, in the first nine tenths of the first descent. Where a few pixels are
  pulled and most are not, (mean √|m|)² < ½·mean |m|, the pull is what holds the map, and nothing is louder.
* Where X̂ may only remove, the box is that between X and the mean colour: then it can show nothing that X does not.
* Where γ·L_e is in the loss (taps.py) its subgradient is part of g. Under a bound L_e ≤ ε γ is that constraint's
  multiplier: it grows by a factor while L_e is above the bound and shrinks while it is below, in the second half of
  each descent; before, long steps invent what short ones take back.
* Under a bound L_p ≤ ε, y is that constraint's multiplier: it is not projected but shortened by σ_y·ε. Where the bound
  is one of SSIM, ε follows: it shrinks while SSIM is below the bound and grows while above.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import pi, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from worker.suppression.objective import BROKEN, Losses, gradient, norms
from worker.suppression.problems import PixelSpace, Problems, Rows, none_of

# ‖r‖ below which a change of it is rounding and says nothing about the curvature.
NOISE = {torch.bfloat16: 1e-3, torch.float32: 1e-6, torch.float64: 1e-14}
TOLD = ("first", "again", "gain", "faithful", "longest")  # settings that problems of one batch may differ in
EVERYWHERE = 0.5  # (mean √|m|)² over mean |m|: 0.86 of noise, 0.67 to 0.85 on VGG-16, 0.33 where few pixels are pulled
ENOUGH = 1e30  # a dual step that takes u to 0 or 1 at once

# One descent; as many as gain something; longer ones.
EFFORTS: dict[str, dict[str, Any]] = {
    "quick": {"budget": 100, "first": 100, "faithful": 75, "travel": 5.0},
    "standard": {},
    "thorough": {"budget": 2000, "first": 400, "again": 200, "gain": 0.001, "faithful": 400},
}


@dataclass(frozen=True)
class FastState(Rows):
    """Where each problem stands."""

    x: Tensor  # X̂, (B, 3, H, W)
    slope: Tensor  # g_{t−1}, (B, 3, H, W)
    mean: Tensor  # m, (B, 3, H, W)
    forgotten: Tensor  # Π b: the weight of 0 in m, (B,)
    agreement: Tensor  # cos(g_t, g_{t−1}), averaged, (B,)
    square: Tensor  # v, (B, 3, H, W)
    moved: Tensor  # ‖x_t − x_{t−1}‖²_{1/τ}, (B,)
    multiplier: Tensor  # y, (B, h, w)
    residual: Tensor  # r_{t−1}, (B, h, w)
    curvature: Tensor  # ρ of r, (B,)
    stiffness: Tensor  # ω of y, (B,)
    gates: Tensor  # u, (B, C, h, w)
    before_relu: Tensor  # Ẑ_{t−1}, (B, C, h, w)
    others_curvature: Tensor  # ρ of Ẑ_j, j ≠ i, (B,)
    best: Tensor  # the lowest loss that was seen, (B,)
    descended: Tensor  # what it was when the last descent ended, (B,)
    height: Tensor  # where the step of this descent begins, (B,)
    bound: Tensor  # ε: what L_p may be, (B,)
    price: Tensor  # γ: the weight of L_e, or the multiplier of its bound, (B,)
    first: Tensor  # what the solver was told, (B,) each
    again: Tensor
    gain: Tensor
    faithful: Tensor
    longest: Tensor
    still: Tensor  # bool: neither X̂ nor y moved, (B,)
    settled: Tensor  # bool: a descent ended that gained next to nothing, (B,)


@dataclass(frozen=True)
class FastSolver:
    """One default for every layer; nothing is tuned by hand.

    Args:
        space: X̂ stays inside its displayable box.
        budget: the most gradient evaluations.
        first: evaluations of the first descent.
        again: evaluations of each later one.
        gain: a later descent that lowers the loss by less than this share is the last.
    """

    space: PixelSpace
    budget: int = 1000
    first: int = 200
    again: int = 100
    gain: float = 0.003
    faithful: int = 200  # evaluation from which the network is shown the 8-bit picture
    travel: float = 3.5  # h·√first, in normalised units: a short descent takes longer steps
    last: float = 0.001  # what is left of the step at the end
    height: float = 0.1  # where the step of a later descent begins, or at L_p where more of the map is lost
    hope: float = 3.0  # κ half-way
    louder: tuple[float, float] = (4.0, 0.9)  # times β at most at the start, and the share of the descent that it lasts
    swing: float = 0.4  # cos(r_t, r_{t−1}) at which ω is right
    learning: float = 0.2  # how fast ω follows
    stiffness: tuple[float, float, float] = (0.003, 0.1, 30.0)  # ω of y: least, at the start, most
    others_stiffness: tuple[float, float] = (1.0, 10.0)  # ω of u at the start and the end of a descent
    memory: tuple[float, float, float] = (0.3, 0.65, 0.9)  # b: least, of gradients that are independent, most
    square_memory: float = 0.7
    curvature_memory: float = 0.9
    inside: float = 0.99  # ε of the bound of L_p, about which the iterates swing
    following: float = 0.03  # how fast ε follows the SSIM
    inside_below: float = 0.96  # of the bound of L_e, about which the iterates swing
    price: tuple[float, float, float] = (0.01, 1.0, 100.0)  # γ under a bound of L_e: least, at the start, most
    pricing: float = 0.2  # how fast it follows L_e at the end of a descent

    @classmethod
    def of(cls, space: PixelSpace, effort: str = "standard", iterations: int | None = None) -> FastSolver:
        """By how long it is to try (`quick`, `standard`, `thorough`), or one descent of `iterations` evaluations."""
        if iterations is not None:
            return cls(space, budget=iterations, first=iterations, faithful=iterations - iterations // 4)
        return cls(space, **EFFORTS[effort])

    @property
    def longest(self) -> float:
        """The longest step of a pixel, h, in normalised units."""
        return self.travel / sqrt(self.first)

    def start(self, problems: Problems) -> FastState:
        """X̂ = X inside the box, multipliers 0."""
        zeros = torch.zeros_like(problems.image)
        none = torch.zeros_like(problems.target_norm)
        flat = torch.zeros_like(problems.target)
        layer = flat[:, None].expand(-1, int(problems.kernel_count.max()), -1, -1)
        layer = layer.contiguous(memory_format=torch.channels_last)  # as the networks' maps are: a third of the time
        return FastState(
            x=self._boxed(problems, problems.image),
            slope=zeros,
            mean=zeros,
            forgotten=torch.ones_like(none),
            agreement=none,
            square=zeros,
            moved=none,
            multiplier=flat,
            residual=flat,
            curvature=none,
            stiffness=torch.full_like(none, self.stiffness[1]),
            gates=layer,
            before_relu=layer,
            others_curvature=none,
            best=torch.full_like(none, torch.inf),
            descended=torch.full_like(none, torch.inf),
            height=torch.ones_like(none),
            bound=self._first_bound(problems),
            price=torch.where(problems.max_invention.isfinite(), self.price[1], problems.gamma),
            **{name: torch.full_like(none, getattr(self, name), dtype=torch.float32) for name in TOLD},
            still=torch.zeros_like(none, dtype=torch.bool),
            settled=torch.zeros_like(none, dtype=torch.bool),
        )

    def step(
        self, network: nn.Module, problems: Problems, state: FastState, age: Tensor, precision: torch.dtype
    ) -> tuple[Losses, FastState]:
        """One evaluation, one dual and one primal step. Returns the losses at the old X̂."""
        dual: dict[str, Tensor] = {}

        def pull(before_relu: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
            hoped = (problems.target > 0) & (chosen > -self._hope(state, age) * problems.target)
            seen = torch.where(hoped, chosen, chosen.clamp_min(0))
            residual = (seen - problems.target) / problems.target_norm[:, None, None]
            dual.update(self._multiplier(problems, state, residual, age, NOISE[precision]))
            dual.update(self._gates(problems, state, before_relu, age))
            return dual["multiplier"] * (hoped | (chosen > 0)), dual["gates"]

        shown, weighed = self._shown(problems, state, state.x, age)
        priced = replace(problems, gamma=state.price)
        now, slope = gradient(network, priced, shown, pull, precision, weighed)
        primal = self._primal(problems, state, slope, age, now.preservation)
        turned = norms(dual["multiplier"] - state.multiplier)
        largest = (primal["x"] - state.x).abs().amax(dim=(1, 2, 3))
        still = (largest < 1e-3 / 255) & (turned < 1e-4)  # a thousandth of an 8-bit level
        descents = self._descents(state, now, age, self.forgets(problems, state, age))
        told = {name: getattr(state, name) for name in TOLD}
        bound = self._bound(problems, state, now)
        price = self._price(problems, state, now, age)
        return now, FastState(**primal, **dual, **descents, **told, bound=bound, price=price, still=still)

    def converged(self, state: FastState) -> Tensor:
        """(B,) bool: X̂ and what pulls at it stand still, or a whole descent gained next to nothing."""
        return state.still | state.settled

    def forgets(self, problems: Problems, state: FastState, age: Tensor) -> Tensor:
        """(B,) bool: the first evaluation of the 8-bit picture, whose losses earlier ones cannot be compared with."""
        return (age == state.faithful) & ~problems.constrained

    def handed_out(self, problems: Problems, state: FastState, x: Tensor, age: Tensor) -> Tensor:
        """X̂ of the best iterate: its 8-bit picture, with the mean colour at 0, once that is what is evaluated."""
        return self._shown(problems, state, x, age - 1)[1]

    def _primal(
        self, problems: Problems, state: FastState, slope: Tensor, age: Tensor, preservation: Tensor
    ) -> dict[str, Tensor]:
        """The step of X̂ along m, its shrinking towards the mean colour, and the box."""
        agreement = 0.8 * state.agreement + 0.2 * _cosine(slope, state.slope)
        least, middle, most = self.memory
        memory = _column((middle - 0.5 * agreement).clamp(least, most))
        mean = memory * state.mean + (1 - memory) * slope
        forgotten = memory[:, 0, 0, 0] * state.forgotten
        square = self.square_memory * state.square + (1 - self.square_memory) * slope.square()
        step = self._step_size(square, state, age, preservation)
        pull = mean / _column(1 - forgotten)
        beta = _column(self._beta(problems, pull, state, age))
        x = self._boxed(problems, _shrink(state.x - step * pull, step * beta / slope[0].numel()))
        return {
            "x": x,
            "slope": slope,
            "mean": mean,
            "forgotten": forgotten,
            "agreement": agreement,
            "square": square,
            "moved": ((x - state.x).square() / step).sum(dim=(1, 2, 3)),
        }

    def _beta(self, problems: Problems, pull: Tensor, state: FastState, age: Tensor) -> Tensor:
        """The weight of L_r that this step shrinks by, (B,): louder at first where the pixels' pull is."""
        most, lasting = self.louder
        mean, roots = pull.abs().mean(dim=(1, 2, 3)), pull.abs().sqrt().mean(dim=(1, 2, 3))
        loud = mean * pull[0].numel() / problems.beta.clamp_min(1e-9)
        everywhere = roots.square() > EVERYWHERE * mean
        left = torch.where(everywhere & (age < state.first), 1 - self._share(state, age) / lasting, 0).clamp_min(0)
        return problems.beta * (1 + left * (loud.clamp(1, most) - 1))

    def _multiplier(
        self, problems: Problems, state: FastState, residual: Tensor, age: Tensor, noise: float
    ) -> dict[str, Tensor]:
        """The dual step of y, and how stiff it is to be."""
        change = norms(residual - state.residual).square()
        met = torch.where(change > noise**2, change, 0)
        curvature = self._curvature(met, state.curvature, state.moved, age)
        least, _, most = self.stiffness
        swing = torch.where(age > 1, _cosine(residual, state.residual) - self.swing, 0)
        stiffness = (state.stiffness * torch.exp(self.learning * swing)).clamp(least, most)
        sigma = torch.where(age > 0, stiffness / curvature, 0)
        y = state.multiplier + sigma[:, None, None] * (2 * residual - state.residual)
        length = norms(y)
        shorter = (1 - sigma * state.bound / length.clamp_min(1e-30)).clamp_min(0)
        return {
            "multiplier": y * torch.where(problems.bounded, shorter, 1 / length.clamp_min(1))[:, None, None],
            "residual": residual,
            "curvature": curvature,
            "stiffness": stiffness,
        }

    def _gates(self, problems: Problems, state: FastState, before_relu: Tensor, age: Tensor) -> dict[str, Tensor]:
        """The dual step of u, which begins as the ReLU's own derivative."""
        rows = torch.arange(len(problems), device=before_relu.device)
        change = before_relu - state.before_relu
        change[rows, problems.kernel] = 0  # u_i does not count
        kind = state.moved.dtype
        met = _squares(change).to(kind)
        curvature = self._curvature(met, state.others_curvature, state.moved, age)
        first, last = self.others_stiffness
        stiffness = first * (last / first) ** self._share(state, age)
        unit = problems.others_sum / torch.where(problems.alpha > 0, problems.alpha, 1)
        sigma = torch.where(age > 0, stiffness / curvature * unit, ENOUGH)
        ahead = change.add_(before_relu)  # 2·Ẑ_t − Ẑ_{t−1}
        gates = ahead.to(kind).mul_(_column(sigma)).add_(state.gates).clamp_(0, 1)
        return {"gates": gates, "before_relu": before_relu, "others_curvature": curvature}

    def _curvature(self, met: Tensor, before: Tensor, moved: Tensor, age: Tensor) -> Tensor:
        """ρ: the largest that was met, forgotten slowly."""
        now = torch.where(age > 0, met / moved.clamp_min(1e-30), 0)
        return torch.maximum(now, self.curvature_memory * before).clamp_min(1e-12)

    def _descents(self, state: FastState, now: Losses, age: Tensor, forgets: Tensor) -> dict[str, Tensor]:
        """What the descents have reached, whether the last of them was worth it, and how high the next one begins."""
        best = torch.where(forgets, now.merit, torch.fmin(state.best, now.merit))
        descended = torch.where(forgets, now.merit, state.descended)
        ends = self._share(state, age) == 1
        return {
            "best": best,
            "descended": torch.where(ends, best, descended),
            "height": torch.where(ends, now.preservation.clamp(self.height, 1), state.height),
            "settled": ends & (age >= state.first) & (best > (1 - state.gain) * descended) & (best < BROKEN),
        }

    def _first_bound(self, problems: Problems) -> Tensor:
        """ε at the start, (B,). SSIM falls with the square of L_p."""
        guess = (1 - problems.min_ssim).clamp_min(0).sqrt()
        return torch.where(problems.min_ssim > -1, guess, 1).minimum(self.inside * problems.max_preservation)

    def _bound(self, problems: Problems, state: FastState, now: Losses) -> Tensor:
        """ε, (B,), after SSIM was measured: larger only where L_p makes use of it."""
        room = ((now.ssim - problems.min_ssim) / (1 - problems.min_ssim).clamp_min(1e-6)).clamp(-1, 1)
        room = torch.where(now.preservation > 0.8 * state.bound, room, room.clamp_max(0))
        follows = (state.bound * torch.exp(self.following * room)).clamp(1e-6, 1)
        follows = follows.minimum(self.inside * problems.max_preservation)
        return torch.where(problems.min_ssim > -1, follows, state.bound)

    def _price(self, problems: Problems, state: FastState, now: Losses, age: Tensor) -> Tensor:
        """γ, (B,), after L_e was measured: where L_e is bounded it follows, the faster the shorter the steps are."""
        least, _, most = self.price
        over = (now.invention / (self.inside_below * problems.max_invention) - 1).clamp(-1, 1)
        pace = self.pricing * (2 * self._share(state, age) - 1).clamp_min(0)
        follows = (state.price * torch.exp(pace * over)).clamp(least, most)
        return torch.where(problems.max_invention.isfinite(), follows, state.price)

    def _share(self, state: FastState, age: Tensor) -> Tensor:
        """t, (B,): the share of the present descent that is spent, in (0, 1]."""
        later = (age - state.first) % state.again + 1
        return torch.where(age < state.first, (age + 1) / state.first, later / state.again)

    def _hope(self, state: FastState, age: Tensor) -> Tensor:
        """κ_t, (B, 1, 1)."""
        share = self._share(state, age)
        share = torch.where(age < state.first, share, 0.3 + 0.7 * share)
        return (self.hope * ((1 - share) / share) ** 2)[:, None, None]

    def _step_size(self, square: Tensor, state: FastState, age: Tensor, preservation: Tensor) -> Tensor:
        """τ, (B, 3, H, W). It waits while L_p is large."""
        cosine = 0.5 * (1 + torch.cos(pi * self._share(state, age)))
        schedule = (self.last + (1 - self.last) * cosine**1.5) / (1 + preservation)
        longest = state.longest * state.height
        pixels = square[0].numel()
        root = (square / _column(1 - self.square_memory ** (age + 1))).sqrt()
        return _column(longest * schedule) * pixels / (1 + pixels * root)

    def _shown(self, problems: Problems, state: FastState, x: Tensor, age: Tensor) -> tuple[Tensor, Tensor]:
        """What the network is shown and what L_r is taken of: X̂, or its 8-bit picture, which is what is delivered."""
        rounded = problems.constrained | (age >= state.faithful)
        if none_of(rounded):
            return x, x
        picture = self.space.to_bytes(x)
        shown, weighed = self.space.from_bytes(picture).to(x), self.space.weighed(picture).to(x)
        return torch.where(_column(rounded), shown, x), torch.where(_column(rounded), weighed, x)

    def _boxed(self, problems: Problems, x: Tensor) -> Tensor:
        """What can be displayed; between X and the mean colour where nothing may be added."""
        low, high = self.space.low.to(x.dtype), self.space.high.to(x.dtype)
        if not none_of(problems.removing):
            removing, image = _column(problems.removing), problems.image
            low = torch.where(removing, image.clamp_max(0), low)
            high = torch.where(removing, image.clamp_min(0), high)
        return torch.minimum(torch.maximum(x, low), high)


def _shrink(x: Tensor, threshold: Tensor) -> Tensor:
    """The proximal map of threshold·|x|."""
    return x.sign() * (x.abs() - threshold).clamp_min(0)


def _squares(maps: Tensor) -> Tensor:
    """‖·‖₂² of each row, (B,)."""
    lengths: Tensor = torch.linalg.vector_norm(maps, dim=_each(maps))
    return lengths.square()


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Of each row's a and b, (B,); 0 where one of them is 0."""
    lengths = _squares(a) * _squares(b)
    return (a * b).sum(dim=_each(a)) / lengths.sqrt().clamp_min(torch.finfo(a.dtype).tiny)


def _each(maps: Tensor) -> tuple[int, ...]:
    """All dimensions but the first. Flattening them would copy maps that are channels_last."""
    return tuple(range(1, maps.ndim))


def _column(rows: Tensor) -> Tensor:
    """(B,) → (B, 1, 1, 1)."""
    return rows[:, None, None, None]
