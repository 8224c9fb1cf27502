"""The size of a batch follows from the memory and from the measured time of a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from shared.images import Frame
from tests.unit.engines import ask, question, top
from worker.engine import torch_batch
from worker.engine.device import TorchDevice
from worker.engine.engine import Engine
from worker.engine.questions import Ticket
from worker.engine.speed import LARGEST_BATCH, measured_speed, room_in_memory
from worker.engine.torch_batch import TorchBatch
from worker.methods.suppression import SolverBatch
from worker.methods.suppression.loop import Progress


def test_the_pace_is_measured_once_for_a_layer(device: TorchDevice) -> None:
    """Small networks run in batches."""
    network = device.networks.get("vgg_mini")
    first = measured_speed(network.layer("conv2_2").cut, Frame(96, 96), torch.device("cpu"))
    assert measured_speed(network.layer("conv2_2").cut, Frame(96, 96), torch.device("cpu")) is first
    assert 1 < first.batch <= LARGEST_BATCH["cpu"]
    assert first.seconds > 0
    layer = 32 * 48 * 48 * 4  # bytes of its maps
    assert 6 * layer < first.bytes < 60 * layer
    assert room_in_memory(first, torch.device("cpu")) > first.batch


def test_batches_grow_and_shrink_with_the_time_of_a_step(device: TorchDevice) -> None:
    """They grow up to the largest useful batch, and a step stays below half a second."""
    batch = device.batch(question(0))
    assert isinstance(batch, TorchBatch)
    part: SolverBatch[Any] = SolverBatch(batch.cut)
    part.progress = {number: Progress(100) for number in range(8)}
    batch.most = 8
    batch._adapt(part, 0.01)
    assert batch.most == 16
    batch._adapt(part, 0.8)
    assert batch.most == 4


def test_a_step_that_ends_something_says_nothing_about_the_pace(
    device: TorchDevice, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes longer, and fewer problems remain after it."""
    seen: list[int] = []
    monkeypatch.setattr(TorchBatch, "_adapt", lambda _, part, __: seen.append(len(part)))
    ask(engine, [question(kernel, iterations=5) for kernel in top(engine)[:3]])
    assert set(seen) == {3}
    assert len(seen) == 4


def test_what_ends_together_is_measured_in_steps_of_its_own(
    engine: Engine, device: TorchDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as fit into half a second, with steps of other batches in between."""
    batch = device.batch(question(0))
    assert isinstance(batch, TorchBatch)
    tickets = [Ticket(question(kernel, iterations=1)) for kernel in top(engine)[:5]]
    monkeypatch.setattr(torch_batch, "STEP_SECONDS", 0.0)  # time for one
    assert batch.add(tickets) == []
    assert batch.step() == []
    assert [len(batch.step()) for _ in range(5)] == [1] * 5
    assert len(batch) == 0
