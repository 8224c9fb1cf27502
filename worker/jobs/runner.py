"""A worker's slices: taken, run, handed back. What is done with one is in slices.py."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from threading import Lock, Timer

from shared import logs, telemetry
from shared.datasets import DataSets
from shared.errors import StoreUnavailable
from shared.jobs import Claim, LostLease, Next, Records, Transitions
from shared.jobs.claims import QUEUES, Queue
from shared.store import BlobStore
from shared.surveys.store import Surveys
from worker.engine.engine import Engine
from worker.jobs.admission import Admission
from worker.jobs.inputs import Decoder
from worker.jobs.pulse import Pulse
from worker.jobs.slices import Hands, SliceRun
from worker.jobs.telemetry import Telemetry

log = logging.getLogger(__name__)

OTHERS_SECONDS = 1.0  # after which a message that was of no use here goes out again, for another worker


@dataclass
class Runner:
    """Runs slices on one engine, each in a thread of its own.

    Args:
        worker: its name.
        announce: sends the message that a slice of a queue may be runnable: (slice id or "", queue).
    """

    engine: Engine
    pulse: Pulse
    records: Records
    transitions: Transitions
    store: BlobStore
    worker: str
    max_pixels: int
    announce: Callable[[str, str], None]
    telemetry: Telemetry = field(default_factory=Telemetry)
    _running: set[SliceRun] = field(default_factory=set)
    _owed: dict[Queue, Timer] = field(default_factory=dict)  # messages for others, by their queues
    _lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        """What every slice is run with."""
        decoder = Decoder(self.max_pixels)
        for collector in (self.store.seconds, self.store.errors):
            self.telemetry.registry.register(collector)
        self.admission = Admission(self.engine.device.state)
        able = self.admission.able
        surveys = Surveys(self.store, DataSets(self.store, sys.maxsize))
        books = (self.records, self.transitions, self.store, surveys)
        self.hands = Hands(self.engine, *books, decoder, self.telemetry, able)

    def run(self, queue: Queue, announced: str = "") -> None:
        """Claim the slice of this queue whose turn it is, and bring it to its end; there may be none.

        Args:
            announced: the slice that the message was about.
        """
        if self.admission.closed:
            self.announce(announced, queue)
            return
        claim = partial(self.transitions.next, queue, self.worker, announced=announced)
        with self.admission.enter(lambda runs: claim(runs=runs)) as found:
            self._pass_on(queue, found)
            if found.claim:
                with _traced(found.claim):
                    self._run(found.claim)

    def stop(self) -> None:
        """Hand back everything that runs; take nothing more."""
        for run in self._close():
            run.end()

    def abandon(self) -> None:
        """Hand back what does not let itself be stopped; its thread can write nothing from here on."""
        for run in self._close():
            with suppress(LostLease):
                self._hand_back(run.claim)

    def _close(self) -> list[SliceRun]:
        """Nothing more is taken; what waits here is for others. Returns what runs."""
        with self._lock:
            self.admission.closed = True
            running = list(self._running)
        for queue in QUEUES:
            self._pay(queue)
        return running

    def _pass_on(self, queue: Queue, found: Next) -> None:
        """See to it that messages go on for as long as slices wait: one for each is not needed, none is too few."""
        if found.claim and found.unannounced > 0:
            self._permit(queue)
        elif found.waiting and not found.claim:  # for a network that others have, say
            with self._lock:
                if queue not in self._owed:
                    self._owed[queue] = Timer(OTHERS_SECONDS, self._pay, [queue])
                    self._owed[queue].daemon = True
                    self._owed[queue].start()

    def _pay(self, queue: Queue) -> None:
        """Send the message that was of no use here."""
        with self._lock:
            owed = self._owed.pop(queue, None)
        if owed:
            owed.cancel()
            self._permit(queue)

    def _permit(self, queue: Queue) -> None:
        """A message about no slice in particular. If it cannot be sent now, housekeeping does it later."""
        with suppress(StoreUnavailable):
            self.announce("", queue)

    def _hand_back(self, claim: Claim) -> None:
        """Somebody else shall go on after the last finished item."""
        self.transitions.release(claim)
        if queue := self.transitions.sent(claim.slice_id):
            self.announce(claim.slice_id, queue)
        log.info("%s: handed back", claim.slice_id)

    def _run(self, claim: Claim) -> None:
        log.info("%s: begun, attempt %d, %d items", claim.slice_id, claim.attempt, len(claim.items))
        run = SliceRun(self.hands, claim)
        with self._lock:
            self._running.add(run)
            if self.admission.closed:  # meanwhile
                run.end()
        self.pulse.take(run)
        try:
            if not run.to_the_end() and not run.lost:
                self._hand_back(claim)
        except LostLease:
            log.warning("%s: cancelled, or lost to another worker; what is not committed is dropped", claim.slice_id)
            with suppress(StoreUnavailable):  # else the walk through the store finds it
                self.records.late(claim.job_id)
        except StoreUnavailable as error:
            if self.admission.closed:
                with suppress(LostLease, StoreUnavailable):
                    self._hand_back(claim)
                return
            log.warning("%s: %s; its lease will lapse and the slice be tried again", claim.slice_id, error)
        finally:
            self.pulse.let_go(run)
            with self._lock:
                self._running.discard(run)


@contextmanager
def _traced(claim: Claim) -> Iterator[None]:
    """Log lines carry the job, and the trace has how long the slice waited and how long it ran."""
    number = claim.slice_id.rpartition(":")[2]
    own = {"job_id": claim.job_id, "slice": number}
    if claim.waited is not None:
        telemetry.past("queue", time.time() - claim.waited, claim.traceparent, queue=claim.queue, **own)
    with (
        logs.bound(**own, **telemetry.fields(claim.traceparent)),
        telemetry.span("slice", claim.traceparent, attempt=claim.attempt, items=len(claim.items), **own),
    ):
        yield
