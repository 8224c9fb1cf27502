"""Signs of life: one thread that renews the leases of everything a worker runs, as long as its engine lives."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Event, Lock, Thread
from typing import Protocol

from shared.errors import StoreUnavailable
from shared.jobs import Hold, Sign, Transitions
from worker.engine.engine import Engine

log = logging.getLogger(__name__)

PULSE_SECONDS = 0.25  # the append-only file is synced at each write


class Held(Protocol):
    """A slice that this worker runs."""

    watched: bool  # somebody wants to see X̂ as it forms

    @property
    def in_engine(self) -> bool:
        """Whether it waits for the engine; if not, it is being prepared."""
        ...

    def sign(self) -> Sign:
        """How far it is."""
        ...

    def lose(self) -> None:
        """Its lease is lost: another worker's, or its job was cancelled."""
        ...


class Pulse:
    """Renews leases four times a second, but only while the engine's step counter advances.

    Args:
        on_hang: called when the engine has had work and made no step for as long as a lease.
    """

    def __init__(self, transitions: Transitions, engine: Engine, on_hang: Callable[[], None]) -> None:
        self.transitions = transitions
        self.engine = engine
        self.on_hang = on_hang
        self._held: list[Held] = []
        self._lock = Lock()
        self._stop = Event()
        self._steps = -1
        self._stepped_at = time.monotonic()
        self._thread = Thread(target=self._run, name="pulse", daemon=True)
        self._thread.start()

    def take(self, run: Held) -> None:
        """From now on its lease is renewed."""
        with self._lock:
            self._held.append(run)

    def let_go(self, run: Held) -> None:
        """Its lease is nobody's business any more."""
        with self._lock:
            self._held.remove(run)

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(PULSE_SECONDS):
            try:
                self._beat()
            except StoreUnavailable as error:
                log.warning("%s; going on while the leases may hold", error)
            except Exception:  # a bug; without this thread every slice of this worker would lapse, again and again
                log.exception("the leases could not be renewed")

    def _beat(self) -> None:
        alive = self._alive()
        with self._lock:
            held = [run for run in self._held if alive or not run.in_engine]
        if not held:
            return
        for run, hold in zip(held, self.transitions.renew_all([run.sign() for run in held]), strict=True):
            run.watched = hold is Hold.WATCHED
            if hold is Hold.LOST:
                run.lose()

    def _alive(self) -> bool:
        """Whether the engine has made a step since the last beat, or has nothing to do."""
        steps, now = self.engine.steps, time.monotonic()
        if steps != self._steps or not self.engine.busy:
            self._steps, self._stepped_at = steps, now
            return True
        if now - self._stepped_at >= self.transitions.lease_seconds:
            log.critical("no step for %.0f s: the device hangs", now - self._stepped_at)
            self.on_hang()
        return False
