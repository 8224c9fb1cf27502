"""The engine on a real, small network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared.drawings import scene
from shared.errors import DeviceOutOfMemory, SilentKernel
from worker import engine as engine_module
from worker.engine import TorchEngine
from worker.networks import Networks
from worker.precision import LARGEST_BATCH, pace
from worker.questions import Answer, Question, Step

PICTURE = np.asarray(scene(5, 96).image)


@pytest.fixture(scope="module")
def engine() -> TorchEngine:
    """On the CPU, with nothing but `vgg_mini`."""
    return TorchEngine(Networks(Path("/nonexistent"), torch.device("cpu"), download=False))


def question(kernel: int, layer: str = "conv2_2", **changes: Any) -> Question:
    """A quick question about a kernel."""
    fields = {"alpha": 1.0, "beta": 1.0, "solver": "fast", "effort": "quick", "iterations": 20, **changes}
    return Question("vgg_mini", layer, PICTURE, kernel, **fields)


def ask(
    engine: TorchEngine, questions: list[Question], on_step: Callable[[Step], None] = lambda _: None
) -> dict[int, Any]:
    """The answers by number."""
    return dict(engine.answer(questions, on_step, lambda: None))


def test_questions_of_several_layers_are_answered_each_with_its_own(engine: TorchEngine) -> None:
    """Whatever is asked together."""
    top = {layer: engine.ranking("vgg_mini", layer, PICTURE)[0] for layer in ("conv1_2", "conv3_1")}
    questions = [question(top["conv1_2"], "conv1_2"), question(top["conv3_1"], "conv3_1")]
    answers = ask(engine, questions)
    assert [answers[number].maps["before"].shape for number in (0, 1)] == [(96, 96), (24, 24)]


def test_the_ranking_is_by_mean_activation_and_without_silent_kernels(engine: TorchEngine) -> None:
    """The first is the loudest; a kernel that is left out answers nothing."""
    ranking = engine.ranking("vgg_mini", "conv2_2", PICTURE)
    network = engine.networks.get("vgg_mini")
    image = network.space.from_bytes(torch.from_numpy(PICTURE.transpose(2, 0, 1).copy())[None])
    means = network.features_of("conv2_2", image)[0].mean(dim=(1, 2))
    assert ranking == sorted((k for k in range(32) if means[k] > 0), key=lambda k: -float(means[k]))


def test_a_silent_kernel_is_refused_and_the_others_answered(engine: TorchEngine) -> None:
    """In one batch."""
    grey = np.full((96, 96, 3), 128, dtype=np.uint8)
    active = engine.ranking("vgg_mini", "conv2_1", grey)
    silent = next(kernel for kernel in range(32) if kernel not in active)
    questions = [
        Question("vgg_mini", "conv2_1", grey, kernel, 1.0, 1.0, "fast", "quick", 5) for kernel in (silent, active[0])
    ]
    answers = ask(engine, questions)
    assert isinstance(answers[0], SilentKernel)
    assert isinstance(answers[1], Answer)
    assert isinstance(ask(engine, questions[:1])[0], SilentKernel)


def test_batches_are_halved_when_memory_runs_out(engine: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that holds two problems answers five of them; one that holds none says so."""
    kernels = engine.ranking("vgg_mini", "conv2_2", PICTURE)[:5]
    room = 2
    real = engine_module._answers

    def cramped(network: Any, cut: Any, speed: Any, questions: Any, *rest: Any) -> Any:
        if len(questions) > room:
            raise torch.OutOfMemoryError
        return real(network, cut, speed, questions, *rest)

    monkeypatch.setattr(engine_module, "_answers", cramped)
    answers = ask(engine, [question(kernel) for kernel in kernels])
    assert sorted(answers) == [0, 1, 2, 3, 4]
    assert all(isinstance(answer, Answer) for answer in answers.values())
    room = 0
    assert isinstance(ask(engine, [question(kernels[0])])[0], DeviceOutOfMemory)


def test_a_batch_mate_changes_a_result_by_less_than_two_percent(engine: TorchEngine) -> None:
    """The same question alone and among others (CPU kernels differ with the batch size)."""
    kernels = engine.ranking("vgg_mini", "conv3_1", PICTURE)[:4]
    questions = [question(kernel, "conv3_1", iterations=100) for kernel in kernels]
    together = ask(engine, questions)
    alone = ask(engine, questions[:1])[0]
    assert alone.losses.total == pytest.approx(together[0].losses.total, rel=0.02)
    assert alone.stopped == together[0].stopped


def test_bounds_are_kept_by_the_picture(engine: TorchEngine) -> None:
    """`target_met` is of the 8-bit picture; null where nothing was asked for."""
    kernel = engine.ranking("vgg_mini", "conv2_2", PICTURE)[0]
    bounds: list[dict[str, Any]] = [{}, {"target_ssim": 0.8}, {"max_preservation": 0.2}]
    asked = [question(kernel, iterations=100, **bound) for bound in bounds]
    free, alike, near = (answer for _, answer in sorted(ask(engine, asked).items()))
    assert (free.target_met, alike.target_met, near.target_met) == (None, True, True)
    assert alike.precision == near.precision == "float32"  # a bound is a bound on what is reported
    assert alike.metrics.ssim >= 0.8
    assert near.losses.preservation <= 0.2
    for answer in (alike, near):
        assert answer.losses.suppression + answer.losses.regularization < 0.8 * answer.loss_start


def test_steps_are_reported(engine: TorchEngine) -> None:
    """Iteration, budget and the mean loss, at each evaluation."""
    kernel = engine.ranking("vgg_mini", "conv2_2", PICTURE)[0]
    steps: list[Step] = []
    ask(engine, [question(kernel)], steps.append)
    assert [step.iteration for step in steps] == list(range(1, 21))
    assert {step.budget for step in steps} == {20}
    assert steps[-1].loss < steps[0].loss


def test_the_pace_is_measured_once_for_a_layer(engine: TorchEngine) -> None:
    """Small networks run in batches."""
    network = engine.networks.get("vgg_mini")
    first = pace(network.cut("conv2_2"), 96, torch.device("cpu"))
    assert pace(network.cut("conv2_2"), 96, torch.device("cpu")) is first
    assert 1 < first.batch <= LARGEST_BATCH
    assert first.seconds > 0
