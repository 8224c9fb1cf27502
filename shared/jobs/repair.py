"""Makes Redis and the object store consistent after only one of them was restored from a backup.

A counter is stored in both and incremented regularly. The one with the smaller number is older than the other.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator

from redis import Redis

from shared.connection import redis_errors
from shared.jobs.archive import NAME, SEPARATOR, Archive
from shared.store import SHARDS, BlobStore

log = logging.getLogger(__name__)

BEAT = "ks:beat"
PLACE = "state/beat"
BATCH = 500
AGAIN = "Redis is older than the object store: {} finished jobs are listed again"
LOST = "the object store is older than Redis: {} finished jobs are lost with their files"


class Repair:
    """Compares the counters regularly, and repairs the lists of archived jobs."""

    def __init__(self, redis: Redis, store: BlobStore, archive: Archive) -> None:
        self.redis = redis
        self.store = store
        self.archive = archive
        self._repairing: Iterator[int] | None = None
        self._sentence = ""
        self._found = 0

    def round(self, seconds: float = math.inf) -> str | None:
        """Compare the counters, repair for at most `seconds`, and increment the counters once that is complete.

        Returns a description of a completed repair. After an exception, the next round starts again.
        """
        if self._repairing is None:
            self._repairing, self._found = self._compare(), 0
        end = time.monotonic() + seconds
        try:
            for found in self._repairing:
                self._found += found
                if time.monotonic() > end:
                    return None
        except BaseException:
            self._repairing = None
            raise
        self._repairing = None
        repaired = self._sentence.format(self._found) if self._sentence else None
        if repaired:
            log.warning("%s", repaired)
        number = max(self._numbers()) + 1
        self.store.note(PLACE, str(number))
        with redis_errors():
            self.redis.set(BEAT, number)
        return repaired

    def _numbers(self) -> tuple[int, int]:
        with redis_errors():
            return int(self.redis.get(BEAT) or 0), int(self.store.noted(PLACE) or 0)

    def _compare(self) -> Iterator[int]:
        """An iterator that does the repair; each step yields the number of jobs repaired."""
        ours, theirs = self._numbers()
        self._sentence = ""
        if ours < theirs - 1:  # a difference of one: a process was killed between the two writes
            self._sentence = AGAIN
            return self._list_again()
        if theirs < ours:
            self._sentence = LOST
            return self._unlist()
        return iter(())

    def _list_again(self) -> Iterator[int]:
        """Add finished jobs in the store that are on no list."""
        for shard in SHARDS:
            for job_id, names in self.store.jobs(shard):
                yield int(NAME in names and self.archive.list_again(job_id))

    def _unlist(self) -> Iterator[int]:
        """Remove finished jobs from the lists whose record is gone."""
        with redis_errors():
            for owner in self.redis.smembers("ks:owners"):
                for line, _ in self.redis.zscan_iter(f"ks:jobs:{owner}", count=BATCH):
                    job_id, ended, _ = line.partition(SEPARATOR)
                    lost = ended and not self.store.has(job_id, NAME)
                    yield int(self.redis.zrem(f"ks:jobs:{owner}", line)) if lost else 0
