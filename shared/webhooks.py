"""Webhooks as Redis has them: what is due, what was tried. Signed as Standard Webhooks 1.0 has it.

A job that ends leaves a message that says everything by itself, so that it is told also where the job's record is
gone, and puts it on a timetable. What is due stands in a line for its caller and receiver: callers are served in turn.
An attempt is taken by moving it into the future of the timetable, so that one whose process dies is made again; a
receiver may see a message twice, with the same `webhook-id`.
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

DUE = "ks:webhooks"  # sorted set: job id → when its webhook is to be tried
MESSAGES = "ks:webhooks:messages"  # hash: job id → the message, until it is delivered or given up
OWNERS = "ks:webhooks:owners"  # set: callers of whom something is due
HOSTS = "ks:webhooks:hosts:"  # set for each of them: receivers
LINE = "ks:webhooks:line:"  # sorted set for each caller and receiver: job id → since when it is due
TRIED = "ks:webhooks:tried"  # hash: outcome → how many attempts had it
OUTCOMES = ("delivered", "failed", "given_up")
DELAYS = (5, 30, 120, 600, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 24 * 3600)  # seconds between attempts
TAKEN_SECONDS = 60.0  # after which an attempt that nobody finished is made again
OWNER_SHARE, HOST_SHARE = 8, 4  # attempts at a time for one caller, and to one receiver


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
    """A webhook that is to be sent; all that it needs."""

    job_id: str
    host: str  # and port
    url: str
    owner: str
    status: str
    at: float  # when the job ended, seconds since 1970
    traceparent: str = ""  # of the request that made the job
    round: int = 0  # how often failed items were retried: another end is another message

    @property
    def id(self) -> str:
        """By which its receiver knows it again."""
        return f"job_{self.job_id}_{self.round}" if self.round else f"job_{self.job_id}"


class Webhooks:
    """The list of what is due, and the log of what was tried."""

    def __init__(self, redis: Redis, clock: Callable[[], float] | None = None) -> None:
        self.redis = redis
        self.clock = clock or partial(now, redis)
        scripts = {name: files("shared") / "lua" / f"webhook_{name}.lua" for name in ("take", "note")}
        self._scripts = {name: redis.register_script(file.read_text()) for name, file in scripts.items()}

    def take(self, hands: int, in_hand: Iterable[Message] = ()) -> list[Message]:
        """Up to so many messages that are due; nobody else takes them for a minute.

        Args:
            in_hand: those that this process is delivering, which count against the shares of callers and receivers.
        """
        at, busy = self.clock(), list(in_hand)
        owners, hosts = Counter(each.owner for each in busy), Counter(each.host for each in busy)
        limits = (OWNER_SHARE, HOST_SHARE, json.dumps({"owners": owners, "hosts": hosts}))
        with redis_errors():
            found: list[str] = self._scripts["take"](args=(at, hands, at + TAKEN_SECONDS, *limits))
        parts = zip(found[::3], found[1::3], found[2::3], strict=True)
        return [Message(job_id=job_id, host=host, **json.loads(text)) for job_id, text, host in parts]

    def request(self, message: Message) -> tuple[bytes, dict[str, str]]:
        """Body and headers of what the receiver is told, signed now."""
        at = datetime.fromtimestamp(message.at, UTC).isoformat().replace("+00:00", "Z")
        data = {"id": message.job_id, "status": message.status}
        body = json.dumps({"type": f"job.{message.status}", "timestamp": at, "data": data}).encode()
        found = webhook_secrets(self.redis, message.owner)
        secrets = [found.secret, *(each.secret for each in found.previous)]
        return body, signed(message.id, int(self.clock()), body, secrets)

    def note(self, message: Message, attempt: Attempt) -> None:
        """An attempt was made; if it failed, and was not the last, the next one is due later."""
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
        """Whether its webhook is still to be delivered."""
        return self._due(job_id) is not None

    def lines(self) -> list[tuple[int, float]]:
        """How many messages stand on the timetable and in each line, and when the first of them is due."""
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
        """When it is tried, or since when it waits for its turn; None: it need not be."""
        with redis_errors():
            with self.redis.pipeline(transaction=True) as pipe:
                pipe.zscore(DUE, job_id)
                pipe.hget(MESSAGES, job_id)
                due, text = pipe.execute()
            if due is None and text is not None and (line := json.loads(text).get("line")):
                due = self.redis.zscore(line, job_id) or self.redis.zscore(DUE, job_id)  # taken at this moment
        return None if due is None else float(due)

    def delivery(self, job_id: str, archived: tuple[str, list[str]] | None = None) -> Delivery:
        """How it goes with the webhook of a job that is there.

        Args:
            archived: of a job that Redis does not have: the webhook's URL, and what was tried.
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
