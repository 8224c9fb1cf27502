"""How jobs end up being forgotten: when their time is over, or when they are deleted; and how their files follow.

A job is removed from the record at once, and marked. Its folder is swept a while later, when whoever was still writing
into it has been refused. A walk through the whole store finds what no record knows of: files of requests that were
refused, of a worker that was cut off, of before a backup of Redis was restored.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from redis import Redis

from shared.clock import now
from shared.connection import redis_errors
from shared.errors import JobEnded, JobNotFound, StoreUnavailable
from shared.jobs.archive import EXPIRING, HOUR, LATE, NAME, REMOVED, SEPARATOR
from shared.jobs.ids import made_at
from shared.jobs.record import Records
from shared.jobs.scripts import script
from shared.jobs.transitions import Transitions
from shared.schemas import Status

log = logging.getLogger(__name__)

TOMBSTONE_SECONDS = 7 * 24 * 3600  # for which it is known whose a deleted job was
ARCHIVED_AFTER = 10.0  # seconds after a job's end, for which its readers find it in Redis
SWEPT_AFTER = 20.0  # seconds after a removal: a worker that knows nothing of it yet has a file in hand
ORPHAN_AFTER = 3600.0  # seconds after it was begun, from which a job without a record is nobody's
AGAIN_SECONDS = 60.0  # after which what went wrong with a job is tried again
RUNS = -1  # the script's answer of a job that has not ended
AT_ONCE = 8  # jobs whose files are moved or removed together


class Retention:
    """Archives jobs that have ended, removes those whose time is over, and sweeps their files."""

    def __init__(self, transitions: Transitions, records: Records) -> None:
        self.transitions = transitions
        self.redis: Redis = transitions.redis
        self.store = records.store
        self.archive = records.archive
        self._remove = script(self.redis, "remove")
        self._pool = ThreadPoolExecutor(AT_ONCE, "retention")

    def archive_ended(self, most: int, after: float = ARCHIVED_AFTER) -> int:
        """Archive jobs that ended a while ago, the oldest first, but those whose webhook is still to be delivered.

        Returns how many there were.
        """
        with redis_errors():
            ended = self.redis.zrangebyscore("ks:finished", "-inf", now(self.redis) - after, 0, most)
            with self.redis.pipeline(transaction=False) as pipe:
                for job_id in ended:
                    pipe.hexists("ks:webhooks:messages", job_id)
                    pipe.zscore("ks:webhooks", job_id)
                due = pipe.execute() if ended else []
            told = zip(ended, due[::2], due[1::2], strict=True)
            waiting = [job_id for job_id, message, at in told if message or at is not None]
        if waiting:  # they are looked at again when the others were; a full Redis refuses that, and loses nothing by it
            with suppress(StoreUnavailable), redis_errors():
                self.redis.zadd("ks:finished", dict.fromkeys(waiting, now(self.redis)), xx=True)
        self._each(self._archived, "ks:finished", [job_id for job_id in ended if job_id not in waiting])
        return len(ended)

    def _archived(self, job_id: str) -> None:
        if self.archive.put(job_id):
            return
        with redis_errors():  # it was removed, or is run again
            status = self.redis.hget(f"ks:job:{job_id}", "status")
            if status is None or not Status(status).terminal:
                self.redis.zrem("ks:finished", job_id)

    def _each(self, chore: Callable[[str], None], index: str, jobs: Sequence[str]) -> None:
        """Done for all of them; one for which it cannot be done costs the others nothing, and is tried again later."""

        def done(job_id: str) -> None:
            try:
                chore(job_id)
            except StoreUnavailable:
                raise
            except Exception:
                log.exception("job %s: %s", job_id, index)
                with redis_errors():
                    self.redis.zadd(index, {job_id: now(self.redis) + AGAIN_SECONDS}, xx=True)

        list(self._pool.map(done, jobs))

    def expire(self, most: int = 1000) -> int:
        """Remove jobs whose time is over, so many at most. Returns how many there were."""
        with redis_errors():
            late = self.redis.zrangebyscore("ks:expiry", "-inf", now(self.redis), 0, most)
        for job_id in late:
            self.remove(job_id, tombstone=made_at(job_id) is None)
        return len(late) + self._expire_archived(most - len(late))

    def _expire_archived(self, most: int) -> int:
        """Those that were archived are noted by the hour; a list that is cut off is read again."""
        done, hour = 0, int(now(self.redis) // HOUR)
        with redis_errors():
            keys: list[str] = self.redis.zrangebyscore(EXPIRING, "-inf", hour - 1)
        for key in keys:
            while done < most:
                with redis_errors():
                    entries = self.redis.lrange(key, 0, min(100, most - done) - 1)
                for entry in entries:
                    job_id, created, owner = entry.split(SEPARATOR, 2)
                    self._forget(job_id, owner, created, "", tombstone=made_at(job_id) is None)
                    with redis_errors():
                        self.redis.lrem(key, 1, entry)
                done += len(entries)
                if not entries:
                    self._drained(key)
                    break
        return done

    def _drained(self, key: str) -> None:
        with redis_errors():
            self.redis.zrem(EXPIRING, key)
            if self.redis.exists(key):  # one more at this moment
                self.redis.zadd(EXPIRING, {key: int(key.rpartition(":")[2])})

    def remove(self, job_id: str, *, tombstone: bool = True) -> None:
        """End a job if it runs, and forget it, wherever it is. Its files are swept later.

        Args:
            tombstone: whether it is kept for a week whose job it was.
        """
        with redis_errors():
            fields = self.redis.hmget(f"ks:job:{job_id}", "owner", "created_at", "idempotency", "v")
        owner, created, key, form = fields
        if created and form is None:
            self.archive.migration.adopt(job_id)
        if created is None:
            record = self.archive.head(job_id)
            if record is None:
                with redis_errors():
                    self.redis.zrem("ks:expiry", job_id)
                return
            owner, created, key = (record.get(name, "") for name in ("owner", "created_at", "idempotency"))
        self._forget(job_id, owner or "", created, key or "", tombstone=tombstone)

    def _forget(self, job_id: str, owner: str, created: str, key: str, *, tombstone: bool) -> None:
        """What runs, or was set to run again at this moment, is cancelled first."""
        seconds = TOMBSTONE_SECONDS if tombstone else 0
        while True:
            with redis_errors():
                state = self._remove(keys=[f"ks:job:{job_id}"], args=[job_id, owner, created, key, seconds])
            if state != RUNS:
                return
            with suppress(JobNotFound, JobEnded):
                self.transitions.cancel(job_id)

    def sweep(self, most: int, after: float = SWEPT_AFTER) -> int:
        """Remove the files of jobs that were removed a while ago. Returns of how many."""
        until = now(self.redis) - after
        with redis_errors():
            removed = self.redis.zrangebyscore(REMOVED, "-inf", until, 0, most)
            late = self.redis.zrangebyscore(LATE, "-inf", until, 0, most - len(removed))
        self._each(self._swept, REMOVED, removed)
        self._each(self._swept_late, LATE, late)
        return len(removed) + len(late)

    def _swept(self, job_id: str) -> None:
        self.archive.forget_images(job_id)
        self.store.remove(job_id, self.archive.files(job_id))
        with redis_errors():
            self.redis.zrem(REMOVED, job_id)

    def _swept_late(self, job_id: str) -> None:
        """It may have been taken after all, by a Redis whose answer did not arrive."""
        if not self._known(job_id):
            self.store.remove(job_id)
        with redis_errors():
            self.redis.zrem(LATE, job_id)

    def _known(self, job_id: str) -> bool:
        """Whether a job is in Redis, or else in the archive: it is written there before it leaves."""
        with redis_errors():
            live = self.redis.exists(f"ks:job:{job_id}")
        return bool(live) or self.store.has(job_id, NAME)

    def walk(self, shard: str) -> int:
        """Remove what lies in one of the store's `SHARDS` and is no job's. Returns of how many jobs."""
        orphans = [job_id for job_id, names in self.store.jobs(shard) if NAME not in names and _old(job_id)]
        lost = [job_id for job_id in orphans if not self._known(job_id)]
        for job_id in lost:
            log.warning("job %s has files and no record; they are removed", job_id)
            self.store.remove(job_id)
        return len(lost)


def _old(job_id: str) -> bool:
    made = made_at(job_id)
    return made is not None and made < time.time() - ORPHAN_AFTER
