"""The queue of webhooks in Redis, and their signatures by Standard Webhooks 1.0.

When a job ends, a self-contained message is scheduled, so that it can be sent even after the job's record is gone. Due
messages wait in one queue for each caller and receiver, and callers take turns. A message that is taken is scheduled
again for later, so that it is retried if the process dies; a receiver may get a message twice, with the same
`webhook-id`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.resources import files
from typing import Literal

from pydantic import BaseModel, Field
from redis import Redis

from shared.clock import now
from shared.connection import redis_errors
from shared.keys import webhook_secrets

DUE = "ks:webhooks"  # sorted set: job id → time of its next attempt
MESSAGES = "ks:webhooks:messages"  # hash: job id → the message, until it is delivered or there are no more retries
OWNERS = "ks:webhooks:owners"  # set: callers with due messages
HOSTS = "ks:webhooks:hosts:"  # set for each caller: its receivers
LINE = "ks:webhooks:line:"  # sorted set for each caller and receiver: job id → time since which it is due
TRIED = "ks:webhooks:tried"  # hash: outcome → number of attempts
OUTCOMES = ("delivered", "failed", "given_up")
DELAYS = (5, 30, 120, 600, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 24 * 3600)  # seconds between attempts
TAKEN_SECONDS = 60.0  # until a message that was taken is due again
OWNER_SHARE, HOST_SHARE = 8, 4  # concurrent attempts for one caller, and to one receiver


class Attempt(BaseModel):
    """One attempt to deliver a webhook."""

    at: datetime
    seconds: float
    status: int | None = Field(description="HTTP status of the response; null: there was none")
    error: str | None = Field(description="why the attempt failed; null: it succeeded")


class Delivery(BaseModel):
    """The delivery of a job's webhook."""

    url: str | None = Field(description="null: the job has no webhook")
    state: Literal["none", "waiting", "pending", "delivered", "given_up"] = Field(
        description="`waiting`: the job has not ended; `pending`: the next attempt is at `next_at`; "
        "`given_up`: the last retry failed"
    )
    attempts: list[Attempt]
    next_at: datetime | None


class Message(BaseModel):
    """A webhook to send, with everything that is needed to send it."""

    job_id: str
    host: str  # and port
    url: str
    owner: str
    status: str
    at: float  # when the job ended, seconds since 1970
    traceparent: str = ""  # of the request that made the job
    round: int = 0  # number of retries of failed items; each time the job ends, there is another message

    @property
    def id(self) -> str:
        """The `webhook-id`, by which a receiver recognises duplicates."""
        return f"job_{self.job_id}_{self.round}" if self.round else f"job_{self.job_id}"


class Webhooks:
    """Due messages, and the log of attempts."""

    def __init__(self, redis: Redis, clock: Callable[[], float] | None = None) -> None:
        self.redis = redis
        self.clock = clock or partial(now, redis)
        scripts = {name: files("shared") / "lua" / f"webhook_{name}.lua" for name in ("take", "note")}
        self._scripts = {name: redis.register_script(file.read_text()) for name, file in scripts.items()}

    def take(self, free: int, delivering: Iterable[Message] = ()) -> list[Message]:
        """Up to `free` due messages, leased to this process for a minute.

        Args:
            delivering: messages that this process is delivering; they count towards the limits.
        """
        at, busy = self.clock(), list(delivering)
        owners, hosts = Counter(each.owner for each in busy), Counter(each.host for each in busy)
        limits = (OWNER_SHARE, HOST_SHARE, json.dumps({"owners": owners, "hosts": hosts}))
        with redis_errors():
            found: list[str] = self._scripts["take"](args=(at, free, at + TAKEN_SECONDS, *limits))
        parts = zip(found[::3], found[1::3], found[2::3], strict=True)
        return [Message(job_id=job_id, host=host, **json.loads(text)) for job_id, text, host in parts]

    def request(self, message: Message) -> tuple[bytes, dict[str, str]]:
        """Body and headers of the request to the receiver, signed now."""
        at = datetime.fromtimestamp(message.at, UTC).isoformat().replace("+00:00", "Z")
        data = {"id": message.job_id, "status": message.status}
        body = json.dumps({"type": f"job.{message.status}", "timestamp": at, "data": data}).encode()
        found = webhook_secrets(self.redis, message.owner)
        secrets = [found.secret, *(each.secret for each in found.previous)]
        return body, signed(message.id, int(self.clock()), body, secrets)

    def note(self, message: Message, attempt: Attempt) -> None:
        """Record an attempt. If it failed and was not the last one, schedule the next."""
        failed = int(attempt.error is not None)
        with redis_errors():
            self._scripts["note"](
                args=(
                    message.job_id,
                    attempt.model_dump_json(),
                    failed,
                    self.clock(),
                    json.dumps(DELAYS),
                    message.round,
                )
            )

    def pending(self, job_id: str) -> bool:
        """Whether the webhook of this job is still to be delivered."""
        return self._due(job_id) is not None

    def lines(self) -> list[tuple[int, float]]:
        """For the schedule and each queue: the number of messages, and when the first of them is due."""
        with redis_errors(), self.redis.pipeline(transaction=False) as pipe:
            keys = [DUE]
            for owner in self.redis.smembers(OWNERS):
                keys += [f"{LINE}{owner} {host}" for host in self.redis.smembers(HOSTS + owner)]
            for key in keys:
                pipe.zcard(key)
                pipe.zrange(key, 0, 0, withscores=True)
            found = pipe.execute()
        return [(count, first[0][1]) for count, first in zip(found[::2], found[1::2], strict=True) if first]

    def _due(self, job_id: str) -> float | None:
        """When the next attempt is due, or was due; None if there is none."""
        with redis_errors():
            with self.redis.pipeline(transaction=True) as pipe:
                pipe.zscore(DUE, job_id)
                pipe.hget(MESSAGES, job_id)
                due, text = pipe.execute()
            if due is None and text is not None and (line := json.loads(text).get("line")):
                due = self.redis.zscore(line, job_id) or self.redis.zscore(DUE, job_id)  # taken at this moment
        return None if due is None else float(due)

    def delivery(self, job_id: str, archived: tuple[str, list[str]] | None = None) -> Delivery:
        """The state of the webhook of an existing job.

        Args:
            archived: for an archived job, the webhook's URL and the log of attempts.
        """
        due = self._due(job_id)
        with redis_errors(), self.redis.pipeline(transaction=True) as pipe:
            pipe.hget(f"ks:job:{job_id}", "webhook")
            pipe.lrange(f"ks:job:{job_id}:webhook", 0, -1)
            url, tried = pipe.execute()
        url, tried = (url, tried) if archived is None else archived
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


def signed(message_id: str, timestamp: int, body: bytes, secrets: Sequence[str]) -> dict[str, str]:
    """The headers of a message: HMAC-SHA256 of `id.timestamp.body` by each secret, as Standard Webhooks' scheme v1."""
    text = f"{message_id}.{timestamp}.".encode() + body
    keys = [base64.b64decode(secret.removeprefix("whsec_")) for secret in secrets]
    signatures = [base64.b64encode(hmac.digest(key, text, hashlib.sha256)).decode() for key in keys]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }
