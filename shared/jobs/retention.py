"""How jobs end up being forgotten: when their time is over, or when they are deleted. Their blobs go with them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from shared.errors import JobEnded, JobNotFound
from shared.jobs.record import Records, redis_errors
from shared.jobs.transitions import Transitions
from shared.store import BlobStore

TOMBSTONE_SECONDS = 7 * 24 * 3600
JOB_PARTS = ("results", "drawn", "blobs", "images", "events", "webhook")  # beside the record itself
ORPHANS = "ks:orphans"  # blobs of removed jobs: what interrupts their removal loses none of them


class Retention:
    """Removes jobs, and the blobs that nobody else refers to."""

    def __init__(self, transitions: Transitions) -> None:
        self.transitions = transitions
        self.redis = transitions.redis
        self.records = Records(self.redis)

    def expire(self) -> list[str]:
        """Remove every job whose time is over, leaving a tombstone. Returns the blobs that nobody refers to now."""
        with redis_errors():
            jobs: list[str] = self.redis.zrangebyscore("ks:expiry", "-inf", self.transitions.clock())
        return [digest for job_id in jobs for digest in self.remove(job_id)]

    def remove(self, job_id: str) -> list[str]:
        """End a job if it runs, and forget it but for a tombstone. Returns the blobs that nobody refers to now."""
        with suppress(JobNotFound, JobEnded):
            self.transitions.cancel(job_id)
        with redis_errors():
            return self._forget(job_id)

    def discard(self, store: BlobStore, digests: Sequence[str]) -> None:
        """Remove blobs that nobody refers to; who begins to do so at this moment finds them again."""
        for digest in digests:
            if not self.records.referred(digest):
                data = store.get(digest)
                store.remove(digest)
                if data is not None and self.records.referred(digest):
                    store.put(data)
            self._dealt_with(digest)

    def _forget(self, job_id: str) -> list[str]:
        job = f"ks:job:{job_id}"
        with self.redis.pipeline(transaction=True) as pipe:
            pipe.smembers(f"{job}:blobs")
            pipe.smembers(f"{job}:images")
            pipe.hmget(job, "slices", "owner")
            blobs, images, (count, owner) = pipe.execute()
        with self.redis.pipeline(transaction=True) as pipe:
            for number in range(int(count or 0)):
                pipe.delete(f"ks:slice:{job_id}:{number}")
            pipe.delete(job, *(f"{job}:{part}" for part in JOB_PARTS))
            pipe.zrem(f"ks:jobs:{owner or ''}", job_id)
            pipe.zrem("ks:webhooks", job_id)
            pipe.zrem("ks:expiry", job_id)
            pipe.set(f"ks:gone:{job_id}", owner or "", ex=TOMBSTONE_SECONDS)
            for digest in blobs:
                pipe.srem(f"ks:blob:{digest}", job_id)
            for image in images:
                pipe.srem(image, job_id)
            if blobs:
                pipe.sadd(ORPHANS, *blobs)
            pipe.publish("ks:events", f"{job_id} gone")
            pipe.execute()
        return [digest for digest in blobs if not self.redis.exists(f"ks:blob:{digest}")]

    def orphans(self, most: int) -> list[str]:
        """Some of the blobs of removed jobs that nobody has dealt with yet."""
        with redis_errors():
            return list(self.redis.srandmember(ORPHANS, most))

    def _dealt_with(self, digest: str) -> None:
        """This blob is removed, or somebody refers to it."""
        with redis_errors():
            self.redis.srem(ORPHANS, digest)
