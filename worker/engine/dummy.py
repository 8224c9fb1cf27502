"""A device without a network and with the real interface, for tests (`KERNELSCOPE_ENGINE=dummy`).

X̂ is the picture with every channel but green at the mean colour; kernel k is active on every picture unless its index
ends in 9. Each evaluation takes a millisecond, so that progress, stopping and leases are real.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from shared import catalogue
from shared.errors import SilentKernel
from shared.images import Frame
from shared.schemas import Losses, Metrics, Stop, WeightsUsed
from shared.surveys.parts import Seen
from shared.workers import NetworkState
from worker.engine.questions import Answer, Answered, Batch, Device, Maps, Picture, Preview, Question, Step, Ticket

MAP_SIDE = 12
WEIGHTS = WeightsUsed(source="dummy", sha256="0" * 64)


class DummyDevice(Device):
    """Answers at once; no torch computation."""

    name = "dummy"
    version = "dummy"

    def preload(self, model: str) -> None:
        """Nothing to load."""

    def retry(self) -> None:
        """Nothing to load."""

    def states(self) -> dict[str, NetworkState]:
        """Every network of the catalogue, with all its layers."""
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

    def registered(self) -> list[catalogue.Network]:
        """None."""
        return []

    def outdated(self) -> list[str]:
        """None."""
        return []

    def frame(self, model: str) -> Frame:
        """The catalogue's frame."""
        return catalogue.network(model).frame

    def weights(self, model: str) -> WeightsUsed:  # noqa: ARG002
        """A placeholder."""
        return WEIGHTS

    def ranking(self, model: str, layer: str, picture: Picture) -> list[int]:  # noqa: ARG002
        """Every kernel whose index does not end in 9, in order."""
        kernels = catalogue.network(model).layer(layer).kernels
        return [kernel for kernel in range(kernels) if kernel % 10 != 9]

    def feature_maps(self, model: str, layer: str, picture: Picture) -> Maps:
        """The map of kernel k is k+1 everywhere, or 0 if it is silent."""
        kernels = catalogue.network(model).layer(layer).kernels
        maps = np.zeros((kernels, MAP_SIDE, MAP_SIDE), np.float32)
        for kernel in self.ranking(model, layer, picture):
            maps[kernel] = kernel + 1
        return maps

    def survey(self, model: str, layers: Sequence[str], pictures: Sequence[Picture]) -> dict[str, Seen]:
        """Kernel k's highest activation is the mean of a channel, at the middle of the map; 0 if it is silent."""
        means = np.stack([picture.mean(axis=(0, 1)) for picture in pictures]).astype(np.float32) / 255  # (N, channels)
        found = {}
        for layer in layers:
            own = catalogue.network(model).layer(layer)
            positions = own.height * own.width
            peaks = means[:, np.arange(own.kernels) % means.shape[1]].astype(np.float32)
            peaks[:, 9::10] = 0
            places = np.full(peaks.shape, own.height // 2 * own.width + own.width // 2, np.int32)
            mean = (peaks / positions).astype(np.float32)
            found[layer] = Seen(positions, peaks, mean, (peaks > 0).astype(np.int32), places)
        return found

    def batch(self, question: Question) -> Batch:  # noqa: ARG002
        """A batch of one question."""
        return DummyBatch()

    def memory(self) -> int:
        """None."""
        return 0

    def broken(self, error: Exception) -> bool:  # noqa: ARG002
        """Never."""
        return False

    def sound(self) -> bool:
        """Always."""
        return True


class DummyBatch(Batch):
    """One question at a time."""

    def __init__(self) -> None:
        self.ticket: Ticket | None = None
        self.iteration = 0

    def __len__(self) -> int:
        """0 or 1."""
        return int(self.ticket is not None)

    @property
    def room(self) -> int:
        """0 or 1."""
        return 1 - len(self)

    def add(self, tickets: Sequence[Ticket]) -> Answered:
        """A kernel whose index ends in 9 is silent."""
        (ticket,) = tickets
        if ticket.question.kernel % 10 == 9:
            return [(ticket, SilentKernel(f"kernel {ticket.question.kernel} is silent on this image"))]
        self.ticket, self.iteration = ticket, 0
        return []

    def step(self) -> Answered:
        """A millisecond's work."""
        if self.ticket is None:
            return []
        budget = self.ticket.question.iterations or 20
        self.iteration += 1
        time.sleep(0.001)
        self.ticket.step = Step(self.iteration, budget, (0.0, 1.0, 1.0, 2.0 - self.iteration / budget))
        if self.ticket.preview_wanted:
            self.ticket.preview, self.ticket.preview_wanted = (
                Preview(self.iteration, self.ticket.question.picture),
                False,
            )
        return self._end("budget") if self.iteration == budget else []

    def stop(self, tickets: Sequence[Ticket]) -> Answered:
        """Answer with the iterations so far."""
        return self._end("deadline") if self.ticket in tickets else []

    def drop(self, tickets: Sequence[Ticket]) -> None:
        """Remove the question."""
        if self.ticket in tickets:
            self.ticket = None

    def _end(self, reason: Stop) -> Answered:
        assert self.ticket is not None
        ticket, self.ticket = self.ticket, None
        return [(ticket, _answer(ticket.question, self.iteration, reason))]


def _answer(question: Question, iterations: int, reason: Stop) -> Answer:
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
        invention=0.02,
        invention_by_layer={"conv1_1": 0.02},
        invention_beyond_blank=0.01,
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
        target_met=True if question.bounded or question.max_invention is not None else None,
        iterations=iterations,
        seconds=iterations / 1000,
        stopped=reason,
        precision="float32",
        history=[(1, 0.0, 1.0, 1.0, 2.0), (iterations, 0.1, 0.2, 0.3, 0.6)],
        weights=WEIGHTS,
    )
