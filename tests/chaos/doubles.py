"""`python -m tests.chaos.doubles poison|hang`: a worker process whose device kills it, or never returns."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from threading import Event

from shared.settings import Settings
from worker import app, process
from worker.dummy import DummyBatch, DummyDevice
from worker.questions import Answered, Question, Ticket

BAD_KERNEL = 13


class Poisoned(DummyBatch):
    """Dies of kernel 13, as a process does whose memory runs out."""

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


class Double(DummyDevice):
    """The dummy device with other batches."""

    def __init__(self, kind: type[DummyBatch]) -> None:
        self.kind = kind

    def batch(self, question: Question) -> DummyBatch:  # noqa: ARG002
        """One of that kind."""
        return self.kind()


def _make(settings: Settings) -> Double:
    return Double({"poison": Poisoned, "hang": Hung}[sys.argv[1]])


if __name__ == "__main__":
    process.make_device = _make
    app.main()
