"""The slices of a worker: claimed, run, and released when it stops. slices.py runs a single one."""

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
from worker.jobs.admission import SliceAdmission
from worker.jobs.inputs import Decoder
from worker.jobs.leases import LeaseRenewer
from worker.jobs.slices import SliceContext, SliceRun
from worker.jobs.telemetry import Telemetry

log = logging.getLogger(__name__)

RESEND_SECONDS = 1.0  # after which a message about a slice for other workers is sent again


@dataclass
class SliceRunner:
    """Runs slices on one engine, each in its caller's thread.

    Args:
        engine: answers the questions of all slices.
        leases: renews the leases of all slices.
        records, transitions: of the jobs.
        store: of images and results.
        worker: the worker's name.
        max_pixels: the largest image.
        announce: sends the message that a slice of a queue may be runnable: (slice id or "", queue).
    """

    engine: Engine
    leases: LeaseRenewer
    records: Records
    transitions: Transitions
    store: BlobStore
    worker: str
    max_pixels: int
    announce: Callable[[str, str], None]
    telemetry: Telemetry = field(default_factory=Telemetry)
    _running: set[SliceRun] = field(default_factory=set)
    _resends: dict[Queue, Timer] = field(default_factory=dict)  # messages for other workers, by queue
    _lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        """Create what all slices share."""
        decoder = Decoder(self.max_pixels)
        for collector in (self.store.seconds, self.store.errors):
            self.telemetry.registry.register(collector)
        self.admission = SliceAdmission(self.engine.device.state)
        able = self.admission.able
        surveys = Surveys(self.store, DataSets(self.store, sys.maxsize))
        stores = (self.records, self.transitions, self.store, surveys)
        self.context = SliceContext(self.engine, *stores, decoder, self.telemetry, able)

    def run(self, queue: Queue, announced: str = "") -> None:
        """Claim the next slice of this queue, if there is any, and run it to its end.

        Args:
            queue: of the message.
            announced: the slice that the message was about.
        """
        if self.admission.closed:
            self.announce(announced, queue)
            return
        claim = partial(self.transitions.next, queue, self.worker, announced=announced)
        with self.admission.enter(lambda runs: claim(runs=runs)) as found:
            self._forward(queue, found)
            if found.claim:
                with _traced(found.claim):
                    self._run(found.claim)

    def stop(self) -> None:
        """Stop and release all slices, and claim no more."""
        for run in self._close():
            run.stop()

    def abandon(self) -> None:
        """Release all slices without stopping them. Without a lease their threads cannot write any more."""
        for run in self._close():
            with suppress(LostLease):
                self._release(run.claim)

    def _close(self) -> list[SliceRun]:
        """Claim no more, and send the delayed messages now. Returns the running slices."""
        with self._lock:
            self.admission.closed = True
            running = list(self._running)
        for queue in QUEUES:
            self._resend(queue)
        return running

    def _forward(self, queue: Queue, found: Next) -> None:
        """Send a further message while slices wait. Each queue with waiting slices needs at least one message."""
        if found.claim and found.unannounced > 0:
            self._announce_any(queue)
        elif found.waiting and not found.claim:  # for example for a network that only other workers have
            with self._lock:
                if queue not in self._resends:
                    self._resends[queue] = Timer(RESEND_SECONDS, self._resend, [queue])
                    self._resends[queue].daemon = True
                    self._resends[queue].start()

    def _resend(self, queue: Queue) -> None:
        """Send the delayed message of a queue, if any."""
        with self._lock:
            timer = self._resends.pop(queue, None)
        if timer:
            timer.cancel()
            self._announce_any(queue)

    def _announce_any(self, queue: Queue) -> None:
        """Send a message about any slice of a queue. If that fails, housekeeping sends one later."""
        with suppress(StoreUnavailable):
            self.announce("", queue)

    def _release(self, claim: Claim) -> None:
        """Release a slice, so that another worker continues after its last committed item."""
        self.transitions.release(claim)
        if queue := self.transitions.sent(claim.slice_id):
            self.announce(claim.slice_id, queue)
        log.info("%s: released", claim.slice_id)

    def _run(self, claim: Claim) -> None:
        log.info("%s: started, attempt %d, %d items", claim.slice_id, claim.attempt, len(claim.items))
        run = SliceRun(self.context, claim)
        with self._lock:
            self._running.add(run)
            if self.admission.closed:  # in the meantime
                run.stop()
        self.leases.add(run)
        try:
            if not run.run() and not run.lost:
                self._release(claim)
        except LostLease:
            log.warning("%s: cancelled, or its lease was lost; uncommitted results are discarded", claim.slice_id)
            with suppress(StoreUnavailable):  # else the cleanup of the store finds its files
                self.records.schedule_cleanup(claim.job_id)
        except StoreUnavailable as error:
            if self.admission.closed:
                with suppress(LostLease, StoreUnavailable):
                    self._release(claim)
                return
            log.warning("%s: %s; the slice is retried when its lease has expired", claim.slice_id, error)
        finally:
            self.leases.remove(run)
            with self._lock:
                self._running.discard(run)


@contextmanager
def _traced(claim: Claim) -> Iterator[None]:
    """Adds the job to log lines, and the waiting and running time of the slice to its trace."""
    number = claim.slice_id.rpartition(":")[2]
    own = {"job_id": claim.job_id, "slice": number}
    if claim.waited is not None:
        telemetry.past("queue", time.time() - claim.waited, claim.traceparent, queue=claim.queue, **own)
    with (
        logs.bound(**own, **telemetry.fields(claim.traceparent)),
        telemetry.span("slice", claim.traceparent, attempt=claim.attempt, items=len(claim.items), **own),
    ):
        yield
