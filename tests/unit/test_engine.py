"""The engine: on a real, small network, and with doubles of a device."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
import torch

from shared.drawings import scene
from shared.errors import DeviceOutOfMemory, SilentKernel
from worker import answers
from worker.device import TorchBatch, TorchDevice
from worker.dummy import DummyBatch, DummyDevice
from worker.engine import Asked, Engine
from worker.networks import Networks
from worker.pace import LARGEST_BATCH, pace, room_in_memory
from worker.questions import Answer, Answered, Question
from worker.suppression import Batch
from worker.suppression.loop import Course

PICTURE = np.asarray(scene(5, 96).image)


@pytest.fixture(scope="module")
def device() -> TorchDevice:
    """The CPU, with nothing but `vgg_mini`."""
    return TorchDevice(Networks(Path("/nonexistent"), torch.device("cpu"), download=False))


@pytest.fixture(scope="module")
def engine(device: TorchDevice) -> Iterator[Engine]:
    """On that device."""
    engine = Engine(device)
    yield engine
    engine.close()


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


def test_questions_of_several_layers_are_answered_each_with_its_own(engine: Engine) -> None:
    """Whatever is asked together."""
    questions = [question(top(engine, layer)[0], layer) for layer in ("conv1_2", "conv3_1")]
    answers = ask(engine, questions)
    assert [answers[number].maps["before"].shape for number in (0, 1)] == [(96, 96), (24, 24)]


def test_the_ranking_is_by_mean_activation_and_without_silent_kernels(engine: Engine, device: TorchDevice) -> None:
    """The first is the loudest; a kernel that is left out answers nothing."""
    ranking = top(engine)
    network = device.networks.get("vgg_mini")
    image = network.space.from_bytes(torch.from_numpy(PICTURE.transpose(2, 0, 1).copy())[None])
    means = network.features_of("conv2_2", image)[0].mean(dim=(1, 2))
    assert ranking == sorted((k for k in range(32) if means[k] > 0), key=lambda k: -float(means[k]))


def test_a_silent_kernel_is_refused_and_the_others_answered(engine: Engine) -> None:
    """In one batch."""
    grey = np.full((96, 96, 3), 128, dtype=np.uint8)
    active = top(engine, "conv2_1", grey)
    silent = next(kernel for kernel in range(32) if kernel not in active)
    questions = [question(kernel, "conv2_1", grey, iterations=5) for kernel in (silent, active[0])]
    answers = ask(engine, questions)
    assert isinstance(answers[0], SilentKernel)
    assert isinstance(answers[1], Answer)
    assert isinstance(ask(engine, questions[:1])[0], SilentKernel)


class Cramped:
    """Memory for so many problems in a step, and so many to be posed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: int, poses: int) -> None:
        self.steps, self.poses, self.refusals = steps, poses, 0
        step, pose = Batch.step, answers.pose

        def cramped_step(batch: Any, evaluations: int = 1) -> Any:
            return step(batch, evaluations) if len(batch) <= self.steps else self.refuse()

        def cramped_pose(questions: Any, *where: Any) -> Any:
            return pose(questions, *where) if len(questions) <= self.poses else self.refuse()

        monkeypatch.setattr(Batch, "step", cramped_step)
        monkeypatch.setattr("worker.device.pose", cramped_pose)

    def refuse(self) -> None:
        """As torch does."""
        self.refusals += 1
        raise torch.OutOfMemoryError


@pytest.mark.parametrize(("steps", "poses"), [(2, 10), (1, 1), (10, 2)])
def test_batches_are_halved_when_memory_runs_out(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, steps: int, poses: int
) -> None:
    """A device that holds few problems answers five of them all the same."""
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
    """The error names the layer; the engine goes on."""
    kernels = top(engine)[:2]
    with monkeypatch.context() as patch:
        Cramped(patch, steps, poses)
        answers = ask(engine, [question(kernel) for kernel in kernels])
    for answer in answers.values():
        assert isinstance(answer, DeviceOutOfMemory)
        assert "conv2_2" in answer.detail
    assert device.running == 0
    assert isinstance(ask(engine, [question(kernels[0])])[0], Answer)


def test_questions_join_a_batch_that_runs(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several callers, different efforts: one batch, and each has the answer that it would have alone."""
    kernels = top(engine, "conv3_1")[:3]
    sizes: list[int] = []
    step = TorchBatch.step

    def watched(batch: TorchBatch) -> Answered:
        sizes.append(len(batch))
        return step(batch)

    monkeypatch.setattr(TorchBatch, "step", watched)
    lengths = (200, 60, 30)
    asked: list[Asked] = []
    for kernel, iterations in zip(kernels, lengths, strict=True):
        before = len(sizes)
        asked.append(engine.ask([question(kernel, "conv3_1", iterations=iterations)]))
        while len(sizes) < before + 5:
            time.sleep(0.001)
    together = [next(iter(one))[1] for one in asked]
    assert max(sizes) == 3
    for kernel, iterations, answer in zip(kernels, lengths, together, strict=True):
        alone = ask(engine, [question(kernel, "conv3_1", iterations=iterations)])[0]
        assert isinstance(answer, Answer)
        assert answer.iterations == alone.iterations == iterations
        assert answer.losses.total == pytest.approx(alone.losses.total, rel=0.02)


def test_what_is_withdrawn_is_forgotten(engine: Engine, device: TorchDevice) -> None:
    """Its place is free at the next step; a batch-mate goes on."""
    kernels = top(engine)[:2]
    endless = engine.ask([question(kernels[0], iterations=100_000)])
    while endless.tickets[0].step is None:
        time.sleep(0.001)
    mate = engine.ask([question(kernels[1], iterations=50)])
    begin = time.monotonic()
    endless.withdraw()
    assert list(endless) == []
    assert isinstance(next(iter(mate))[1], Answer)
    while engine.busy:
        time.sleep(0.001)
    assert device.running == 0
    assert time.monotonic() - begin < 10


class Slow(DummyDevice):
    """Each step takes a while, and it is noted whose it was."""

    def __init__(self) -> None:
        self.order: list[str] = []

    def batch(self, question: Question) -> DummyBatch:
        """One that notes."""
        return SlowBatch(self, 0.01 if question.layer == "conv1_1" else 0.002)


class SlowBatch(DummyBatch):
    """Notes its steps."""

    def __init__(self, device: Slow, seconds: float) -> None:
        super().__init__()
        self.device = device
        self.seconds = seconds

    def step(self) -> Answered:
        """Takes its time."""
        time.sleep(self.seconds)
        if self.ticket:
            self.device.order.append(self.ticket.question.layer)
        return super().step()


def test_layers_share_the_device_by_time() -> None:
    """A layer whose steps take five times as long makes a fifth of the steps."""
    device = Slow()
    engine = Engine(device)
    asked = [engine.ask([question(1, layer, iterations=count)]) for layer, count in (("conv1_1", 20), ("conv1_2", 60))]
    for one in asked:
        list(one)
    engine.close()
    while_both = device.order[: min(len(device.order), 60)]
    assert 2 < while_both.count("conv1_2") / while_both.count("conv1_1") < 8


def test_a_small_job_does_not_wait_for_a_big_one_of_the_same_layer() -> None:
    """Urgent questions have a batch of their own; of equal ones, each caller has its turn."""
    device = Slow()
    engine = Engine(device)
    big = engine.ask([question(1, iterations=50) for _ in range(16)], urgent=False)
    small = engine.ask([question(1, iterations=5)])
    list(small)
    assert sum(ticket.step is not None for ticket in big.tickets) <= 2
    other = engine.ask([question(1, iterations=5)], urgent=False)
    list(other)
    assert sum(ticket.step is not None for ticket in big.tickets) <= 3
    big.withdraw()
    engine.close()


def test_callers_that_never_rest_do_not_starve_a_question() -> None:
    """Eight of them, whose calls take longer than what they do between two: steps go on, and so do the calls."""
    engine, over, ran = Engine(Slow()), Event(), list[float]()

    def rank() -> None:
        while not over.is_set():
            engine.call(time.sleep, 0.03)
            ran.append(time.monotonic())
            time.sleep(0.01)

    callers = [Thread(target=rank) for _ in range(8)]
    for caller in callers:
        caller.start()
    try:
        alone = 20 * 0.01  # seconds
        begin = time.monotonic()
        assert ask(engine, [question(0, "conv1_1", iterations=20)])
        assert time.monotonic() - begin < 10 * alone
        assert len(ran) > 3
    finally:
        over.set()
        for caller in callers:
            caller.join()
        engine.close()


class Broken(DummyBatch):
    """A card that has fallen off the bus."""

    def step(self) -> Answered:
        """As CUDA says it."""
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_a_broken_device_ends_the_engine(
    device: TorchDevice, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its process ends then; the leases bring the jobs back. Nothing is failed."""
    told: list[Exception] = []
    monkeypatch.setattr(device, "batch", lambda _: Broken())
    engine = Engine(device, told.append)
    asked = engine.ask([question(1)])
    engine._thread.join(5)
    assert "illegal memory access" in str(told[0])
    assert asked._answers.empty()
    assert "is broken" in caplog.text


def test_a_batch_mate_changes_a_result_by_less_than_two_percent(engine: Engine) -> None:
    """The same question alone and among others (CPU kernels differ with the batch size)."""
    kernels = top(engine, "conv3_1")[:4]
    questions = [question(kernel, "conv3_1", iterations=100) for kernel in kernels]
    together = ask(engine, questions)
    alone = ask(engine, questions[:1])[0]
    assert alone.losses.total == pytest.approx(together[0].losses.total, rel=0.02)
    assert alone.stopped == together[0].stopped


def test_bounds_are_kept_by_the_picture(engine: Engine) -> None:
    """`target_met` is of the 8-bit picture; null where nothing was asked for."""
    kernel = top(engine)[0]
    bounds: list[dict[str, Any]] = [{}, {"target_ssim": 0.8}, {"max_preservation": 0.2}]
    asked = [question(kernel, iterations=100, **bound) for bound in bounds]
    free, alike, near = (answer for _, answer in sorted(ask(engine, asked).items()))
    assert (free.target_met, alike.target_met, near.target_met) == (None, True, True)
    assert alike.precision == near.precision == "float32"  # a bound is a bound on what is reported
    assert alike.metrics.ssim >= 0.8
    assert near.losses.preservation <= 0.2
    for answer in (alike, near):
        assert answer.losses.suppression + answer.losses.regularization < 0.8 * answer.loss_start


def test_steps_are_reported(engine: Engine) -> None:
    """Iteration, budget and loss, in the ticket."""
    asked = engine.ask([question(top(engine)[0], iterations=100)])
    seen = set()
    while engine.busy:
        if step := asked.tickets[0].step:
            seen.add(step)
        time.sleep(0.001)
    assert len(seen) > 10
    assert {step.budget for step in seen} == {100}
    steps = sorted(seen, key=lambda step: step.iteration)
    assert steps[-1].terms[-1] < steps[0].terms[-1]


def test_a_sketch_that_is_wanted_is_made_once(engine: Engine) -> None:
    """X̂ in 8 bits as it is then; none where none is wanted."""
    asked = engine.ask([question(kernel, iterations=60) for kernel in top(engine)[:2]])
    first, second = asked.tickets
    first.wanted = True
    assert len(list(asked)) == 2
    assert first.sketch is not None
    assert second.sketch is None
    assert not first.wanted
    assert first.sketch.picture.shape == first.question.picture.shape
    assert 0 < first.sketch.iteration <= 60


def test_the_pace_is_measured_once_for_a_layer(device: TorchDevice) -> None:
    """Small networks run in batches."""
    network = device.networks.get("vgg_mini")
    first = pace(network.cut("conv2_2"), 96, torch.device("cpu"))
    assert pace(network.cut("conv2_2"), 96, torch.device("cpu")) is first
    assert 1 < first.batch <= LARGEST_BATCH["cpu"]
    assert first.seconds > 0
    layer = 32 * 48 * 48 * 4  # bytes of its maps
    assert 6 * layer < first.bytes < 60 * layer
    assert room_in_memory(first, torch.device("cpu")) > first.batch


def test_batches_grow_and_shrink_with_the_time_of_a_step(device: TorchDevice) -> None:
    """Up to what is no faster; never beyond half a second."""
    batch = device.batch(question(0))
    assert isinstance(batch, TorchBatch)
    part: Batch[Any] = Batch(batch.cut)
    part.courses = {number: Course(100) for number in range(8)}
    batch.most = 8
    batch._adapt(part, 0.01)
    assert batch.most == 16
    batch._adapt(part, 0.8)
    assert batch.most == 4


def test_what_memory_holds_is_not_outgrown(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Places get free one after the other: no more problems come back than there was memory for."""
    kernels = top(engine)[:6]
    cramped = Cramped(monkeypatch, steps=3, poses=10)
    answers = ask(engine, [question(kernel, iterations=10 + 7 * n) for n, kernel in enumerate(kernels)])
    assert all(isinstance(answer, Answer) for answer in answers.values())
    assert cramped.refusals == 1  # of all six


def test_a_step_that_ends_something_says_nothing_about_the_pace(
    device: TorchDevice, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is longer, and fewer are left after it."""
    seen: list[int] = []
    monkeypatch.setattr(TorchBatch, "_adapt", lambda _, part, __: seen.append(len(part)))
    ask(engine, [question(kernel, iterations=5) for kernel in top(engine)[:3]])
    assert set(seen) == {3}
    assert len(seen) == 4
