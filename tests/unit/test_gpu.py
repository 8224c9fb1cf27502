"""Tests that need a GPU; skipped without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared.drawings import scene
from worker.engine.answers import pose
from worker.engine.device import TorchDevice
from worker.engine.engine import Engine
from worker.engine.questions import Answer, Question
from worker.methods.suppression import FastSolver, Problems, SolverBatch
from worker.networks.loaded import Networks

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]

PICTURE = np.asarray(scene(5, 96).image)


def question(kernel: int, **changes: Any) -> Question:
    """A quick question."""
    return Question("vgg_mini", "conv3_1", PICTURE, kernel, 1.0, 1.0, "fast", "quick", 100, **changes)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_nothing_waits_for_the_device_between_two_read_outs() -> None:
    """Checked by torch itself, including problems with bounds."""
    network = Networks(Path("/nonexistent"), torch.device("cuda"), download=False).get("vgg_mini")
    cut = network.layer("conv3_1").cut
    posed = pose([question(kernel, target_ssim=0.9) for kernel in range(4)], network.layer("conv3_1"))
    batch: SolverBatch[Any] = SolverBatch(cut, torch.bfloat16)
    batch.add(Problems.join_all([one.problem for one in posed]), FastSolver(network.space))
    batch.step(2)  # what is made once is made
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(8):
            batch._evaluate()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_answers_are_those_of_the_cpu() -> None:
    """Within the solver's tolerance."""
    found: dict[str, list[float]] = {}
    for device in ("cpu", "cuda"):
        engine = Engine(TorchDevice(Networks(Path("/nonexistent"), torch.device(device), download=False)))
        kernels = engine.call(engine.device.ranking, "vgg_mini", "conv3_1", PICTURE)[:8]
        answers = dict(engine.ask([question(kernel) for kernel in kernels]))
        found[device] = [answer.losses.total for _, answer in sorted(answers.items()) if isinstance(answer, Answer)]
        engine.close()
    assert found["cuda"] == pytest.approx(found["cpu"], rel=0.03)
