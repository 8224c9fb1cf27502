"""The same record for readers that come often or wait, on an event loop; and the events that they are told."""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from dataclasses import dataclass
from typing import Literal

from redis.asyncio import BlockingConnectionPool
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.jobs.record import JOB, connection_options, job_of, keys_of, record_of, redis_errors, result_of
from shared.schemas import Job, Status

WATCHED_SECONDS = 45  # for which a reader of previews is believed to be still there
CONNECTIONS = 9  # of an event loop: a reader who finds none free waits for one; the news take one for themselves
BIG = 64  # results, above which a record is not read on an event loop


@dataclass(frozen=True)
class Event:
    """Something that happened to a job, as its readers are told."""

    id: str  # of the stream: later ones are greater
    kind: Literal["status", "progress", "result"]
    data: str  # JSON


class Polling:
    """Job records for readers that come often or wait, on an event loop.

    Args:
        url: of Redis.
        patience: as of `connect`.
    """

    def __init__(self, url: str, *, patience: float = 1.0) -> None:
        # RuntimeError is what uvloop says of a connection that was lost while nobody used it.
        worth_it = (RedisConnectionError, RuntimeError)
        retry = AsyncRetry(ExponentialBackoff(cap=0.5, base=0.02), 2, supported_errors=worth_it)
        pool = BlockingConnectionPool.from_url(
            url, max_connections=CONNECTIONS, timeout=patience, retry=retry, **connection_options(patience)
        )
        self.redis = AsyncRedis.from_pool(pool)
        self._read = self.redis.register_script(JOB)

    async def job(self, job_id: str, owner: str | None = None) -> Job:
        """As `Records.job`."""
        with redis_errors():
            answer = await self._read(*keys_of(job_id))
        if len(answer[2]) > 2 * BIG:
            return await asyncio.to_thread(job_of, job_id, answer, owner)
        return job_of(job_id, answer, owner)

    async def check(self, job_id: str, owner: str) -> None:
        """As `Records.check`."""
        with redis_errors():
            record_of(job_id, await self._read(*keys_of(job_id, results=False)), owner)

    async def events(self, job_id: str, after: str = "0") -> list[Event]:
        """What happened since the event of this id, oldest first; empty where the job is gone."""
        job = f"ks:job:{job_id}"
        with redis_errors():
            async with self.redis.pipeline(transaction=True) as pipe:
                pipe.xrange(f"{job}:events", f"({after}")
                pipe.hmget(job, "completed", "planned", "unresolved")
                entries, (completed, planned, unresolved) = await pipe.execute()
            done = [entry["data"] for _, entry in entries if entry["kind"] == "result"]
            texts = await self.redis.hmget(f"{job}:results", done) if done else []
        results = dict(zip(done, texts, strict=True))
        counts = {"completed": int(completed or 0), "total": int(planned or 0) if unresolved == "0" else None}
        return [
            Event(event, entry["kind"], text)
            for event, entry in entries
            if (text := _told(job_id, entry["kind"], entry["data"], results, counts))
        ]

    async def last_event(self, job_id: str) -> tuple[str, bool] | None:
        """The id of the newest event, and whether it is the last there will be; None where the job is gone."""
        with redis_errors():
            newest = await self.redis.xrevrange(f"ks:job:{job_id}:events", count=1)
        if not newest:
            return None
        event_id, entry = newest[0]
        return event_id, entry["kind"] == "status" and Status(entry["data"]).terminal

    async def watch(self, job_id: str) -> None:
        """Somebody wants to see the previews of this job: workers make some for a while."""
        with redis_errors():
            await self.redis.set(f"ks:watched:{job_id}", "", ex=WATCHED_SECONDS)

    async def preview(self, job_id: str, index: int) -> bytes | None:
        """What X̂ of an item looks like now, a WebP file; None where there is none."""
        with redis_errors():
            text = await self.redis.get(f"ks:preview:{job_id}:{index}")
        return b64decode(text) if text else None

    async def close(self) -> None:
        """Close the connections."""
        await self.redis.aclose()


def _told(job_id: str, kind: str, data: str, results: dict[str, str], counts: dict[str, int | None]) -> str:
    """An event's data; nothing where its result is gone."""
    if kind == "result":
        stored = results[data]
        return result_of(job_id, stored).model_dump_json() if stored else ""
    return json.dumps({"status": data} if kind == "status" else {**counts, **json.loads(data)})
