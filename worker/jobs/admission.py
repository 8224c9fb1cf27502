"""Which slices a worker claims, and when.

`QueueOrder` chooses the queue of the next message, so that small jobs do not wait behind big ones. `SliceAdmission`
decides which of the waiting slices may run here.

A slice is a suspect if workers died while they ran it. It runs beside other slices, but a worker runs at most one
suspect: if the worker dies, the suspect is assumed to be the cause. A slice that would be a second suspect, or whose
network or layer this worker does not have, is skipped and left to other workers.
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
STATE_SECONDS = 1.0  # for which a network's state is cached


class SliceAdmission:
    """Admits slices to one worker.

    Args:
        state: returns the present state of a network by its name; None: no network has this name.
    """

    def __init__(self, state: Callable[[str], NetworkState | None]) -> None:
        self.closed = False
        self._state = state
        self._known: dict[str, tuple[float, NetworkState | None]] = {}  # (time, state) by name
        self._lock = Lock()
        self._suspect = False  # whether one runs

    @contextmanager
    def enter(self, claim: Callable[[Callable[[str], bool]], Next]) -> Iterator[Next]:
        """The context in which a claimed slice runs.

        Args:
            claim: claims a slice from one of the buckets that its argument accepts; called by one thread at a time.
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
        """Whether slices of this bucket may run here now."""
        need = bucket.removesuffix(SUSPECTED)
        return not (self._suspect and bucket != need) and self._able(need)

    def _able(self, need: str) -> bool:
        model, now = need.partition(" ")[0], time.monotonic()
        since, state = self._known.get(model, (float("-inf"), None))
        if now - since > STATE_SECONDS:
            state = self._state(model)
            self._known[model] = now, state
        return state is not None and able({model: state}, need)


class BulkSlots:
    """Limits the slices of big jobs, so that some of a worker's slots remain free for small jobs."""

    def __init__(self) -> None:
        self.most = 1
        self.taken = 0
        self._lock = Lock()

    @contextmanager
    def occupied_by(self, queue: str) -> Iterator[None]:
        """The context in which a slice of this queue runs."""
        own = int(queue == BULK)
        with self._lock:
            self.taken += own
        try:
            yield
        finally:
            with self._lock:
                self.taken -= own


bulk = BulkSlots()


class QueueOrder(round_robin_cycle):
    """Kombu's round robin (`queue_order_strategy`) without the queue of big jobs while its slots are occupied."""

    def consume(self, n: int) -> list[str]:
        """The queues to poll, in order."""
        queues: list[str] = self.items[:n]
        return [queue for queue in queues if queue != BULK or bulk.taken < bulk.most]
