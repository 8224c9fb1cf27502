"""Webhooks as the record has them: what is due, what was tried. Signed as Standard Webhooks 1.0 has it.

A job that ends puts itself on the list of what is due. An attempt is taken from the list by moving it into the future,
so that one whose process dies is made again; a receiver may see a message twice, with the same `webhook-id`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, Field
from redis import Redis

from shared.jobs.record import redis_errors
from shared.keys import webhook_secret

DUE = "ks:webhooks"  # sorted set: job id → when its webhook is to be tried
DELAYS = (5, 30, 120, 600, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 24 * 3600)  # seconds between attempts
TAKEN_SECONDS = 60.0  # after which an attempt that nobody finished is made again


class Attempt(BaseModel):
    """One try to deliver a webhook."""

    at: datetime
    seconds: float
    status: int | None = Field(description="HTTP status of the answer; null: there was none")
    error: str | None = Field(description="what went wrong; null: it was taken")


class Delivery(BaseModel):
    """How it goes with a job's webhook."""

    url: str | None = Field(description="null: none was asked for")
    state: Literal["none", "waiting", "pending", "delivered", "given_up"] = Field(
        description="`waiting`: for the job's end; `pending`: it is tried, or tried again at `next_at`"
    )
    attempts: list[Attempt]
    next_at: datetime | None


class Message(BaseModel):
    """A webhook that is to be sent."""

    job_id: str
    url: str
    body: bytes
    headers: dict[str, str]


class Webhooks:
    """The list of what is due, and the log of what was tried."""

    def __init__(self, redis: Redis, clock: Callable[[], float] = time.time) -> None:
        self.redis = redis
        self.clock = clock

    def take(self, most: int) -> list[str]:
        """Up to so many jobs whose webhook is due; nobody else takes them for a minute."""
        now = self.clock()
        with redis_errors():
            due: list[str] = self.redis.zrangebyscore(DUE, "-inf", now, 0, most)
            for job_id in due:
                self.redis.zadd(DUE, {job_id: now + TAKEN_SECONDS}, xx=True)
        return due

    def message(self, job_id: str) -> Message | None:
        """What this job's receiver is told; None where the job is gone."""
        with redis_errors():
            url, owner, status, finished = self.redis.hmget(
                f"ks:job:{job_id}", "webhook", "owner", "status", "finished_at"
            )
        if not url:
            return None
        at = datetime.fromtimestamp(float(finished), UTC).isoformat().replace("+00:00", "Z")
        body = json.dumps({"type": f"job.{status}", "timestamp": at, "data": {"id": job_id, "status": status}}).encode()
        headers = signed(f"job_{job_id}", int(self.clock()), body, webhook_secret(self.redis, owner or ""))
        return Message(job_id=job_id, url=url, body=body, headers=headers)

    def note(self, job_id: str, attempt: Attempt) -> None:
        """An attempt was made; if it failed, and was not the last, the next one is due later."""
        with redis_errors():
            if not self.redis.exists(f"ks:job:{job_id}"):
                self.redis.zrem(DUE, job_id)
                return
            count = self.redis.rpush(f"ks:job:{job_id}:webhook", attempt.model_dump_json())
            if attempt.error is None or count > len(DELAYS):
                self.redis.zrem(DUE, job_id)
            else:
                self.redis.zadd(DUE, {job_id: self.clock() + DELAYS[count - 1]}, xx=True)

    def forget(self, job_id: str) -> None:
        """The job is gone: there is nothing to tell."""
        with redis_errors():
            self.redis.zrem(DUE, job_id)

    def delivery(self, job_id: str) -> Delivery:
        """How it goes with the webhook of a job that is there."""
        with redis_errors(), self.redis.pipeline(transaction=True) as pipe:
            pipe.hget(f"ks:job:{job_id}", "webhook")
            pipe.lrange(f"ks:job:{job_id}:webhook", 0, -1)
            pipe.zscore(DUE, job_id)
            url, tried, due = pipe.execute()
        attempts = [Attempt.model_validate_json(text) for text in tried]
        return Delivery(
            url=url or None,
            state=_state(url, attempts, due),
            attempts=attempts,
            next_at=datetime.fromtimestamp(due, UTC) if due is not None else None,
        )


def _state(
    url: str | None, attempts: list[Attempt], due: float | None
) -> Literal["none", "waiting", "pending", "delivered", "given_up"]:
    if not url:
        return "none"
    if due is not None:
        return "pending"
    if not attempts:
        return "waiting"
    return "given_up" if attempts[-1].error else "delivered"


def signed(message_id: str, timestamp: int, body: bytes, secret: str) -> dict[str, str]:
    """The headers of a message: HMAC-SHA256 over `id.timestamp.body`, as Standard Webhooks' scheme v1."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.digest(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }
