"""Reading a job's record, and the blobs that it refers to."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, cast

from redis import Redis
from redis.asyncio import BlockingConnectionPool
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from shared.errors import ArtifactNotFound, JobExpired, JobNotFound, Problem, SilentKernel, StoreUnavailable
from shared.schemas import ExplainRequest, ItemResult, Job, Progress, Status, plan

STORED_ARTIFACTS = ("optimized.png", "optimized.npy", "maps.npz", "history.json")
DRAWN_ARTIFACTS = ("contrast.png", "feature_map.png", "optimized_feature_map.png", "difference.png", "panel.png")
MEDIA_TYPES = {
    "png": "image/png",
    "npy": "application/octet-stream",
    "npz": "application/octet-stream",
    "json": "application/json",
}

CONNECTIONS = 8  # of an event loop: a reader who finds none free waits for one
BIG = 64  # results, above which a record is not read on an event loop

# A job as it is at one moment: {its record as JSON, its rank in the queue or -1, its results (index, JSON, index, …)};
# where there is none: {'', 1 if it has expired, {}}. KEYS: job, results, tombstone. ARGV: id of its first slice.
JOB = """
local fields, record = redis.call('HGETALL', KEYS[1]), {}
if #fields == 0 then return {'', redis.call('EXISTS', KEYS[3]), {}} end
for at = 1, #fields, 2 do record[fields[at]] = fields[at + 1] end
local rank = record.status == 'queued' and redis.call('ZRANK', 'ks:queued:' .. record.queue, ARGV[1])
return {cjson.encode(record), rank or -1, redis.call('HGETALL', KEYS[2])}
"""


# Remembers a picture of a job that is still there. KEYS: job, set of the blob's jobs. ARGV: job id, item/name, digest.
KEEP = """
if redis.call('EXISTS', KEYS[1]) == 0 then return end
redis.call('HSET', KEYS[1] .. ':drawn', ARGV[2], ARGV[3])
redis.call('SADD', KEYS[1] .. ':blobs', ARGV[3])
redis.call('SADD', KEYS[2], ARGV[1])
"""


def connect(url: str, *, patience: float = 1.0, persistent: bool = False) -> Redis:
    """A Redis client.

    Args:
        patience: seconds that a call waits for an answer. One that finds nobody there is tried twice more.
        persistent: try again for about 20 s, whatever is wrong: a restart of Redis is sat out.
    """
    worth_it = (RedisConnectionError, RedisTimeoutError) if persistent else (RedisConnectionError,)
    retry = Retry(ExponentialBackoff(cap=0.5, base=0.02), 40 if persistent else 2, supported_errors=worth_it)
    return cast(Redis, Redis.from_url(url, retry=retry, **_options(patience)))


def _options(patience: float) -> dict[str, Any]:
    return {
        "decode_responses": True,
        "socket_timeout": patience,
        "socket_connect_timeout": patience / 2,
        "socket_keepalive": True,
    }


@contextmanager
def redis_errors() -> Iterator[None]:
    """A Redis that cannot serve becomes our error; a command that it refuses is a bug, and stays one."""
    try:
        yield
    except (RedisConnectionError, RedisTimeoutError, ReadOnlyError, OutOfMemoryError) as error:
        raise StoreUnavailable(f"Redis does not answer ({type(error).__name__})") from error


class Records:
    """Job records as readers see them."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self._read = redis.register_script(JOB)
        self._keep = redis.register_script(KEEP)

    def job(self, job_id: str) -> Job:
        """The job as it stands.

        Raises:
            JobNotFound, JobExpired, StoreUnavailable.
        """
        with redis_errors():
            return _found(job_id, self._read(*_place(job_id)))

    def result(self, job_id: str, index: int) -> tuple[ExplainRequest, ItemResult, dict[str, str]]:
        """The job's request, one of its results, and the blobs (name → SHA-256) that it has so far.

        Raises:
            JobNotFound, JobExpired, ArtifactNotFound, StoreUnavailable.
        """
        with redis_errors(), self.redis.pipeline(transaction=True) as pipe:
            pipe.hget(f"ks:job:{job_id}", "request")
            pipe.hget(f"ks:job:{job_id}:results", str(index))
            pipe.hmget(f"ks:job:{job_id}:drawn", [f"{index}/{name}" for name in DRAWN_ARTIFACTS])
            pipe.exists(f"ks:gone:{job_id}")
            request, stored, drawn, gone = pipe.execute()
        if request is None:
            raise (JobExpired if gone else JobNotFound)(f"there is no job {job_id}" + (" any more" if gone else ""))
        if not stored:
            raise ArtifactNotFound(f"job {job_id} has no result {index} yet")
        result = json.loads(stored)
        kept = {name: digest for name, digest in zip(DRAWN_ARTIFACTS, drawn, strict=True) if digest}
        blobs = {**result.pop("blobs"), **kept}
        return ExplainRequest.model_validate_json(request), ItemResult.model_validate(result), blobs

    def same(self, fingerprint: str) -> tuple[ItemResult, dict[str, str]] | None:
        """The kept result of the same work, with its blobs; None where there is none."""
        with redis_errors():
            place = self.redis.get(f"ks:same:{fingerprint}")
            if place is None:
                return None
            job_id, index = place.rsplit(":", 1)
            stored = self.redis.hget(f"ks:job:{job_id}:results", index)
        if not stored:
            return None
        result = json.loads(stored)
        blobs: dict[str, str] = result.pop("blobs")
        return ItemResult.model_validate(result), blobs

    def keep_drawn(self, job_id: str, index: int, name: str, digest: str) -> None:
        """Remember a picture that was drawn on request, so that it is drawn once."""
        with redis_errors():
            self._keep(keys=[f"ks:job:{job_id}", f"ks:blob:{digest}"], args=[job_id, f"{index}/{name}", digest])

    def hold(self, job_id: str, digests: list[str], expires_at: float) -> None:
        """Refer to blobs before they are written, so that retention leaves them alone; they go with the job."""
        with redis_errors(), self.redis.pipeline(transaction=True) as pipe:
            pipe.zadd("ks:expiry", {job_id: expires_at}, nx=True)
            for digest in digests:
                pipe.sadd(f"ks:blob:{digest}", job_id)
            if digests:
                pipe.sadd(f"ks:job:{job_id}:blobs", *digests)
            pipe.execute()

    def known_image(self, digest: str) -> bool:
        """Whether a job that still exists refers to these bytes."""
        with redis_errors():
            return bool(self.redis.exists(f"ks:blob:{digest}"))


class Polling:
    """Job records for readers that come often: the same as `Records.job`, on an event loop.

    Args:
        url: of Redis.
        patience: as of `connect`.
    """

    def __init__(self, url: str, *, patience: float = 1.0) -> None:
        retry = AsyncRetry(ExponentialBackoff(cap=0.5, base=0.02), 2, supported_errors=(RedisConnectionError,))
        pool = BlockingConnectionPool.from_url(
            url, max_connections=CONNECTIONS, timeout=patience, retry=retry, **_options(patience)
        )
        self._redis = AsyncRedis.from_pool(pool)
        self._read = self._redis.register_script(JOB)

    async def job(self, job_id: str) -> Job:
        """The job as it stands.

        Raises:
            JobNotFound, JobExpired, StoreUnavailable.
        """
        with redis_errors():
            answer = await self._read(*_place(job_id))
        if len(answer[2]) > 2 * BIG:
            return await asyncio.to_thread(_found, job_id, answer)
        return _found(job_id, answer)

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()


def _place(job_id: str) -> tuple[list[str], list[str]]:
    """Keys and arguments of the script that reads a job."""
    return [f"ks:job:{job_id}", f"ks:job:{job_id}:results", f"ks:gone:{job_id}"], [f"{job_id}:0"]


def _found(job_id: str, answer: tuple[str, int, list[str]]) -> Job:
    """What the script has read."""
    record, rank, results = answer
    if record:
        return _job(job_id, json.loads(record), dict(zip(results[::2], results[1::2], strict=True)), rank)
    if rank:
        raise JobExpired(f"job {job_id} has expired and was removed")
    raise JobNotFound(f"there is no job {job_id}")


def _job(job_id: str, record: dict[str, str], stored: dict[str, str], rank: int) -> Job:
    status = Status(record["status"])
    request = ExplainRequest.model_validate_json(record["request"])
    results = {int(index): _result(job_id, text) for index, text in stored.items() if text}
    if status is Status.CANCELLED:
        results.update(_unfinished(request, stored))
    ordered = [results[index] for index in sorted(results)]
    total = int(record["planned"]) if record["unresolved"] == "0" else None
    running = json.loads(record.get("progress") or "{}")
    return Job(
        id=job_id,
        status=status,
        created_at=_time(record["created_at"]),
        started_at=_time(record["started_at"]) if "started_at" in record else None,
        finished_at=_time(record["finished_at"]) if "finished_at" in record else None,
        expires_at=_time(record["expires_at"]),
        attempt=int(record["attempt"]),
        queue_position=rank + 1 if rank >= 0 else None,
        request=request,
        progress=Progress(completed=int(record["completed"]), failed=int(record["failed"]), total=total, **running),
        failed_items=int(record["failed"]),
        results=ordered,
        error=_error(request, ordered) if status is Status.FAILED else None,
        links={"self": f"/jobs/{job_id}"},
    )


def _unfinished(request: ExplainRequest, stored: dict[str, str]) -> dict[int, ItemResult]:
    """The items that a cancelled job has no result of."""
    items = [item for part in plan(request, sys.maxsize) for item in part if str(item.index) not in stored]
    return {item.index: ItemResult.of(item, request, item.kernel).cancelled() for item in items}


def _result(job_id: str, text: str) -> ItemResult:
    fields = json.loads(text)
    blobs = fields.pop("blobs")
    result = ItemResult.model_validate(fields)
    names = [*blobs, *DRAWN_ARTIFACTS] if blobs else []
    result.artifacts = {name: f"/jobs/{job_id}/artifacts/{result.index}/{name}" for name in names}
    return result


def _error(request: ExplainRequest, results: list[ItemResult]) -> Problem:
    """The problem of a failed job: that of its first item, which says how many more there are."""
    problems = [result.error for result in results if result.error]
    if not problems:  # "top:N", and none is active
        return SilentKernel(f"every kernel of {request.layer} is silent on this image: nothing to explain").problem()
    if len(problems) == 1:
        return problems[0]
    return problems[0].model_copy(
        update={"detail": f"all {len(problems)} items failed; the first: {problems[0].detail}"}
    )


def _time(seconds: str) -> datetime:
    return datetime.fromtimestamp(float(seconds), UTC)
