"""Step after step, until each problem has converged, has used its budget, or is told to stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from worker.suppression.objective import Losses, losses
from worker.suppression.problems import Problems, Rows

log = logging.getLogger(__name__)

Stop = Literal["converged", "budget", "deadline", "cancelled"]
StateT = TypeVar("StateT", bound=Rows)
HISTORY_POINTS = 500


class Solver(Protocol[StateT]):
    """A method as pure functions of a state whose row b belongs to problem b."""

    @property
    def budget(self) -> int:
        """The most evaluations that a problem may take."""
        ...

    def start(self, problems: Problems) -> StateT:
        """The state before the first evaluation: X̂ = X."""
        ...

    def step(
        self, network: nn.Module, problems: Problems, state: StateT, age: Tensor, precision: torch.dtype, /
    ) -> tuple[Losses, StateT]:
        """One gradient evaluation at X̂, after `age` (B,) earlier ones: the losses there, and the next state."""
        ...

    def forgets(self, problems: Problems, age: Tensor, /) -> Tensor:
        """(B,) bool: the merit of earlier evaluations cannot be compared with that at `age`."""
        ...

    def handed_out(self, problems: Problems, x: Tensor, age: Tensor, /) -> Tensor:
        """X̂ of the best iterate x after `age` evaluations."""
        ...

    def converged(self, state: StateT, /) -> Tensor:
        """(B,) bool: more steps would not change X̂ visibly."""
        ...


@dataclass(frozen=True)
class Solution:
    """What became of one problem."""

    x: Tensor  # X̂, the best that was seen, (3, H, W)
    loss: float  # its total loss, in the dtype of X and never above X's own
    iterations: int
    seconds: float
    stopped: Stop
    precision: str  # of its evaluations
    history: list[tuple[int, float, float, float, float]]  # (iteration, L_p, L_s, L_r, L)


@dataclass
class Progress:
    """What `on_step` is told, once an evaluation."""

    iteration: int
    losses: Losses


def after(seconds: float, otherwise: Callable[[], Stop | None] = lambda: None) -> Callable[[], Stop | None]:
    """A `should_stop` with a time limit: "deadline" once `seconds` have passed since this call."""
    end = time.perf_counter() + seconds
    return lambda: otherwise() or ("deadline" if time.perf_counter() >= end else None)


def solve(
    network: nn.Module,
    problems: Problems,
    solver: Solver[Any],
    *,
    precision: torch.dtype = torch.float32,
    on_step: Callable[[Progress], None] = lambda _: None,
    should_stop: Callable[[], Stop | None] = lambda: None,
) -> list[Solution]:
    """Solve every problem of the batch; the result of one does not depend on the others.

    Args:
        network: up to the layer but for its ReLU, frozen: (B, 3, H, W) → Z (B, C, h, w), with F = max(Z, 0).
        problems: posed on that network; none silent, none lone.
        on_step: called after each evaluation.
        should_stop: asked before each evaluation; what it returns becomes every unfinished solution's `stopped`.

    Returns:
        The solutions, in the order of the problems. A problem that was stopped before its first evaluation has X̂ = X.
        One whose loss in bfloat16 is not a number is solved again in float32, and its `precision` says so.
    """
    if not len(problems):
        return []
    run = _Run(network, problems, solver, precision)
    run.until_done(on_step, should_stop)
    if run.overflowed:
        log.warning("%d of %d problems overflow in bfloat16: solved in float32", len(run.overflowed), len(problems))
        rows = torch.tensor(run.overflowed, device=problems.kernel.device)
        again = solve(network, problems.select(rows), solver, on_step=on_step, should_stop=should_stop)
        run.solutions.update(zip(run.overflowed, again, strict=True))
    return [run.solutions[number] for number in range(len(problems))]


@dataclass
class _Run(Generic[StateT]):
    network: nn.Module
    problems: Problems
    solver: Solver[StateT]
    precision: torch.dtype
    solutions: dict[int, Solution] = field(default_factory=dict)
    overflowed: list[int] = field(default_factory=list)  # the caller's problems that bfloat16 cannot hold

    def __post_init__(self) -> None:
        batch, device = len(self.problems), self.problems.image.device
        self.state = self.solver.start(self.problems)
        self.number = torch.arange(batch, device=device)  # which of the caller's problems a row is
        self.age = torch.zeros(batch, dtype=torch.long, device=device)
        self.done = torch.zeros(batch, dtype=torch.bool, device=device)
        self.best_x = self.problems.image
        self.best_merit = torch.full_like(self.problems.target_norm, torch.inf)
        self.histories: list[list[tuple[int, float, float, float, float]]] = [[] for _ in range(batch)]
        self.began = time.perf_counter()

    def until_done(self, on_step: Callable[[Progress], None], should_stop: Callable[[], Stop | None]) -> None:
        while len(self.number):
            if reason := should_stop():
                self._retire(torch.ones_like(self.number, dtype=torch.bool), reason)
                break
            now = self._step()
            on_step(Progress(int(self.age.max()), now))
            if self.precision is torch.bfloat16:
                self._give_up(~now.total.isfinite())
            self._retire(self.done, "converged")
            self._retire(self.age >= self.solver.budget, "budget")

    def _step(self) -> Losses:
        now, state = self.solver.step(self.network, self.problems, self.state, self.age, self.precision)
        forgets = self.solver.forgets(self.problems, self.age) & now.merit.isfinite()
        better = (now.merit < self.best_merit) | forgets  # false for NaN
        self.best_merit = torch.where(better, now.merit, self.best_merit)
        self.best_x = torch.where(better[:, None, None, None], self.state.x, self.best_x)  # type: ignore[attr-defined]
        self.done = self.solver.converged(state)
        self.state, self.age = state, self.age + 1
        self._note(now)
        return now

    def _note(self, now: Losses) -> None:
        every = max(1, self.solver.budget // HISTORY_POINTS)
        terms = (now.preservation, now.suppression, now.regularization, now.total)
        table = torch.stack(terms, dim=1).tolist()
        for number, age, row in zip(self.number.tolist(), self.age.tolist(), table, strict=True):
            if (age - 1) % every == 0 or age == self.solver.budget:
                self.histories[number].append((age, *row))

    def _give_up(self, rows: Tensor) -> None:
        if bool(rows.any()):
            self.overflowed += self.number[rows].tolist()
            self._drop(rows)

    def _retire(self, rows: Tensor, reason: Stop) -> None:
        if not bool(rows.any()):
            return
        x, loss = self._in_full_precision(rows)
        seconds = time.perf_counter() - self.began
        for place, row in enumerate(rows.nonzero().flatten().tolist()):
            number = int(self.number[row])
            self.solutions[number] = Solution(
                x=x[place].clone(),
                loss=float(loss[place]),
                iterations=int(self.age[row]),
                seconds=seconds,
                stopped=reason,
                precision=str(self.precision).removeprefix("torch."),
                history=self.histories[number],
            )
        self._drop(rows)

    @torch.no_grad()
    def _in_full_precision(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The best X̂ (b, 3, H, W) and its loss (b,) in the dtype of X: X itself where the best was so by rounding."""
        problems = self.problems.select(rows)
        x = self.solver.handed_out(problems, self.best_x[rows], self.age[rows])
        seen = losses(problems, self.network(x).clamp_min(0), x)
        start = problems.alpha + problems.beta * problems.image.abs().mean(dim=(1, 2, 3))  # L_p = 0, L_s = 1
        worse = (seen.total > start) & ~problems.bounded
        return torch.where(worse[:, None, None, None], problems.image, x), torch.where(worse, start, seen.total)

    def _drop(self, rows: Tensor) -> None:
        keep = ~rows
        self.problems, self.state = self.problems.select(keep), self.state.select(keep)
        self.number, self.age, self.done = self.number[keep], self.age[keep], self.done[keep]
        self.best_x, self.best_merit = self.best_x[keep], self.best_merit[keep]
