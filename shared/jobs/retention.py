"""Archiving and deletion of jobs and their files.

The record of a job is deleted immediately, and the job is marked as removed. Its folder is deleted a while later, when
workers that were still writing to it have lost their claims. A scan of the whole store finds files without a record: of
rejected requests, of a worker that was disconnected, of jobs that a restored backup of Redis does not have.
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

TOMBSTONE_SECONDS = 7 * 24 * 3600  # the owner of a deleted job is stored for so long
ARCHIVED_AFTER = 10.0  # seconds after a job's end; until then it can be read from Redis
SWEPT_AFTER = 20.0  # seconds after a removal, as a worker may still be writing a file
ORPHAN_AFTER = 3600.0  # age in seconds from which files without a record are deleted
RETRY_SECONDS = 60.0  # until a failed operation on a job is retried
RUNS = -1  # returned by the script for a job that has not ended
AT_ONCE = 8  # jobs processed at the same time


class Retention:
    """Archives jobs that have ended, removes expired ones, and deletes their files."""

    def __init__(self, transitions: Transitions, records: Records) -> None:
        self.transitions = transitions
        self.redis: Redis = transitions.redis
        self.store = records.store
        self.archive = records.archive
        self._remove = script(self.redis, "remove")
        self._pool = ThreadPoolExecutor(AT_ONCE, "retention")

    def archive_ended(self, most: int, after: float = ARCHIVED_AFTER) -> int:
        """Archive jobs that ended a while ago, oldest first, except those with a pending webhook.

        Returns the number of jobs considered.
        """
        with redis_errors():
            ended = self.redis.zrangebyscore("ks:finished", "-inf", now(self.redis) - after, 0, most)
            with self.redis.pipeline(transaction=False) as pipe:
                for job_id in ended:
                    pipe.hexists("ks:webhooks:messages", job_id)
                    pipe.zscore("ks:webhooks", job_id)
                due = pipe.execute() if ended else []
            webhooks = zip(ended, due[::2], due[1::2], strict=True)
            waiting = [job_id for job_id, message, at in webhooks if message or at is not None]
        if waiting:  # move them to the end; if Redis is full and rejects that, nothing is lost
            with suppress(StoreUnavailable), redis_errors():
                self.redis.zadd("ks:finished", dict.fromkeys(waiting, now(self.redis)), xx=True)
        self._each(self._archive_one, "ks:finished", [job_id for job_id in ended if job_id not in waiting])
        return len(ended)

    def _archive_one(self, job_id: str) -> None:
        if self.archive.put(job_id):
            return
        with redis_errors():  # it was removed or retried
            status = self.redis.hget(f"ks:job:{job_id}", "status")
            if status is None or not Status(status).terminal:
                self.redis.zrem("ks:finished", job_id)

    def _each(self, operation: Callable[[str], None], index: str, jobs: Sequence[str]) -> None:
        """Run an operation for each job. Failures do not affect the other jobs, and are retried later."""

        def run(job_id: str) -> None:
            try:
                operation(job_id)
            except StoreUnavailable:
                raise
            except Exception:
                log.exception("job %s: %s", job_id, index)
                with redis_errors():
                    self.redis.zadd(index, {job_id: now(self.redis) + RETRY_SECONDS}, xx=True)

        list(self._pool.map(run, jobs))

    def expire(self, most: int = 1000) -> int:
        """Remove up to `most` expired jobs. Returns their number."""
        with redis_errors():
            late = self.redis.zrangebyscore("ks:expiry", "-inf", now(self.redis), 0, most)
        for job_id in late:
            self.remove(job_id, tombstone=made_at(job_id) is None)
        return len(late) + self._expire_archived(most - len(late))

    def _expire_archived(self, most: int) -> int:
        """Remove expired archived jobs, which are in one list per hour. It can be interrupted and repeated."""
        done, hour = 0, int(now(self.redis) // HOUR)
        with redis_errors():
            keys: list[str] = self.redis.zrangebyscore(EXPIRING, "-inf", hour - 1)
        for key in keys:
            while done < most:
                with redis_errors():
                    entries = self.redis.lrange(key, 0, min(100, most - done) - 1)
                for entry in entries:
                    job_id, created, owner = entry.split(SEPARATOR, 2)
                    self._delete(job_id, owner, created, "", tombstone=made_at(job_id) is None)
                    with redis_errors():
                        self.redis.lrem(key, 1, entry)
                done += len(entries)
                if not entries:
                    self._remove_list(key)
                    break
        return done

    def _remove_list(self, key: str) -> None:
        with redis_errors():
            self.redis.zrem(EXPIRING, key)
            if self.redis.exists(key):  # a job was added at this moment
                self.redis.zadd(EXPIRING, {key: int(key.rpartition(":")[2])})

    def remove(self, job_id: str, *, tombstone: bool = True) -> None:
        """Cancel a job if it has not ended, and delete its record. Its files are deleted later.

        Args:
            tombstone: store the owner of the job for a week.
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
        self._delete(job_id, owner or "", created, key or "", tombstone=tombstone)

    def _delete(self, job_id: str, owner: str, created: str, key: str, *, tombstone: bool) -> None:
        """Delete a record. A job that has not ended, or was retried at this moment, is cancelled first."""
        seconds = TOMBSTONE_SECONDS if tombstone else 0
        while True:
            with redis_errors():
                state = self._remove(keys=[f"ks:job:{job_id}"], args=[job_id, owner, created, key, seconds])
            if state != RUNS:
                return
            with suppress(JobNotFound, JobEnded):
                self.transitions.cancel(job_id)

    def remove_files(self, most: int, after: float = SWEPT_AFTER) -> int:
        """Delete the files of jobs that were removed a while ago. Returns the number of jobs."""
        until = now(self.redis) - after
        with redis_errors():
            removed = self.redis.zrangebyscore(REMOVED, "-inf", until, 0, most)
            late = self.redis.zrangebyscore(LATE, "-inf", until, 0, most - len(removed))
        self._each(self._remove_files, REMOVED, removed)
        self._each(self._remove_late_files, LATE, late)
        return len(removed) + len(late)

    def _remove_files(self, job_id: str) -> None:
        self.archive.remove_image_references(job_id)
        self.store.remove(job_id, self.archive.files(job_id))
        with redis_errors():
            self.redis.zrem(REMOVED, job_id)

    def _remove_late_files(self, job_id: str) -> None:
        """The job may exist after all: Redis may have accepted it although its response was lost."""
        if not self._exists(job_id):
            self.store.remove(job_id)
        with redis_errors():
            self.redis.zrem(LATE, job_id)

    def _exists(self, job_id: str) -> bool:
        """Whether a job is in Redis or in the archive, read in this order as jobs move from one to the other."""
        with redis_errors():
            live = self.redis.exists(f"ks:job:{job_id}")
        return bool(live) or self.store.has(job_id, NAME)

    def remove_orphans(self, shard: str) -> int:
        """Remove files without a record in one of the store's `SHARDS`. Returns the number of jobs."""
        orphans = [job_id for job_id, names in self.store.jobs(shard) if NAME not in names and _old(job_id)]
        lost = [job_id for job_id in orphans if not self._exists(job_id)]
        for job_id in lost:
            log.warning("job %s has files and no record; they are removed", job_id)
            self.store.remove(job_id)
        return len(lost)


def _old(job_id: str) -> bool:
    made = made_at(job_id)
    return made is not None and made < time.time() - ORPHAN_AFTER
