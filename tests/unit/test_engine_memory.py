"""The engine on a device whose memory runs out: batches are halved, and every question is answered or refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from shared.errors import DeviceOutOfMemory
from tests.unit.engines import ask, question, top
from worker.engine import answers, torch_batch
from worker.engine.device import TorchDevice
from worker.engine.engine import Engine
from worker.engine.questions import Answer
from worker.methods.suppression import SolverBatch
from worker.methods.suppression.problem_batch import Rows


class Cramped:
    """Limits the problems that fit into memory in a step, and those that can be posed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: int, poses: int) -> None:
        self.steps, self.poses, self.refusals = steps, poses, 0
        step, pose = SolverBatch.step, answers.pose

        def cramped_step(batch: Any, evaluations: int = 1) -> Any:
            return step(batch, evaluations) if len(batch) <= self.steps else self.refuse()

        def cramped_pose(questions: Any, *where: Any) -> Any:
            return pose(questions, *where) if len(questions) <= self.poses else self.refuse()

        monkeypatch.setattr(SolverBatch, "step", cramped_step)
        monkeypatch.setattr("worker.engine.torch_batch.pose", cramped_pose)

    def refuse(self) -> None:
        """Raise torch's error."""
        self.refusals += 1
        raise torch.OutOfMemoryError


@pytest.mark.parametrize(("steps", "poses"), [(2, 10), (1, 1), (10, 2)])
def test_batches_are_halved_when_memory_runs_out(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, steps: int, poses: int
) -> None:
    """A device with memory for few problems answers five of them nevertheless."""
    kernels = top(engine)[:5]
    cramped = Cramped(monkeypatch, steps, poses)
    answers = ask(engine, [question(kernel) for kernel in kernels])
    assert sorted(answers) == [0, 1, 2, 3, 4]
    assert all(isinstance(answer, Answer) and answer.iterations == 20 for answer in answers.values())
    assert cramped.refusals


@pytest.mark.parametrize(("steps", "poses"), [(0, 10), (10, 0)])
def test_what_does_not_fit_even_alone_is_refused(
    engine: Engine, device: TorchDevice, monkeypatch: pytest.MonkeyPatch, steps: int, poses: int
) -> None:
    """The error names the layer, and the engine continues."""
    kernels = top(engine)[:2]
    with monkeypatch.context() as patch:
        Cramped(patch, steps, poses)
        answers = ask(engine, [question(kernel) for kernel in kernels])
    for answer in answers.values():
        assert isinstance(answer, DeviceOutOfMemory)
        assert "conv2_2" in answer.detail
    assert engine.running == 0
    assert isinstance(ask(engine, [question(kernels[0])])[0], Answer)


def test_what_memory_holds_is_not_outgrown(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots become free one after the other: no more problems are requeued than memory is short of."""
    kernels = top(engine)[:6]
    cramped = Cramped(monkeypatch, steps=3, poses=10)
    answers = ask(engine, [question(kernel, iterations=10 + 7 * n) for n, kernel in enumerate(kernels)])
    assert all(isinstance(answer, Answer) for answer in answers.values())
    assert cramped.refusals == 1  # of all six


class Failing:
    """In the place of a function: does what that does, but for `times` calls, after so many, which raise this.

    Args:
        when: of which calls; all unless given.
    """

    def __init__(
        self,
        function: Any,
        error: Exception,
        times: int = 1,
        after: int = 0,
        when: Callable[[], bool] = lambda: True,
    ) -> None:
        self.function, self.error, self.times, self.after, self.when = function, error, times, after, when

    def method(self) -> Any:
        """The failing call as a function, for use as a method."""

        def fails(*arguments: Any, **options: Any) -> Any:
            if self.after:
                self.after -= 1
            elif self.times and self.when():
                self.times -= 1
                raise self.error
            return self.function(*arguments, **options)

        return fails


FULL = torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    "where",
    [
        (torch_batch, "pose"),
        (torch_batch, "room_in_memory"),
        (torch_batch, "measured_speed"),
        (SolverBatch, "add"),
        (SolverBatch, "step"),
        (answers, "measured"),
    ],
    ids=lambda where: where[1],
)
@pytest.mark.parametrize("times", [1, 3])
def test_memory_that_runs_out_anywhere_sets_back(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, where: tuple[Any, str], times: int
) -> None:
    """While another layer's batch runs: nothing fails or hangs, and all questions are answered."""
    beside = engine.ask([question(kernel, "conv3_1", iterations=100) for kernel in top(engine, "conv3_1")[:2]])
    while any(ticket.step is None for ticket in beside.tickets):
        time.sleep(0.001)
    function = getattr(*where)
    # Whatever does not fit in a step when it is alone on the device never will: that is another test's.
    failing = Failing(function, FULL, times, when=lambda: where[1] != "step" or engine.running > 1)
    monkeypatch.setattr(where[0], where[1], failing.method())
    found = ask(engine, [question(kernel) for kernel in top(engine)[:4]])
    assert all(isinstance(answer, Answer) for answer in found.values())
    assert failing.times == 0
    assert all(isinstance(answer, Answer) for _, answer in beside)


def test_memory_that_runs_out_while_half_are_set_back(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """If not even the remaining rows can be kept, all are requeued, and all are answered."""
    steps, drops = Failing(SolverBatch.step, FULL), Failing(SolverBatch.drop, FULL)
    monkeypatch.setattr(SolverBatch, "step", steps.method())
    monkeypatch.setattr(SolverBatch, "drop", drops.method())
    found = ask(engine, [question(kernel) for kernel in top(engine)[:4]])
    assert all(isinstance(answer, Answer) for answer in found.values())
    assert (steps.times, drops.times) == (0, 0)


@pytest.mark.parametrize("after", range(5))
def test_memory_that_runs_out_while_what_has_ended_is_taken_out(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Wherever memory runs out, no question is lost, and all are answered."""
    failing = Failing(Rows.select, FULL, after=after)
    monkeypatch.setattr(Rows, "select", failing.method())
    lengths = (5, 40, 40, 40)
    asked = [question(kernel, iterations=n) for kernel, n in zip(top(engine)[:4], lengths, strict=True)]
    found = ask(engine, asked)
    assert [answer.iterations for _, answer in sorted(found.items())] == list(lengths)
    assert failing.times == 0
    assert engine.running == 0
