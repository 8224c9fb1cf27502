"""Questions about `vgg_mini` for tests of the engine, and a device whose steps take time."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from shared.drawings import scene
from worker.engine.dummy import DummyBatch, DummyDevice
from worker.engine.engine import Engine
from worker.engine.questions import Answered, Question

PICTURE = np.asarray(scene(5, 96).image)


def question(kernel: int, layer: str = "conv2_2", picture: Any = PICTURE, **changes: Any) -> Question:
    """A quick question about a kernel."""
    fields = {"alpha": 1.0, "beta": 1.0, "solver": "fast", "effort": "quick", "iterations": 20, **changes}
    return Question("vgg_mini", layer, picture, kernel, **fields)


def ask(engine: Engine, questions: list[Question], **how: Any) -> dict[int, Any]:
    """The answers by number."""
    return dict(engine.ask(questions, **how))


def top(engine: Engine, layer: str = "conv2_2", picture: Any = PICTURE) -> list[int]:
    """The layer's active kernels."""
    ranking: list[int] = engine.call(engine.device.ranking, "vgg_mini", layer, picture)
    return ranking


class Slow(DummyDevice):
    """A device whose steps take time, and record their batch."""

    def __init__(self) -> None:
        self.order: list[str] = []

    def batch(self, question: Question) -> DummyBatch:
        """A batch that records its steps."""
        return SlowBatch(self, 0.01 if question.layer == "conv1_1" else 0.002)


class SlowBatch(DummyBatch):
    """A batch that records its steps."""

    def __init__(self, device: Slow, seconds: float) -> None:
        super().__init__()
        self.device = device
        self.seconds = seconds

    def step(self) -> Answered:
        """A step that takes time."""
        time.sleep(self.seconds)
        if self.ticket:
            self.device.order.append(self.ticket.question.layer)
        return super().step()
