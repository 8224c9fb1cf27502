"""The engine on a small real network, and on test doubles of a device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
import torch

from shared.drawings import scene
from shared.errors import DeviceOutOfMemory, SilentKernel
from shared.images import Frame
from worker.engine import answers, torch_batch
from worker.engine.device import TorchDevice
from worker.engine.dummy import DummyBatch, DummyDevice
from worker.engine.engine import Engine
from worker.engine.questions import Answer, Answered, Question, Ticket
from worker.engine.scheduling import Account, EngineRequest
from worker.engine.speed import LARGEST_BATCH, measured_speed, room_in_memory
from worker.engine.torch_batch import TorchBatch
from worker.jobs.artifacts import note
from worker.methods.suppression import Solution, SolverBatch
from worker.methods.suppression.loop import Progress
from worker.methods.suppression.problem_batch import Rows
from worker.networks.loaded import Networks

PICTURE = np.asarray(scene(5, 96).image)


@pytest.fixture(scope="module")
def device() -> TorchDevice:
    """The CPU, with `vgg_mini` only."""
    return TorchDevice(Networks(Path("/nonexistent"), torch.device("cpu"), download=False))


@pytest.fixture(scope="module")
def engine(device: TorchDevice) -> Iterator[Engine]:
    """An engine on that device."""
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
    """The answers do not depend on what is submitted together."""
    questions = [question(top(engine, layer)[0], layer) for layer in ("conv1_2", "conv3_1")]
    answers = ask(engine, questions)
    assert [answers[number].maps["before"].shape for number in (0, 1)] == [(96, 96), (24, 24)]


def test_the_ranking_is_by_mean_activation_and_without_silent_kernels(engine: Engine, device: TorchDevice) -> None:
    """The most active kernel is first; a silent one is not listed."""
    ranking = top(engine)
    network = device.networks.get("vgg_mini")
    image = network.space.from_bytes(torch.from_numpy(PICTURE.transpose(2, 0, 1).copy())[None])
    means = network.layer("conv2_2").features(image)[0].mean(dim=(1, 2))
    assert ranking == sorted((k for k in range(32) if means[k] > 0), key=lambda k: -float(means[k]))


def test_a_silent_kernel_is_refused_and_the_others_answered(engine: Engine) -> None:
    """In a batch and alone."""
    grey = np.full((96, 96, 3), 128, dtype=np.uint8)
    active = top(engine, "conv2_1", grey)
    silent = next(kernel for kernel in range(32) if kernel not in active)
    questions = [question(kernel, "conv2_1", grey, iterations=5) for kernel in (silent, active[0])]
    answers = ask(engine, questions)
    assert isinstance(answers[0], SilentKernel)
    assert isinstance(answers[1], Answer)
    assert isinstance(ask(engine, questions[:1])[0], SilentKernel)


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


def test_questions_join_a_batch_that_runs(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several callers with different efforts share a batch, and each gets the answer that it would get alone."""
    kernels = top(engine, "conv3_1")[:3]
    sizes: list[int] = []
    step = TorchBatch.step

    def watched(batch: TorchBatch) -> Answered:
        sizes.append(len(batch))
        return step(batch)

    monkeypatch.setattr(TorchBatch, "step", watched)
    lengths = (200, 60, 30)
    asked: list[EngineRequest] = []
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
    """Its slot is free at the next step, and the others continue."""
    kernels = top(engine)[:2]
    endless = engine.ask([question(kernels[0], iterations=100_000)])
    while endless.tickets[0].step is None:
        time.sleep(0.001)
    mate = engine.ask([question(kernels[1], iterations=50)])
    begin = time.monotonic()
    endless.cancel()
    assert list(endless) == []
    assert isinstance(next(iter(mate))[1], Answer)
    while engine.busy:
        time.sleep(0.001)
    assert engine.running == 0
    assert time.monotonic() - begin < 10


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
    """Urgent questions have a batch of their own; within a class, callers take turns."""
    device = Slow()
    engine = Engine(device)
    big = engine.ask([question(1, iterations=50) for _ in range(16)], account=Account(urgent=False))
    small = engine.ask([question(1, iterations=5)])
    list(small)
    assert sum(ticket.step is not None for ticket in big.tickets) <= 2
    other = engine.ask([question(1, iterations=5)], account=Account(urgent=False))
    list(other)
    assert sum(ticket.step is not None for ticket in big.tickets) <= 3
    big.cancel()
    engine.close()


def test_callers_that_never_rest_do_not_starve_a_question() -> None:
    """Eight callers whose calls take longer than their pauses: both steps and calls make progress."""
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
    """A batch whose device fails."""

    def step(self) -> Answered:
        """Raise CUDA's error."""
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_a_broken_device_ends_the_engine(
    device: TorchDevice, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The process ends, nothing is failed, and the jobs are retried after their leases expire."""
    shown: list[Exception] = []
    monkeypatch.setattr(device, "batch", lambda _: Broken())
    engine = Engine(device, shown.append)
    asked = engine.ask([question(1)])
    engine._thread.join(5)
    assert "illegal memory access" in str(shown[0])
    assert asked._answers.empty()
    assert "is broken" in caplog.text


def test_a_batch_mate_changes_a_result_by_less_than_two_percent(engine: Engine) -> None:
    """The same question alone and in a batch has nearly the same answer (CPU kernels depend on the batch size)."""
    kernels = top(engine, "conv3_1")[:4]
    questions = [question(kernel, "conv3_1", iterations=100) for kernel in kernels]
    together = ask(engine, questions)
    alone = ask(engine, questions[:1])[0]
    assert alone.losses.total == pytest.approx(together[0].losses.total, rel=0.02)
    assert alone.stopped == together[0].stopped


def test_bounds_are_kept_by_the_picture(engine: Engine) -> None:
    """`target_met` is that of the 8-bit picture; null without a bound."""
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
    """A ticket has the iteration, budget and losses."""
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


def test_a_preview_that_is_wanted_is_made_once(engine: Engine) -> None:
    """A preview is the present X̂ in 8 bits; there is none unless requested."""
    asked = engine.ask([question(kernel, iterations=60) for kernel in top(engine)[:2]])
    first, second = asked.tickets
    first.preview_wanted = True
    assert len(list(asked)) == 2
    assert first.preview is not None
    assert second.preview is None
    assert not first.preview_wanted
    assert first.preview.picture.shape == first.question.picture.shape
    assert 0 < first.preview.iteration <= 60


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


def test_what_memory_holds_is_not_outgrown(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots become free one after the other: no more problems are requeued than memory is short of."""
    kernels = top(engine)[:6]
    cramped = Cramped(monkeypatch, steps=3, poses=10)
    answers = ask(engine, [question(kernel, iterations=10 + 7 * n) for n, kernel in enumerate(kernels)])
    assert all(isinstance(answer, Answer) for answer in answers.values())
    assert cramped.refusals == 1  # of all six


def test_a_step_that_ends_something_says_nothing_about_the_pace(
    device: TorchDevice, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes longer, and fewer problems remain after it."""
    seen: list[int] = []
    monkeypatch.setattr(TorchBatch, "_adapt", lambda _, part, __: seen.append(len(part)))
    ask(engine, [question(kernel, iterations=5) for kernel in top(engine)[:3]])
    assert set(seen) == {3}
    assert len(seen) == 4


def test_an_x_that_is_worse_than_the_image_is_the_image(engine: Engine, device: TorchDevice) -> None:
    """X is delivered if X̂ is worse, by rounding or an early stop; not under a bound."""
    layer = device.networks.get("vgg_mini").layer("conv2_2")
    free, bound = (question(top(engine)[0], target_ssim=bound) for bound in (None, 0.9))
    posed = answers.pose([free, bound], layer)
    bad = posed[0].problem.image[0].flip(0) * 2
    solutions = [Solution(bad, 9.0, 1, 0.0, "deadline", "bfloat16", [])] * 2
    found, kept = answers.measured(layer, list(zip((free, bound), posed, solutions, strict=True)))
    assert isinstance(found, Answer)
    assert isinstance(kept, Answer)
    assert np.array_equal(found.picture, PICTURE)
    assert found.losses_float.total == pytest.approx(found.loss_start)
    assert found.metrics.invention == 0
    assert found.metrics.ssim == pytest.approx(1.0)
    assert kept.losses_float.total > kept.loss_start


def test_where_beta_is_large_the_blank_picture_is_an_answer(engine: Engine, device: TorchDevice) -> None:
    """It is delivered with a note where it has the lower loss, if the solver was not stopped."""
    layer = device.networks.get("vgg_mini").layer("conv2_2")
    asked = question(top(engine)[0], beta=30.0, iterations=None)
    ((_, answer),) = engine.ask([asked])
    assert isinstance(answer, Answer)
    assert answer.losses_float.total <= answer.loss_blank
    (posed,) = answers.pose([asked], layer)
    dots = torch.zeros_like(posed.problem.image[0])
    dots[:, ::7, ::7] = 2.0
    for beta, stopped, blank in ((30.0, "budget", True), (30.0, "deadline", False), (1.0, "budget", False)):
        asked = question(top(engine)[0], beta=beta)
        (posed,) = answers.pose([asked], layer)
        solution = Solution(dots, 9.0, 1, 0.0, stopped, "float32", [])  # type: ignore[arg-type]
        (found,) = answers.measured(layer, [(asked, posed, solution)])
        assert isinstance(found, Answer)
        assert (found.metrics.sparsity == 1) == blank
        shown = note(found, asked) or ""
        assert "This is the blank picture" in shown if blank else "The blank picture has a lower loss" in shown
        assert not blank or found.losses_float.total == found.loss_blank


def test_answers_that_are_measured_together_are_those_of_each_alone(engine: Engine, device: TorchDevice) -> None:
    """Solutions of different pictures and kernels, in any order, are measured together."""
    layer = device.networks.get("vgg_mini").layer("conv3_1")
    other = np.asarray(scene(6, 96).image)
    asked = [
        question(top(engine, "conv3_1", one)[n], "conv3_1", one) for n, one in ((0, PICTURE), (1, other), (2, PICTURE))
    ]
    posed = answers.pose(asked, layer)
    x = [0.5 * one.problem.image[0].roll(shift, 1) for shift, one in enumerate(posed)]
    solved = [
        (one, pose, Solution(image, 1.0, 1, 0.0, "budget", "float32", []))
        for one, pose, image in zip(asked, posed, x, strict=True)
    ]
    together = answers.measured(layer, solved)
    for number, answer in enumerate(together):
        (alone,) = answers.measured(layer, solved[number : number + 1])
        assert isinstance(answer, Answer)
        assert isinstance(alone, Answer)
        assert np.array_equal(answer.picture, alone.picture)
        for mine, theirs in ((answer.metrics, alone.metrics), (answer.metrics_float, alone.metrics_float)):
            numbers, expected = (
                one.model_dump(exclude={"invention_by_layer"}, exclude_none=True) for one in (mine, theirs)
            )
            assert numbers == pytest.approx(expected, rel=1e-4)
            assert mine.invention_by_layer == pytest.approx(theirs.invention_by_layer, rel=1e-4)
        assert answer.losses.model_dump() == pytest.approx(alone.losses.model_dump(), rel=1e-4)
        assert answer.loss_blank == pytest.approx(alone.loss_blank, rel=1e-4)
        assert all(np.allclose(answer.maps[name], alone.maps[name], rtol=1e-3, atol=1e-4) for name in answer.maps)


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


@pytest.mark.parametrize("where", [(answers, "metrics"), (answers, "_posed"), (SolverBatch, "step")])
def test_a_bug_in_one_problem_is_its_own(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: tuple[Any, str]
) -> None:
    """The other questions of the batch are answered, and the log has the traceback."""
    function = getattr(*where)
    kernels = top(engine)[:3]
    bad = kernels[1]

    def buggy(*arguments: Any) -> Any:
        of = {"metrics": lambda: arguments[2], "_posed": lambda: torch.tensor(arguments[0].kernel)}
        own: Any = of.get(where[1], lambda: arguments[0].problems.kernel)
        if bool((own() == bad).any()):
            raise ZeroDivisionError("a bug")
        return function(*arguments)

    monkeypatch.setattr(where[0], where[1], buggy)
    found = ask(engine, [question(kernel) for kernel in kernels])
    assert isinstance(found[0], Answer)
    assert isinstance(found[2], Answer)
    assert str(found[1]) == "internal error (ZeroDivisionError); the worker's log has the details"
    assert "a bug" in caplog.text


def test_an_error_of_cudnn_is_the_devices(device: TorchDevice) -> None:
    """Its context cannot be used any more; running out of memory is not such an error."""
    assert device.broken(RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"))
    assert device.broken(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not device.broken(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert not device.broken(FULL)
    assert not device.broken(ZeroDivisionError())


def test_a_small_job_beside_many_big_ones() -> None:
    """With sixteen layers of a bulk caller, urgent work gets half of the device."""
    engine = Engine(Slow())
    account = Account(urgent=False)
    big = [engine.ask([question(1, f"conv{n}", iterations=2000)], account=account) for n in range(16)]
    while any(one.tickets[0].step is None for one in big):
        time.sleep(0.001)
    begin = time.monotonic()
    assert ask(engine, [question(1, "conv1_1", iterations=30)])
    alone = 30 * 0.011
    assert time.monotonic() - begin < 3 * alone
    for one in big:
        one.cancel()
    engine.close()


def test_callers_share_the_device_whatever_their_batches_are() -> None:
    """A caller with questions about eight layers gets no more of it than one with a single layer."""
    engine = Engine(Slow())
    many = Account()
    big = [engine.ask([question(1, f"conv{n}", iterations=2000)], account=many) for n in range(8)]
    while any(one.tickets[0].step is None for one in big):
        time.sleep(0.001)
    begin = time.monotonic()
    one = Account()
    assert list(engine.ask([question(1, "conv1_2", iterations=50)], account=one))
    assert time.monotonic() - begin < 4 * 50 * 0.003
    assert one.used > 50 * 0.002
    for asked in big:
        asked.cancel()
    engine.close()
