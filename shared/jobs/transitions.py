"""The transitions of slices and jobs. Each is atomic; those of a running slice are fenced by the claim's token."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

from pydantic import TypeAdapter
from redis import Redis

from shared.errors import KernelscopeError
from shared.jobs.record import redis_errors
from shared.schemas import SLICE_ITEMS, ExplainRequest, Item, ItemResult

TOMBSTONE_SECONDS = 7 * 24 * 3600
SCRIPTS = ("claim", "renew", "resolve", "commit", "finish", "release", "lapse")
ITEMS = TypeAdapter(list[Item])

Queue = Literal["interactive", "bulk"]


class LostLease(Exception):
    """The slice was given to somebody else, or its job is gone: drop what you have of it."""


@dataclass(frozen=True)
class Claim:
    """A running slice in the hands of one worker."""

    slice_id: str
    job_id: str
    token: str
    attempt: int
    items: list[Item]  # those that have no result yet
    request: ExplainRequest
    expires_at: float


class Transitions:
    """Every change of a job's record.

    Args:
        redis: a client that decodes responses.
        lease_seconds: how long a slice stays claimed without a sign of life.
        clock: seconds since 1970; a test may move it.
    """

    def __init__(self, redis: Redis, lease_seconds: float = 20.0, clock: Callable[[], float] = time.time) -> None:
        self.redis = redis
        self.lease_seconds = lease_seconds
        self.clock = clock
        self._scripts = {
            name: redis.register_script((files("shared.jobs") / "lua" / f"{name}.lua").read_text()) for name in SCRIPTS
        }

    def submit(
        self, job_id: str, request: ExplainRequest, slices: list[list[Item]], expires_at: float
    ) -> list[tuple[str, Queue]]:
        """Create a job with its slices, all queued. Returns the slices to announce, with their queue."""
        now = self.clock()
        planned = sum(map(len, slices))
        queue: Queue = "interactive" if planned <= SLICE_ITEMS else "bulk"
        ids = [f"{job_id}:{number}" for number in range(len(slices))]
        record = {
            "status": "queued",
            "created_at": now,
            "expires_at": expires_at,
            "request": request.model_dump_json(),
            "planned": planned,
            "unresolved": len(slices) if isinstance(request.kernels, str) else 0,
            "slices": len(slices),
            "open": len(slices),
            "completed": 0,
            "failed": 0,
            "attempt": 0,
        }
        with redis_errors(), self.redis.pipeline(transaction=True) as pipe:
            pipe.hset(f"ks:job:{job_id}", mapping=record)
            pipe.zadd("ks:jobs", {job_id: now})
            pipe.zadd("ks:expiry", {job_id: expires_at})
            for slice_id, items in zip(ids, slices, strict=True):
                fields = {"status": "queued", "job": job_id, "queue": queue, "attempt": 0, "sent_at": now}
                pipe.hset(f"ks:slice:{slice_id}", mapping={**fields, "items": ITEMS.dump_json(items).decode()})
            pipe.zadd("ks:queued", dict.fromkeys(ids, now))
            pipe.execute()
        return [(slice_id, queue) for slice_id in ids]

    def claim(self, slice_id: str) -> Claim | None:
        """Queued → running. None where there is nothing to do: already claimed, done, or gone."""
        token = secrets.token_hex(8)
        now = self.clock()
        claimed = self._run("claim", slice_id, slice_id, token, now, now + self.lease_seconds)
        if claimed is None:
            return None
        job_id, items, attempt = claimed
        return self._claim(slice_id, job_id, token, attempt, items)

    def renew(self, claim: Claim, progress: dict[str, Any]) -> None:
        """A sign of life from the engine: extends the lease and publishes the progress.

        Raises:
            LostLease: the claim no longer holds.
        """
        lease = self.clock() + self.lease_seconds
        self._fenced("renew", claim, claim.slice_id, claim.token, lease, json.dumps(progress))

    def resolve(self, claim: Claim, skipped: int) -> None:
        """The ranks of this slice have kernels now; `skipped` of them have none, because too few kernels are active."""
        self._fenced("resolve", claim, claim.token, skipped)

    def commit(self, claim: Claim, result: ItemResult, blobs: dict[str, str]) -> None:
        """One item is finished: its result and its blobs (name → SHA-256, already stored) become visible, once."""
        text = json.dumps({**result.model_dump(mode="json", exclude={"artifacts"}), "blobs": blobs})
        lease = self.clock() + self.lease_seconds
        failed = int(result.status == "failed")
        self._fenced("commit", claim, claim.slice_id, claim.token, lease, result.index, text, failed)

    def finish(self, claim: Claim) -> None:
        """Running → done; with the last slice the job ends."""
        self._fenced("finish", claim, claim.slice_id, claim.token, self.clock())

    def release(self, claim: Claim) -> None:
        """Running → queued: the worker stops and hands the rest of the slice back; not counted as an attempt."""
        self._fenced("release", claim, claim.slice_id, claim.token, self.clock())

    def fail(self, claim: Claim, error: KernelscopeError) -> None:
        """Running → done, every item that has no result yet failed with this error."""
        if isinstance(claim.request.kernels, str):
            self.resolve(claim, 0)
        for item in claim.items:
            self.commit(claim, ItemResult.of(item, claim.request, item.kernel).failed(error), {})
        self.finish(claim)

    def lapsed(self, max_attempts: int) -> tuple[list[str], list[Claim]]:
        """Take back every slice whose lease has run out.

        Returns the slices that were queued again, and those that were tried too often, claimed so that the caller
        can fail their items.
        """
        now = self.clock()
        queued, exhausted = [], []
        with redis_errors():
            late: list[str] = self.redis.zrangebyscore("ks:leases", "-inf", now)
        for slice_id in late:
            token = secrets.token_hex(8)
            state = self._run("lapse", slice_id, slice_id, token, now, now + self.lease_seconds, max_attempts)
            if state == "queued":
                queued.append(slice_id)
            elif state == "exhausted":
                with redis_errors():
                    fields = self.redis.hmget(f"ks:slice:{slice_id}", "job", "attempt", "items")
                exhausted.append(self._claim(slice_id, fields[0], token, int(fields[1]), fields[2]))
        return queued, exhausted

    def queued(self) -> list[str]:
        """Every queued slice, oldest first."""
        with redis_errors():
            slices: list[str] = self.redis.zrange("ks:queued", 0, -1)
        return slices

    def unsent(self, slices: list[str], older_than: float) -> list[str]:
        """Those slices about which the last message went out more than `older_than` seconds ago."""
        with redis_errors(), self.redis.pipeline(transaction=False) as pipe:
            for slice_id in slices:
                pipe.hget(f"ks:slice:{slice_id}", "sent_at")
            sent = pipe.execute()
        limit = self.clock() - older_than
        return [slice_id for slice_id, at in zip(slices, sent, strict=True) if at and float(at) <= limit]

    def sent(self, slice_id: str) -> Queue | None:
        """Note that a message about the slice goes out now; returns its queue, or None where the slice is gone."""
        with redis_errors():
            queue: Queue | None = self.redis.hget(f"ks:slice:{slice_id}", "queue")
            if queue is not None:
                self.redis.hset(f"ks:slice:{slice_id}", "sent_at", self.clock())
        return queue

    def expire(self) -> list[str]:
        """Remove every job whose time is over, leaving a tombstone. Returns the blobs that nobody refers to now."""
        with redis_errors():
            jobs: list[str] = self.redis.zrangebyscore("ks:expiry", "-inf", self.clock())
            return [digest for job_id in jobs for digest in self._remove(job_id)]

    def _remove(self, job_id: str) -> list[str]:
        blobs = list(self.redis.smembers(f"ks:job:{job_id}:blobs"))
        count = int(self.redis.hget(f"ks:job:{job_id}", "slices") or 0)
        with self.redis.pipeline(transaction=True) as pipe:
            for slice_id in (f"{job_id}:{number}" for number in range(count)):
                pipe.zrem("ks:queued", slice_id)
                pipe.zrem("ks:leases", slice_id)
                pipe.delete(f"ks:slice:{slice_id}")
            pipe.delete(*(f"ks:job:{job_id}{part}" for part in ("", ":results", ":drawn", ":blobs")))
            pipe.zrem("ks:jobs", job_id)
            pipe.zrem("ks:expiry", job_id)
            pipe.set(f"ks:gone:{job_id}", 1, ex=TOMBSTONE_SECONDS)
            for digest in blobs:
                pipe.srem(f"ks:blob:{digest}", job_id)
            pipe.execute()
        return [digest for digest in blobs if not self.redis.exists(f"ks:blob:{digest}")]

    def _claim(self, slice_id: str, job_id: str, token: str, attempt: int, items: str) -> Claim:
        with redis_errors(), self.redis.pipeline(transaction=True) as pipe:
            pipe.hkeys(f"ks:job:{job_id}:results")
            pipe.hmget(f"ks:job:{job_id}", "request", "expires_at")
            done, (request, expires_at) = pipe.execute()
        return Claim(
            slice_id=slice_id,
            job_id=job_id,
            token=token,
            attempt=attempt,
            items=[item for item in ITEMS.validate_json(items) if str(item.index) not in done],
            request=ExplainRequest.model_validate_json(request),
            expires_at=float(expires_at),
        )

    def _fenced(self, name: str, claim: Claim, *arguments: object) -> None:
        if not self._run(name, claim.slice_id, *arguments):
            raise LostLease(claim.slice_id)

    def _run(self, name: str, slice_id: str, *arguments: object) -> Any:
        with redis_errors():
            return self._scripts[name](keys=[f"ks:slice:{slice_id}"], args=arguments)
