"""`python -m tests.chaos.doubles poison|hang|broken|dead|only NETWORK|clock SECONDS|later [api]`: test processes.

A worker whose device kills the process, never returns, breaks in mid-job, never worked, or has one network alone. Or
the device is an ordinary one, on a machine whose clock is wrong; or worker or API are of a later version, which writes
more than this one knows.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from threading import Event

from redis import Redis

import api.__main__ as api
from shared import workers
from shared.errors import ModelUnavailable
from shared.images import Frame
from shared.jobs import forms, submission, transitions
from shared.schemas import ExplainRequest, Item, ItemResult
from shared.settings import Settings
from shared.workers import HEARTBEAT_LIFETIME, NetworkState, WorkerState
from worker import app, process
from worker.engine.dummy import DummyBatch, DummyDevice
from worker.engine.questions import Answered, Device, Question, Ticket

BAD_KERNEL = 13


class Poisoned(DummyBatch):
    """Kernel 13 kills the process, as if it ran out of memory."""

    def add(self, tickets: Sequence[Ticket]) -> Answered:
        """Look at the kernel first."""
        if any(ticket.question.kernel == BAD_KERNEL for ticket in tickets):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().add(tickets)


class Hung(DummyBatch):
    """A step that never ends."""

    def step(self) -> Answered:
        """Never."""
        Event().wait()
        return []


class Breaking(DummyBatch):
    """A device that fails after a while."""

    def step(self) -> Answered:
        """As CUDA says it."""
        if self.iteration >= 50:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return super().step()


class Double(DummyDevice):
    """The dummy device with other batches."""

    def __init__(self, kind: type[DummyBatch], tests: int = 0) -> None:
        self.kind = kind
        self.tests = tests  # that it passes

    def broken(self, error: Exception) -> bool:
        """Of a card."""
        return "CUDA error" in str(error)

    def sound(self) -> bool:
        """So many times."""
        self.tests -= 1
        return self.tests >= 0

    def batch(self, question: Question) -> DummyBatch:  # noqa: ARG002
        """One of that kind."""
        return self.kind()


class Only(DummyDevice):
    """Has weights of one network."""

    def __init__(self, model: str) -> None:
        self.model = model

    def states(self) -> dict[str, NetworkState]:
        """No other is there."""
        lacking = {name: NetworkState(available=False, reason=f"no weights for {name}") for name in super().states()}
        return lacking | {self.model: super().states()[self.model]}

    def frame(self, model: str) -> Frame:
        """As a real device, which would look for the weights here."""
        if model != self.model:
            raise ModelUnavailable(f"no weights for {model}")
        return super().frame(model)


def _make(settings: Settings) -> Device:
    if sys.argv[1] == "only":
        return Only(sys.argv[2])
    kinds: dict[str, tuple[type[DummyBatch], int]] = {
        "poison": (Poisoned, 9),
        "hang": (Hung, 9),
        "broken": (Breaking, 1),
        "dead": (Breaking, 0),
    }
    return Double(*kinds[sys.argv[1]])


def _shift(seconds: float) -> None:
    """Make the machine's clock wrong."""
    right = time.time
    time.time = lambda: right() + seconds


def _later() -> None:
    """Write as a later version: more fields in requests, records and results, an unreadable heartbeat and network."""
    text_of, begun = forms.text_of, submission._initial

    def richer(result: ItemResult, blobs: Mapping[str, str]) -> str:
        known = json.loads(text_of(result, blobs))
        if known["metrics"]:
            known["metrics"]["beauty"] = 0.9
        return json.dumps({"lens": {"focus": 3}, **known})

    def more(request: ExplainRequest, text: str, slices: list[list[Item]]) -> dict[str, object]:
        wider = json.dumps({**json.loads(text), "lens": "wide"})
        return {**begun(request, wider, slices), "lens": "wide", "v": 3}

    publish = workers.publish

    def spoken(redis: Redis, state: WorkerState) -> None:
        publish(redis, state)
        redis.set("ks:worker:later", '{"id": 7}', ex=HEARTBEAT_LIFETIME)
        redis.sadd("ks:workers", "later")
        redis.hset("ks:networks", "strange", '{"name": "strange", "shape": "round"}')

    vars(process)["publish"] = spoken
    vars(transitions)["text_of"] = richer
    submission._initial = more


if __name__ == "__main__":
    if sys.argv[1] == "later":
        _later()
        if sys.argv[2:] == ["api"]:
            api.main()
            sys.exit()
    elif sys.argv[1] == "clock":
        _shift(float(sys.argv[2]))
    else:
        process.make_device = _make
    process.BROKEN_SECONDS = 2.0
    app.main()
