"""Lease renewal: one thread that renews the leases of all slices of a worker, as long as its engine makes steps."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Event, Lock, Thread
from typing import Protocol

from shared.errors import StoreUnavailable
from shared.jobs import Heartbeat, LeaseState, Transitions
from worker.engine.engine import Engine

log = logging.getLogger(__name__)

RENEWAL_SECONDS = 0.25  # Redis syncs its append-only file at each renewal


class LeasedSlice(Protocol):
    """A slice whose lease this worker holds."""

    watched: bool  # whether a client follows its previews

    @property
    def in_engine(self) -> bool:
        """Whether it waits for the engine; otherwise it is being prepared."""
        ...

    def report(self) -> Heartbeat:
        """The progress of its items."""
        ...

    def lease_lost(self) -> None:
        """Called when another worker has the lease, or the job was cancelled."""
        ...


class LeaseRenewer:
    """Renews leases four times per second; those of slices in the engine only while its step counter advances.

    Args:
        transitions: of the jobs' records.
        engine: whose step counter is watched.
        on_hang: called when the engine had work but made no step for the duration of a lease.
    """

    def __init__(self, transitions: Transitions, engine: Engine, on_hang: Callable[[], None]) -> None:
        self.transitions = transitions
        self.engine = engine
        self.on_hang = on_hang
        self._leased: list[LeasedSlice] = []
        self._lock = Lock()
        self._stop = Event()
        self._steps = -1
        self._stepped_at = time.monotonic()
        self._thread = Thread(target=self._run, name="leases", daemon=True)
        self._thread.start()

    def add(self, run: LeasedSlice) -> None:
        """Renew the lease of this slice from now on."""
        with self._lock:
            self._leased.append(run)

    def remove(self, run: LeasedSlice) -> None:
        """Stop renewing the lease of this slice."""
        with self._lock:
            self._leased.remove(run)

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(RENEWAL_SECONDS):
            try:
                self._renew()
            except StoreUnavailable as error:
                log.warning("%s; work continues until the leases expire", error)
            except Exception:  # a bug; if this thread ended, all leases of this worker would expire
                log.exception("the leases could not be renewed")

    def _renew(self) -> None:
        alive = self._alive()
        with self._lock:
            leased = [run for run in self._leased if alive or not run.in_engine]
        if not leased:
            return
        for run, hold in zip(leased, self.transitions.renew_all([run.report() for run in leased]), strict=True):
            run.watched = hold is LeaseState.WATCHED
            if hold is LeaseState.LOST:
                run.lease_lost()

    def _alive(self) -> bool:
        """Whether the engine has made a step since the last renewal, or has no work."""
        steps, now = self.engine.steps, time.monotonic()
        if steps != self._steps or not self.engine.busy:
            self._steps, self._stepped_at = steps, now
            return True
        if now - self._stepped_at >= self.transitions.lease_seconds:
            log.critical("no step for %.0f s: the device hangs", now - self._stepped_at)
            self.on_hang()
        return False
