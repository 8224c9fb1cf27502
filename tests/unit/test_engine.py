"""The engine on a small real network: who is answered, when, and with what."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from shared.errors import SilentKernel
from tests.unit.engines import PICTURE, ask, question, top
from worker.engine.device import TorchDevice
from worker.engine.engine import Engine
from worker.engine.questions import Answer, Answered
from worker.engine.scheduling import EngineRequest
from worker.engine.torch_batch import TorchBatch


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
        assert answer.stopped == alone.stopped
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
