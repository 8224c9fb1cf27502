"""What a runner asks and what an engine answers. No torch here, so that an engine can be a double."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shared.errors import KernelscopeError
from shared.schemas import Losses, Metrics, Stop, WeightsUsed
from shared.workers import NetworkState

Picture = NDArray[np.uint8]  # (H, W, 3)
Maps = NDArray[np.float32]


@dataclass(frozen=True)
class Question:
    """What does this kernel see in this picture?"""

    model: str
    layer: str
    picture: Picture  # RGB of the network's input size
    kernel: int
    alpha: float
    beta: float
    solver: str
    effort: str
    iterations: int | None
    target_ssim: float | None = None
    max_preservation: float | None = None

    @property
    def bounded(self) -> bool:
        """Whether a bound is to be kept."""
        return self.target_ssim is not None or self.max_preservation is not None

    @property
    def setup(self) -> tuple[object, ...]:
        """What questions must share to be answered in one batch."""
        return self.model, self.layer, self.solver, self.effort, self.iterations, self.bounded


@dataclass(frozen=True)
class Answer:
    """X̂ and what the network makes of it."""

    picture: Picture  # X̂ in 8 bits, (H, W, 3): the explanation
    x: Maps  # X̂ before rounding, normalised, (3, H, W)
    maps: dict[str, NDArray[Any]]  # before, after: (h, w); others: (2,); others_before, others_after: (2, h, w)
    losses: Losses  # of the 8-bit picture
    losses_float: Losses
    loss_start: float
    loss_blank: float
    metrics: Metrics  # of the 8-bit picture
    metrics_float: Metrics
    target_met: bool | None
    iterations: int
    seconds: float
    stopped: Stop
    precision: str  # of the solver's evaluations; every number here is float32
    history: list[tuple[int, float, float, float, float]]
    weights: WeightsUsed


@dataclass(frozen=True)
class Step:
    """How far the questions that run now are."""

    iteration: int
    budget: int
    loss: float


OnStep = Callable[[Step], None]
ShouldStop = Callable[[], Stop | None]


class Engine(Protocol):
    """What a runner asks of an engine; `worker/dummy.py` has one without a network."""

    @property
    def device(self) -> str:
        """For people: which device computes."""
        ...

    def preload(self, model: str) -> None:
        """Load a network now. Raises ModelUnavailable."""
        ...

    def states(self) -> dict[str, NetworkState]:
        """Which networks can be run."""
        ...

    def input_size(self, model: str) -> int:
        """Side of the network's input in pixels. Loads the network; raises ModelUnavailable."""
        ...

    def ranking(self, model: str, layer: str, picture: Picture) -> list[int]:
        """The layer's kernels that are active on the picture, by mean activation, highest first."""
        ...

    def answer(
        self, questions: Sequence[Question], on_step: OnStep, should_stop: ShouldStop
    ) -> Iterator[tuple[int, Answer | KernelscopeError]]:
        """Yield (number of the question, answer or why there is none), as each is done."""
        ...
