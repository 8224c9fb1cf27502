"""A slice runner with its services, on an engine whose device follows a script."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from redis import Redis

from shared.jobs import Records, Transitions
from shared.jobs.claims import Queue
from shared.schemas import ExplainRequest, WholeJob, plan
from shared.store import BlobStore
from shared.workers import NetworkState
from tests.conftest import noise, png
from worker.engine.dummy import DummyBatch, DummyDevice
from worker.engine.engine import Engine
from worker.engine.questions import Answered, Batch, Question, Ticket
from worker.jobs.leases import LeaseRenewer
from worker.jobs.runner import SliceRunner


@dataclass
class Scripted(DummyDevice):
    """The dummy device whose batches raise at a given kernel."""

    raises: dict[int, Exception] = field(default_factory=dict)

    def batch(self, question: Question) -> Batch:  # noqa: ARG002
        """A batch with this script."""
        return ScriptedBatch(self.raises)


class ScriptedBatch(DummyBatch):
    """A dummy batch that follows a script."""

    def __init__(self, raises: dict[int, Exception]) -> None:
        super().__init__()
        self.raises = raises

    def add(self, tickets: Sequence[Ticket]) -> Answered:
        """Raise at the script's kernel."""
        (ticket,) = tickets
        if ticket.question.kernel in self.raises:
            raise self.raises[ticket.question.kernel]
        return super().add(tickets)


class Lacking(DummyDevice):
    """A device without VGG-19."""

    def states(self) -> dict[str, NetworkState]:
        """All networks but this one."""
        return super().states() | {"vgg19": NetworkState(available=False, reason="no weights for vgg19")}


@dataclass
class JobBench:
    """A slice runner with its services, and a job of three kernels."""

    redis: Redis
    store: BlobStore
    folder: Path
    device: DummyDevice = field(default_factory=Scripted)
    announced: list[tuple[str, str]] = field(default_factory=list)
    hung: Event = field(default_factory=Event)
    lease_seconds: float = 20.0

    def submit(self, name: str = "j", images: Sequence[bytes] = (), **fields: object) -> None:
        """Create a job."""
        digests = [self.store.put(name, data) for data in images or [png(noise())]]
        base = {"images": digests, "model": "vgg_mini", "layer": "conv2_1", "kernels": [1, 2, 3], "iterations": 3}
        request = ExplainRequest.model_validate({**base, **fields})
        self.transitions.submit(name, request, plan(request, 100), 2e9)

    @property
    def transitions(self) -> Transitions:
        """What changes the record of a job."""
        return Transitions(self.redis, self.lease_seconds)

    @property
    def records(self) -> Records:
        """What reads the record of a job."""
        return Records(self.redis, self.store)

    @contextmanager
    def runner(self) -> Iterator[SliceRunner]:
        """A runner with its own engine."""
        engine = Engine(self.device)
        runner = SliceRunner(
            engine=engine,
            leases=LeaseRenewer(self.transitions, engine, on_hang=self.hung.set),
            records=self.records,
            transitions=self.transitions,
            store=self.store,
            worker="worker",
            max_pixels=10**8,
            announce=lambda *message: self.announced.append(message),
        )
        yield runner
        runner.leases.close()
        if not self.hung.is_set():
            engine.close()

    def run(self, slice_id: str = "j:0", queue: Queue = "interactive") -> WholeJob:
        """Run the only waiting slice. Returns the job afterwards."""
        with self.runner() as runner:
            runner.run(queue, slice_id)
        return self.records.whole(slice_id.split(":", maxsplit=1)[0])


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)
