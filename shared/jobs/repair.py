"""Redis and the store, when one of them was restored from a backup alone: what the other knows is put right.

Both are told the same number now and then, one more each time. Who has the smaller one is older than the other.
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
    """Compares the two, again and again, and mends the lists of archived jobs."""

    def __init__(self, redis: Redis, store: BlobStore, archive: Archive) -> None:
        self.redis = redis
        self.store = store
        self.archive = archive
        self._mending: Iterator[int] | None = None
        self._sentence = ""
        self._found = 0

    def round(self, seconds: float = math.inf) -> str | None:
        """Compare, mend what there is to mend, for so long at a time; then give both the next number.

        Returns what was mended, in words, once it is. What fails is begun anew in the next round.
        """
        if self._mending is None:
            self._mending, self._found = self._compare(), 0
        end = time.monotonic() + seconds
        try:
            for found in self._mending:
                self._found += found
                if time.monotonic() > end:
                    return None
        except BaseException:
            self._mending = None
            raise
        self._mending = None
        told = self._sentence.format(self._found) if self._sentence else None
        if told:
            log.warning("%s", told)
        number = max(self._numbers()) + 1
        self.store.note(PLACE, str(number))
        with redis_errors():
            self.redis.set(BEAT, number)
        return told

    def _numbers(self) -> tuple[int, int]:
        with redis_errors():
            return int(self.redis.get(BEAT) or 0), int(self.store.noted(PLACE) or 0)

    def _compare(self) -> Iterator[int]:
        """What has to be done, as a walk; each step says how many jobs it has found."""
        ours, theirs = self._numbers()
        self._sentence = ""
        if ours < theirs - 1:  # a process that was killed between the two has left one more in the store
            self._sentence = AGAIN
            return self._list_again()
        if theirs < ours:
            self._sentence = LOST
            return self._unlist()
        return iter(())

    def _list_again(self) -> Iterator[int]:
        """Finished jobs that the store has and no list."""
        for shard in SHARDS:
            for job_id, names in self.store.jobs(shard):
                yield int(NAME in names and self.archive.list_again(job_id))

    def _unlist(self) -> Iterator[int]:
        """Finished jobs that are listed and whose record is gone."""
        with redis_errors():
            for owner in self.redis.smembers("ks:owners"):
                for line, _ in self.redis.zscan_iter(f"ks:jobs:{owner}", count=BATCH):
                    job_id, ended, _ = line.partition(SEPARATOR)
                    lost = ended and not self.store.has(job_id, NAME)
                    yield int(self.redis.zrem(f"ks:jobs:{owner}", line)) if lost else 0
