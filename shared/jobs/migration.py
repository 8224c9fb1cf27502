"""Migration of jobs of form 1, whose files had one folder for all jobs, to folders of their own.

Such a job has no `v` in its record. Its blobs are `blobs/…` in the store, with the set of jobs that refer to each in
Redis. Jobs that are running during the upgrade continue unchanged, and are migrated when they have ended.
"""

from __future__ import annotations

import logging

from redis import Redis

from shared.clock import now
from shared.connection import redis_errors
from shared.schemas import Status
from shared.store import BlobStore

log = logging.getLogger(__name__)

ORPHANS = "ks:orphans"  # blobs that the earlier version still had to remove


class Migration:
    """Migrates records and files of the first version."""

    def __init__(self, redis: Redis, store: BlobStore) -> None:
        self.redis = redis
        self.store = store

    def begin(self) -> int:
        """Schedule all ended jobs of form 1 for archiving, and delete orphans. Returns the number of these jobs."""
        with redis_errors():
            jobs: list[str] = self.redis.zrange("ks:expiry", 0, -1)
            with self.redis.pipeline(transaction=False) as pipe:
                for job_id in jobs:
                    pipe.hmget(f"ks:job:{job_id}", "v", "status")
                records = dict(zip(jobs, pipe.execute(), strict=True)) if jobs else {}
            old = {job_id: status for job_id, (form, status) in records.items() if form is None}
            ended = [job_id for job_id, status in old.items() if status and Status(status).terminal]
            if ended:
                self.redis.zadd("ks:finished", dict.fromkeys(ended, now(self.redis) - 3600), nx=True)
        for job_id in (job_id for job_id, status in old.items() if status is None):
            self.adopt(job_id)  # images of a rejected request
            with redis_errors():
                self.redis.zrem("ks:expiry", job_id)
        self._orphans()
        if ended:
            log.warning("%d jobs of an earlier version are being archived", len(ended))
        return len(ended)

    def adopt(self, job_id: str) -> None:
        """Copy a job's files to its folder, and remove its references to the former ones."""
        job = f"ks:job:{job_id}"
        with redis_errors(), self.redis.pipeline(transaction=False) as pipe:
            pipe.exists(job)
            pipe.smembers(f"{job}:blobs")
            pipe.smembers(f"{job}:images")
            pipe.hgetall(f"{job}:drawn")
            there, blobs, images, drawn = pipe.execute()
        for digest in blobs if there else ():
            self.store.copy(job_id, digest, job_id)
        for place, digest in drawn.items():
            index, _, name = place.partition("/")
            if there and (data := self.store.get(job_id, digest)) is not None:
                self.store.put(job_id, data, f"drawn-{index}-{name}")
        for digest in blobs:
            self._dereference(digest, job_id)
        with redis_errors(), self.redis.pipeline(transaction=False) as pipe:
            for image in images:
                pipe.srem(image, job_id)
            pipe.delete(f"{job}:blobs", f"{job}:images", f"{job}:drawn")
            pipe.execute()

    def log_of(self, job_id: str) -> list[str]:
        """The events of a job of form 1, in the format of the log."""
        with redis_errors():
            entries = [entry for _, entry in self.redis.xrange(f"ks:job:{job_id}:events")]
        return [f"{entry['kind']} {entry['data']}" for entry in entries if entry["kind"] != "progress"]

    def _dereference(self, digest: str, job_id: str) -> None:
        with redis_errors(), self.redis.pipeline(transaction=True) as pipe:
            pipe.srem(f"ks:blob:{digest}", job_id)
            pipe.exists(f"ks:blob:{digest}")
            _, referred = pipe.execute()
        if not referred:
            self.store.remove_old(digest)

    def _orphans(self) -> None:
        with redis_errors():
            orphans: list[str] = list(self.redis.smembers(ORPHANS))
        for digest in orphans:
            self._dereference(digest, "")
        with redis_errors():
            self.redis.delete(ORPHANS)
