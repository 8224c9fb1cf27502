"""From which queue the next message is taken: in turn, and from that of the big jobs only while there is room for them.

A worker holds several slices at once. Were they all of big jobs, a small one would wait until one of them is done.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from kombu.utils.scheduling import round_robin_cycle

BULK = "bulk"


class Places:
    """Places for slices of big jobs."""

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
    """Kombu's round robin (`queue_order_strategy`), which asks before each poll."""

    def consume(self, n: int) -> list[str]:
        """The queues to poll, the one whose turn it is first."""
        queues: list[str] = self.items[:n]
        return [queue for queue in queues if queue != BULK or bulk.taken < bulk.most]
