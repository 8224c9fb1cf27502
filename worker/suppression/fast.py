"""The default solver: a preconditioned primal-dual method on the same loss, inside the displayable box.

‖r‖ is the maximum of ⟨y, r⟩ over ‖y‖ ≤ 1, and F̂_j = max(Ẑ_j, 0) that of u·Ẑ_j over 0 ≤ u ≤ 1. So L_p and L_s are
replaced by their multipliers y and u (Chambolle & Pock 2011), with Ẑ the layer before its ReLU:

    y ← project( y + σ_y·(2·r_t − r_{t−1}) )                      onto the unit ball
    u ← clip( u + σ_u·(2·Ẑ_t − Ẑ_{t−1}), 0, 1 )
    m ← b₁·m + (1 − b₁)·g,   v ← b₂·v + (1 − b₂)·g²               with g = ∇( ⟨y, r⟩ + α·Σ_{j≠i} ⟨u_j, Ẑ_j⟩ / Σ‖F_j‖₁ )
    x ← clip( shrink( x − τ·m, τ·β/N ) )                          N = 3·H·W

At the start r = 0 and y = 0, so nothing but what the others and L_r ask for moves the picture, and y grows where
F̂_i begins to go: the picture stays in the basin in which F_i is kept. A subgradient of ‖r‖ would jump there. And at
the end most of the other kernels' responses stand at 0, where a subgradient of F̂_j flickers between 0 and 1; u settles.

* r = (Ẑ_i − F_i) / ‖F_i‖ where F_i > 0 and Ẑ_i > −κ_t·F_i, and (F̂_i − F_i) / ‖F_i‖ elsewhere: a position of the map
  that has died is pulled back, which the formula's own gradient cannot do, unless it is far gone. κ_t falls to 0, so
  that in the end the loss is the formula's own.
* τ = s_t·h·N / (1 + N·√v) is a step of each pixel's own: where the gradient is small against L_r's 1/N a pixel moves h
  a step, elsewhere less, as in Adam. s_t warms up, then falls as a cosine to `last`, and waits while L_p is large.
* σ follows from the curvature that the last steps met, ρ = ‖r_t − r_{t−1}‖² / ‖x_t − x_{t−1}‖²_{1/τ}: σ = ω_t/ρ keeps
  σ·τ·‖K‖² bounded whatever the layer. ω_t rises as the step falls: on deep layers a stiff multiplier and a long step
  kill small maps.
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
ENOUGH = 1e30  # a dual step that takes u to 0 or 1 at once


@dataclass(frozen=True)
class FastState(Rows):
    """Where each problem stands."""

    x: Tensor  # X̂, (B, 3, H, W)
    mean: Tensor  # m, (B, 3, H, W)
    square: Tensor  # v, (B, 3, H, W)
    moved: Tensor  # ‖x_t − x_{t−1}‖²_{1/τ}, (B,)
    multiplier: Tensor  # y, (B, h, w)
    residual: Tensor  # r_{t−1}, (B, h, w)
    curvature: Tensor  # ρ of r, (B,)
    gates: Tensor  # u, (B, C, h, w)
    before_relu: Tensor  # Ẑ_{t−1}, (B, C, h, w)
    others_curvature: Tensor  # ρ of Ẑ_j, j ≠ i, (B,)


@dataclass(frozen=True)
class FastSolver:
    """One default for every layer; nothing is tuned by hand.

    Args:
        space: X̂ stays inside its displayable box.
        budget: gradient evaluations; the step falls over them.
    """

    space: PixelSpace
    budget: int = 400
    travel: float = 3.0  # h·√budget, in normalised units: a short run takes longer steps
    warm_up: float = 0.1  # share of the budget over which the step grows
    last: float = 0.001  # what is left of the step at the end
    patience: float = 200.0  # the step waits where L_p is above about patience / budget
    stiffness: tuple[float, float] = (0.1, 2.0)  # ω of y at the start and at the end
    others_stiffness: tuple[float, float] = (0.3, 2.0)  # ω of u
    hope: float = 6.0  # κ half-way
    memory: float = 0.5  # b₁
    square_memory: float = 0.9  # b₂
    curvature_memory: float = 0.98

    def start(self, problems: Problems) -> FastState:
        """X̂ = X inside the box, multipliers 0."""
        zeros = torch.zeros_like(problems.image)
        none = torch.zeros_like(problems.target_norm)
        flat = torch.zeros_like(problems.target)
        layer = flat[:, None].expand(-1, int(problems.kernel_count.max()), -1, -1)
        return FastState(
            x=self._boxed(problems.image),
            mean=zeros,
            square=zeros,
            moved=none,
            multiplier=flat,
            residual=flat,
            curvature=none,
            gates=layer,
            before_relu=layer,
            others_curvature=none,
        )

    def step(
        self, network: nn.Module, problems: Problems, state: FastState, age: Tensor, precision: torch.dtype
    ) -> tuple[Losses, FastState]:
        """One evaluation, one dual and one primal step. Returns the losses at the old X̂."""
        dual: dict[str, Tensor] = {}

        def pull(before_relu: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
            hoped = (problems.target > 0) & (chosen > -self._hope(age) * problems.target)
            seen = torch.where(hoped, chosen, chosen.clamp_min(0))
            residual = (seen - problems.target) / problems.target_norm[:, None, None]
            dual.update(self._multiplier(state, residual, age, NOISE[precision]))
            dual.update(self._gates(problems, state, before_relu, age))
            return dual["multiplier"] * (hoped | (chosen > 0)), dual["gates"]

        now, slope = gradient(network, problems, state.x, pull, precision)
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

    def _multiplier(self, state: FastState, residual: Tensor, age: Tensor, noise: float) -> dict[str, Tensor]:
        """The dual step of y."""
        change = norms(residual - state.residual).square()
        met = torch.where(change > noise**2, change, 0)
        curvature = self._curvature(met, state.curvature, state.moved, age)
        sigma = self._omega(self.stiffness, age) / curvature
        y = state.multiplier + torch.where(age > 0, sigma, 0)[:, None, None] * (2 * residual - state.residual)
        return {
            "multiplier": y / norms(y).clamp_min(1)[:, None, None],
            "residual": residual,
            "curvature": curvature,
        }

    def _gates(self, problems: Problems, state: FastState, before_relu: Tensor, age: Tensor) -> dict[str, Tensor]:
        """The dual step of u, which begins as the ReLU's own derivative."""
        rows = torch.arange(len(problems), device=before_relu.device)
        change = before_relu - state.before_relu
        squares = change.square().sum(dim=(2, 3)).to(state.moved.dtype)  # (B, C)
        met = squares.sum(dim=1) - squares[rows, problems.kernel]
        curvature = self._curvature(met, state.others_curvature, state.moved, age)
        unit = problems.others_sum / torch.where(problems.alpha > 0, problems.alpha, 1)
        sigma = torch.where(age > 0, self._omega(self.others_stiffness, age) / curvature * unit, ENOUGH)
        gates = (state.gates + _column(sigma) * (before_relu + change)).clamp(0, 1)
        return {"gates": gates, "before_relu": before_relu, "others_curvature": curvature}

    def _curvature(self, met: Tensor, before: Tensor, moved: Tensor, age: Tensor) -> Tensor:
        """ρ: the largest that was met, forgotten slowly."""
        now = torch.where(age > 0, met / moved.clamp_min(1e-30), 0)
        return torch.maximum(now, self.curvature_memory * before).clamp_min(1e-12)

    def _omega(self, ends: tuple[float, float], age: Tensor) -> Tensor:
        first, last = ends
        return first * (last / first) ** self._share(age)

    def _hope(self, age: Tensor) -> Tensor:
        """κ_t, (B, 1, 1)."""
        share = self._share(age)
        return (self.hope * ((1 - share) / share) ** 2)[:, None, None]

    def _step_size(self, square: Tensor, age: Tensor, preservation: Tensor) -> Tensor:
        """τ, (B, 3, H, W)."""
        pixels = square[0].numel()
        share = self._share(age)
        cosine = 0.5 * (1 + torch.cos(pi * share))
        schedule = (self.last + (1 - self.last) * cosine) * (share / self.warm_up).clamp_max(1)
        schedule = schedule / (1 + preservation * self.budget / self.patience)
        root = (square / _column(1 - self.square_memory ** (age + 1))).sqrt()
        return _column(self.travel / self.budget**0.5 * schedule) * pixels / (1 + pixels * root)

    def _share(self, age: Tensor) -> Tensor:
        """t, (B,): the share of the budget that is spent, in (0, 1]."""
        return (age + 1) / self.budget

    def _boxed(self, x: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(x, self.space.low.to(x.dtype)), self.space.high.to(x.dtype))


def _shrink(x: Tensor, threshold: Tensor) -> Tensor:
    """The proximal map of threshold·|x|."""
    return x.sign() * (x.abs() - threshold).clamp_min(0)


def _column(rows: Tensor) -> Tensor:
    """(B,) → (B, 1, 1, 1)."""
    return rows[:, None, None, None]
