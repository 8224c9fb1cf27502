"""An engine without a network, behind the real interface: for tests of what is around it (`KERNELSCOPE_ENGINE=dummy`).

X̂ is the picture with every channel but green at the mean colour; kernel k is active on every picture unless its index
ends in 9. Each evaluation takes a millisecond, so that progress, stopping and leases are real.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from shared import catalogue
from shared.errors import KernelscopeError, SilentKernel
from shared.schemas import Losses, Metrics, WeightsUsed
from shared.workers import NetworkState
from worker.questions import Answer, Engine, OnStep, Picture, Question, ShouldStop, Step

MAP_SIDE = 12
WEIGHTS = WeightsUsed(source="dummy", sha256="0" * 64)


class DummyEngine(Engine):
    """Answers at once; no torch computation."""

    device = "dummy"

    def preload(self, model: str) -> None:
        """Nothing to load."""

    def states(self) -> dict[str, NetworkState]:
        """Every network of the catalogue, wholly covered."""
        return {
            name: NetworkState(
                available=True,
                reason="the dummy engine needs no weights",
                source=WEIGHTS.source,
                sha256=WEIGHTS.sha256,
                layers=[layer.name for layer in network.layers],
            )
            for name, network in catalogue.networks().items()
        }

    def input_size(self, model: str) -> int:
        """As the catalogue has it."""
        return catalogue.network(model).input_size

    def ranking(self, model: str, layer: str, picture: Picture) -> list[int]:  # noqa: ARG002
        """Every kernel whose index does not end in 9, in order."""
        kernels = catalogue.network(model).layer(layer).kernels
        return [kernel for kernel in range(kernels) if kernel % 10 != 9]

    def answer(
        self, questions: Sequence[Question], on_step: OnStep, should_stop: ShouldStop
    ) -> Iterator[tuple[int, Answer | KernelscopeError]]:
        """One question after another."""
        for number, question in enumerate(questions):
            budget = question.iterations or 20
            for iteration in range(1, budget + 1):
                if should_stop():
                    return
                time.sleep(0.001)
                on_step(Step(iteration, budget, 2.0 - iteration / budget))
            if question.kernel % 10 == 9:
                yield number, SilentKernel(f"kernel {question.kernel} is silent on this image")
            else:
                yield number, _answer(question, budget)


def _answer(question: Question, iterations: int) -> Answer:
    picture = question.picture.copy()
    picture[:, :, (0, 2)] = 128
    x = ((picture / 255 - 0.5) / 0.25).astype(np.float32).transpose(2, 0, 1)
    side = np.linspace(0, picture.shape[0] - 1, MAP_SIDE).astype(int)
    before = (question.picture[side][:, side, 1] / 255).astype(np.float32)
    others = np.stack([before.T, 1 - before]).astype(np.float32)
    losses = Losses(preservation=0.1, suppression=0.2, regularization=0.3, total=0.6)
    metrics = Metrics(
        ssim=1.0,
        ssim_window=11,
        ssim_paper=1.0,
        mse_others=0.1,
        mse_others_before=1.0,
        mse_selected=0.0,
        leakage=0.2,
        sparsity=0.5,
    )
    return Answer(
        picture=picture,
        x=x,
        maps={
            "before": before,
            "after": before,
            "others": np.array([1, 2]),
            "others_before": others,
            "others_after": others / 10,
        },
        losses=losses,
        losses_float=losses,
        loss_start=2.0,
        loss_blank=1.0,
        metrics=metrics,
        metrics_float=metrics,
        target_met=True if question.bounded else None,
        iterations=iterations,
        seconds=iterations / 1000,
        stopped="budget",
        precision="float32",
        history=[(1, 0.0, 1.0, 1.0, 2.0), (iterations, 0.1, 0.2, 0.3, 0.6)],
        weights=WEIGHTS,
    )
