"""Which slices a worker takes, and when.

From which queue the next message is taken, so that a small job does not wait behind big ones (`Turns`, which kombu
asks), and which of the slices that wait there may run here (`Admission`).

A slice is suspected when workers died while they ran it. It runs in company, but never two of them in one worker: when
that worker dies it was the suspect, as far as one can know. What must wait for another suspect is passed over;
meanwhile whoever is free may take it. So is what needs a network or layer that this worker has not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

from kombu.utils.scheduling import round_robin_cycle

from shared.jobs import Next
from shared.jobs.claims import SUSPECTED
from shared.workers import NetworkState, able

BULK = "bulk"
KNOWN_SECONDS = 1.0  # for which a network's state is believed


class Admission:
    """Of one worker.

    Args:
        state: of a network by its name, as it is now; None: there is none of this name.
    """

    def __init__(self, state: Callable[[str], NetworkState | None]) -> None:
        self.closed = False
        self._state = state
        self._known: dict[str, tuple[float, NetworkState | None]] = {}  # since when
        self._lock = Lock()
        self._suspect = False  # one runs

    @contextmanager
    def enter(self, claim: Callable[[Callable[[str], bool]], Next]) -> Iterator[Next]:
        """Inside, what was claimed.

        Args:
            claim: is told which buckets are this worker's now, and claims; one at a time.
        """
        with self._lock:
            found = claim(self._runs)
            suspected = found.claim is not None and found.claim.suspected
            self._suspect |= suspected
        try:
            yield found
        finally:
            if suspected:
                with self._lock:
                    self._suspect = False

    def able(self, model: str, layer: str) -> bool:
        """Whether this worker has the network and the layer now."""
        self._known.pop(model, None)
        return self._able(f"{model} {layer}")

    def _runs(self, bucket: str) -> bool:
        """Whether what waits there may run here now."""
        need = bucket.removesuffix(SUSPECTED)
        return not (self._suspect and bucket != need) and self._able(need)

    def _able(self, need: str) -> bool:
        model, now = need.partition(" ")[0], time.monotonic()
        since, state = self._known.get(model, (float("-inf"), None))
        if now - since > KNOWN_SECONDS:
            state = self._state(model)
            self._known[model] = now, state
        return state is not None and able({model: state}, need)


class Places:
    """Places for slices of big jobs. Were all of a worker's slices theirs, a small job would wait for one to end."""

    def __init__(self) -> None:
        self.most = 1
        self.taken = 0
        self._lock = Lock()

    @contextmanager
    def taken_by(self, queue: str) -> Iterator[None]:
        """A slice from this queue runs."""
        own = int(queue == BULK)
        with self._lock:
            self.taken += own
        try:
            yield
        finally:
            with self._lock:
                self.taken -= own


bulk = Places()


class Turns(round_robin_cycle):
    """Kombu's round robin (`queue_order_strategy`), asked before each poll; of big jobs only where there is a place."""

    def consume(self, n: int) -> list[str]:
        """The queues to poll, the one whose turn it is first."""
        queues: list[str] = self.items[:n]
        return [queue for queue in queues if queue != BULK or bulk.taken < bulk.most]
