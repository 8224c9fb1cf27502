"""Jobs of form 1, whose files lay in one place for all jobs: brought into folders of their own, so that all are alike.

Such a job has no `v` in its record. Its blobs are `blobs/…` in the store, and sets in Redis say which jobs refer to
each. What ran when the version changed goes on as it is, and is moved when it has ended.
"""

from __future__ import annotations

import logging

from redis import Redis

from shared.clock import now
from shared.connection import redis_errors
from shared.schemas import Status
from shared.store import BlobStore

log = logging.getLogger(__name__)

ORPHANS = "ks:orphans"  # blobs that the former version had not removed yet


class Migration:
    """From the form of records and files that the first version had."""

    def __init__(self, redis: Redis, store: BlobStore) -> None:
        self.redis = redis
        self.store = store

    def begin(self) -> int:
        """Have every job of form 1 archived that has ended, and forget what is nobody's. Returns how many there are."""
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
            self.adopt(job_id)  # images of a request that was refused
            with redis_errors():
                self.redis.zrem("ks:expiry", job_id)
        self._orphans()
        if ended:
            log.warning("%d jobs are of an earlier version; they are moved to the archive", len(ended))
        return len(ended)

    def adopt(self, job_id: str) -> None:
        """Bring a job's files into its folder, and let go of them where they were."""
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
            self._let_go(digest, job_id)
        with redis_errors(), self.redis.pipeline(transaction=False) as pipe:
            for image in images:
                pipe.srem(image, job_id)
            pipe.delete(f"{job}:blobs", f"{job}:images", f"{job}:drawn")
            pipe.execute()

    def log_of(self, job_id: str) -> list[str]:
        """The events of a job of form 1, as its log would have had them."""
        with redis_errors():
            entries = [entry for _, entry in self.redis.xrange(f"ks:job:{job_id}:events")]
        return [f"{entry['kind']} {entry['data']}" for entry in entries if entry["kind"] != "progress"]

    def _let_go(self, digest: str, job_id: str) -> None:
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
            self._let_go(digest, "")
        with redis_errors():
            self.redis.delete(ORPHANS)
