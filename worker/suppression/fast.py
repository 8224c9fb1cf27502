"""The default solver: a preconditioned primal-dual method on the same loss, inside the displayable box.

‖r‖ is the maximum of ⟨y, r⟩ over ‖y‖ ≤ 1, so L_p is replaced by its multiplier y (Chambolle & Pock 2011):

    y ← project( (y + σ·(2·r_t − r_{t−1})) / (1 + σ·δ_t) )         onto the unit ball
    m ← b₁·m + (1 − b₁)·g,   v ← b₂·v + (1 − b₂)·g²               with g = ∇⟨y, r⟩ + α·∇L_s
    x ← clip( shrink( x − τ·m, τ·β/N ) )                          N = 3·H·W

r = (Ẑ_i − F_i) / ‖F_i‖ where F_i > 0, with Ẑ_i before the ReLU, and F̂_i / ‖F_i‖ elsewhere: a position of the map
that has died is pulled back, which the formula's own gradient cannot do (see `objective.gradient`).

At the start r = 0 and y = 0, so nothing but what the others and L_r ask for moves the picture, and y grows where
F̂_i begins to go: the picture stays in the basin in which F_i is kept. A subgradient of ‖r‖ would jump there.

* τ = s_t·h·N / (1 + N·√v) is a step of each pixel's own: where the gradient is small against L_r's 1/N a pixel moves h
  a step, elsewhere less, as in Adam. s_t warms up, then falls as a cosine to `last`, and waits while L_p is large.
* σ follows from the curvature that the last steps met, ρ = ‖r_t − r_{t−1}‖² / ‖x_t − x_{t−1}‖²_{1/τ}: σ = ω_t/ρ keeps
  σ·τ·‖K‖² below 1 whatever the layer. ω_t rises as the step falls: on deep layers a stiff multiplier and a long step
  kill small maps. δ_t leaks the multiplier, so that noise does not pile up in it, and falls to 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor, nn

from worker.suppression.objective import Losses, gradient, norms
from worker.suppression.problems import PixelSpace, Problems, Rows

# ‖r‖ below which a change of it is rounding and says nothing about the curvature.
NOISE = {torch.bfloat16: 1e-3, torch.float32: 1e-6, torch.float64: 1e-14}


@dataclass(frozen=True)
class FastState(Rows):
    """Where each problem stands."""

    x: Tensor  # X̂, (B, 3, H, W)
    mean: Tensor  # m, (B, 3, H, W)
    square: Tensor  # v, (B, 3, H, W)
    multiplier: Tensor  # y, (B, h, w)
    residual: Tensor  # r_{t−1}, (B, h, w)
    moved: Tensor  # ‖x_t − x_{t−1}‖²_{1/τ}, (B,)
    curvature: Tensor  # ρ, (B,)


@dataclass(frozen=True)
class FastSolver:
    """One default for every layer; nothing is tuned by hand.

    Args:
        space: X̂ stays inside its displayable box.
        budget: gradient evaluations; the step falls over them.
    """

    space: PixelSpace
    budget: int = 400
    travel: float = 0.12  # h, in normalised units
    warm_up: float = 0.1  # share of the budget over which the step grows
    last: float = 0.02  # what is left of the step at the end
    patience: float = 1.0  # the step waits where L_p is above about this
    stiffness: tuple[float, float] = (0.03, 0.6)  # ω at the start and at the end
    leak: float = 0.6  # δ at the start
    memory: float = 0.5  # b₁
    square_memory: float = 0.9  # b₂
    curvature_memory: float = 0.98

    def start(self, problems: Problems) -> FastState:
        """X̂ = X inside the box, multiplier 0."""
        zeros = torch.zeros_like(problems.image)
        none = torch.zeros_like(problems.target_norm)
        return FastState(
            x=self._boxed(problems.image),
            mean=zeros,
            square=zeros,
            multiplier=torch.zeros_like(problems.target),
            residual=torch.zeros_like(problems.target),
            moved=none,
            curvature=none,
        )

    def step(
        self, network: nn.Module, problems: Problems, state: FastState, age: Tensor, precision: torch.dtype
    ) -> tuple[Losses, FastState]:
        """One evaluation, one dual and one primal step. Returns the losses at the old X̂."""
        dual: dict[str, Tensor] = {}

        def multiplier(residual: Tensor) -> Tensor:
            dual.update(self._dual(state, residual, age, NOISE[precision]))
            return dual["multiplier"]

        now, slope = gradient(network, problems, state.x, multiplier, precision, revive=True)
        mean = self.memory * state.mean + (1 - self.memory) * slope
        square = self.square_memory * state.square + (1 - self.square_memory) * slope.square()
        step = self._step_size(square, age, now.preservation)
        unbiased = mean / _column(1 - self.memory ** (age + 1))
        x = self._boxed(_shrink(state.x - step * unbiased, step * _column(problems.beta) / state.x[0].numel()))
        moved = ((x - state.x).square() / step).sum(dim=(1, 2, 3))
        return now, FastState(x=x, mean=mean, square=square, moved=moved, **dual)

    def converged(self, before: FastState, after: FastState) -> Tensor:
        """(B,) bool: X̂ stands still to a thousandth of an 8-bit level, and so does what pulls at it."""
        largest = (after.x - before.x).abs().amax(dim=(1, 2, 3))
        return (largest < 1e-3 / 255) & (norms(after.multiplier - before.multiplier) < 1e-4)

    def _dual(self, state: FastState, residual: Tensor, age: Tensor, noise: float) -> dict[str, Tensor]:
        change = norms(residual - state.residual).square()
        met = torch.where((age > 0) & (change > noise**2), change / state.moved.clamp_min(1e-30), 0)
        curvature = torch.maximum(met, self.curvature_memory * state.curvature)
        first, last = self.stiffness
        share = self._share(age)
        sigma = torch.where(age > 0, first * (last / first) ** share / curvature.clamp_min(1e-12), 0)[:, None, None]
        leak = (self.leak * (1 - share) ** 4)[:, None, None]
        y = (state.multiplier + sigma * (2 * residual - state.residual)) / (1 + sigma * leak)
        y = y / norms(y).clamp_min(1)[:, None, None]
        return {"multiplier": y, "residual": residual, "curvature": curvature}

    def _step_size(self, square: Tensor, age: Tensor, preservation: Tensor) -> Tensor:
        pixels = square[0].numel()
        share = self._share(age)
        cosine = (0.5 * (1 + torch.cos(pi * share))).sqrt()
        schedule = (self.last + (1 - self.last) * cosine) * (share / self.warm_up).clamp_max(1)
        schedule = schedule * self.patience / (self.patience + preservation)
        root = (square / _column(1 - self.square_memory ** (age + 1))).sqrt()
        return _column(self.travel * schedule) * pixels / (1 + pixels * root)

    def _share(self, age: Tensor) -> Tensor:
        return (age + 1) / self.budget

    def _boxed(self, x: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(x, self.space.low.to(x.dtype)), self.space.high.to(x.dtype))


def _shrink(x: Tensor, threshold: Tensor) -> Tensor:
    """The proximal map of threshold·|x|."""
    return x.sign() * (x.abs() - threshold).clamp_min(0)


def _column(rows: Tensor) -> Tensor:
    """(B,) → (B, 1, 1, 1)."""
    return rows[:, None, None, None]
