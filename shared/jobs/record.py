"""Reading a job's record, and the blobs that it refers to."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from shared.errors import ArtifactNotFound, JobExpired, JobNotFound, Problem, SilentKernel, StoreUnavailable
from shared.schemas import ExplainRequest, ItemResult, Job, JobSummary, Progress, Status, plan

STORED_ARTIFACTS = ("optimized.png", "optimized.npy", "maps.npz", "history.json")
DRAWN_ARTIFACTS = (
    "original.png",
    "contrast.png",
    "feature_map.png",
    "optimized_feature_map.png",
    "difference.png",
    "others.png",
    "panel.png",
    "sweep.png",
)
JOB_ARTIFACTS = ("contact_sheet.png", "consistency.json")  # of a job on several images
LOOKED_AT = ("activations.npz",)  # stored, and
SHEETS = ("thumbnails.png",)  # drawn, where kernels are ranked
ARTIFACTS = (*STORED_ARTIFACTS, *DRAWN_ARTIFACTS, *LOOKED_AT, *SHEETS)
MEDIA_TYPES = {
    "png": "image/png",
    "npy": "application/octet-stream",
    "npz": "application/octet-stream",
    "json": "application/json",
}

LINKS = {"events": "events", "cancel": "cancel", "bundle": "bundle.zip"}
LINKS_OF_SEVERAL = {"consistency": "consistency", "contact_sheet": "contact_sheet.png"}  # images
BATCH, MOST_BATCHES = 100, 20  # jobs that are read together for a list, and how often for one page

# A job as it is at one moment: {its record as JSON, its rank in the queue or -1, its results (index, JSON, index, …)};
# where there is none: {'', -2, {}}, and where it is gone, with nothing but its owner in the record.
# KEYS: job, tombstone, and results where they are wanted. ARGV: id of its first slice.
JOB = """
local fields, record = redis.call('HGETALL', KEYS[1]), {}
if #fields == 0 then
  local owner = redis.call('GET', KEYS[2])
  return {owner and cjson.encode({owner = owner}) or '', -2, {}}
end
for at = 1, #fields, 2 do record[fields[at]] = fields[at + 1] end
local rank = record.status == 'queued' and redis.call('ZRANK', 'ks:queued:' .. record.queue, ARGV[1])
return {cjson.encode(record), rank or -1, KEYS[3] and redis.call('HGETALL', KEYS[3]) or {}}
"""
GONE = -2
JOB_ID = re.compile(r"[0-9a-f]{32}")


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
    return cast(Redis, Redis.from_url(url, retry=retry, **connection_options(patience)))


def connection_options(patience: float) -> dict[str, Any]:
    """Of every client: answers as text, and the patience of `connect`."""
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


def drawn_artifacts(method: str) -> tuple[str, ...]:
    """The pictures of a result that are drawn when they are first asked for."""
    return SHEETS if method == "activations" else DRAWN_ARTIFACTS


class Records:
    """Job records as readers see them.

    Where an owner is given, what is not theirs does not exist.
    """

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self._read = redis.register_script(JOB)
        self._keep = redis.register_script(KEEP)

    def job(self, job_id: str, owner: str | None = None) -> Job:
        """The job as it stands.

        Raises:
            JobNotFound, JobExpired, StoreUnavailable.
        """
        with redis_errors():
            return job_of(job_id, self._read(*keys_of(job_id)), owner)

    def check(self, job_id: str, owner: str) -> None:
        """Nothing, if the job is there and this owner's.

        Raises:
            JobNotFound, JobExpired, StoreUnavailable.
        """
        with redis_errors():
            record_of(job_id, self._read(*keys_of(job_id, results=False)), owner)

    def page(
        self, owner: str, wanted: Wanted, limit: int, after: Place | None = None
    ) -> tuple[list[JobSummary], Place | None]:
        """An owner's jobs, newest first, and where to go on; None: there are no more.

        Args:
            after: the last job of the page before.
        """
        found: list[JobSummary] = []
        with redis_errors():
            for _ in range(MOST_BATCHES):
                places = self._places(owner, after)
                for job_id, summary in zip(places, self._summaries(list(places)), strict=True):
                    after = Place(places[job_id], job_id)
                    if summary and wanted.fits(summary):
                        found.append(summary)
                    if len(found) == limit:
                        return found, after
                if not places:
                    return found, None
        return found, after

    def _places(self, owner: str, after: Place | None) -> dict[str, float]:
        """The next jobs behind a place: id → when it was created."""
        places: list[tuple[str, float]] = []
        start = 0
        while True:
            batch = self.redis.zrevrangebyscore(
                f"ks:jobs:{owner}", after.created if after else "+inf", "-inf", start, BATCH, withscores=True
            )
            places += [pair for pair in batch if after is None or (pair[1], pair[0]) < (after.created, after.job_id)]
            start += BATCH
            if places or len(batch) < BATCH:
                return dict(places)

    def _summaries(self, job_ids: list[str]) -> list[JobSummary | None]:
        with self.redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                keys, arguments = keys_of(job_id, results=False)
                self._read(keys, arguments, client=pipe)
            answers = pipe.execute()
        return [
            _summary(job_id, json.loads(record), rank) if rank != GONE else None
            for job_id, (record, rank, _) in zip(job_ids, answers, strict=True)
        ]

    def result(self, job_id: str, index: int) -> tuple[ExplainRequest, ItemResult, dict[str, str]]:
        """The job's request, one of its results, and the blobs (name → SHA-256) that it has so far.

        Raises:
            JobNotFound, ArtifactNotFound, StoreUnavailable.
        """
        with redis_errors(), self.redis.pipeline(transaction=True) as pipe:
            pipe.hget(f"ks:job:{job_id}", "request")
            pipe.hget(f"ks:job:{job_id}:results", str(index))
            pipe.hmget(f"ks:job:{job_id}:drawn", [_drawn(index, name) for name in (*DRAWN_ARTIFACTS, *SHEETS)])
            request, stored, drawn = pipe.execute()
        if request is None:
            raise JobNotFound(f"there is no job {job_id}")
        if not stored:
            raise ArtifactNotFound(f"job {job_id} has no result {index} yet")
        result = json.loads(stored)
        kept = {name: digest for name, digest in zip((*DRAWN_ARTIFACTS, *SHEETS), drawn, strict=True) if digest}
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

    def keep_drawn(self, job_id: str, index: int | None, name: str, digest: str) -> None:
        """Remember a picture that was drawn on request, so that it is drawn once; index None: of the whole job."""
        place = _drawn(index, name)
        with redis_errors():
            self._keep(keys=[f"ks:job:{job_id}", f"ks:blob:{digest}"], args=[job_id, place, digest])

    def drawn(self, job_id: str, name: str) -> str | None:
        """The blob of a picture of the whole job, if it was drawn."""
        with redis_errors():
            return cast(str | None, self.redis.hget(f"ks:job:{job_id}:drawn", _drawn(None, name)))

    def hold(self, job_id: str, digests: list[str], expires_at: float) -> None:
        """Refer to blobs before they are written, so that retention leaves them alone; they go with the job."""
        with redis_errors(), self.redis.pipeline(transaction=True) as pipe:
            _hold(pipe, job_id, digests, expires_at)
            pipe.execute()

    def hold_images(self, job_id: str, digests: list[str], expires_at: float, owner: str) -> None:
        """The same, and this owner may refer to them by their digests from now on."""
        images = [f"ks:image:{owner}:{digest}" for digest in digests]
        with redis_errors(), self.redis.pipeline(transaction=True) as pipe:
            _hold(pipe, job_id, digests, expires_at)
            for image in images:
                pipe.sadd(image, job_id)
            pipe.sadd(f"ks:job:{job_id}:images", *images)
            pipe.execute()

    def referred(self, digest: str) -> bool:
        """Whether any job refers to this blob."""
        with redis_errors():
            return bool(self.redis.exists(f"ks:blob:{digest}"))

    def known_image(self, digest: str, owner: str) -> bool:
        """Whether a job of this owner that still exists is about this image."""
        with redis_errors():
            return bool(self.redis.exists(f"ks:image:{owner}:{digest}"))


def _drawn(index: int | None, name: str) -> str:
    return f"{'job' if index is None else index}/{name}"


def _hold(pipe: Any, job_id: str, digests: list[str], expires_at: float) -> None:
    pipe.zadd("ks:expiry", {job_id: expires_at}, nx=True)
    for digest in digests:
        pipe.sadd(f"ks:blob:{digest}", job_id)
    if digests:
        pipe.sadd(f"ks:job:{job_id}:blobs", *digests)


@dataclass(frozen=True)
class Place:
    """Where a job stands in its owner's list."""

    created: float
    job_id: str


@dataclass(frozen=True)
class Wanted:
    """Which jobs a reader wants to see listed; what is None does not matter."""

    status: Status | None = None
    model: str | None = None
    layer: str | None = None

    def fits(self, job: JobSummary) -> bool:
        """Whether this is one of them."""
        own = (job.status, job.request.model, job.request.layer)
        asked = (self.status, self.model, self.layer)
        return all(want is None or want == have for want, have in zip(asked, own, strict=True))


def keys_of(job_id: str, *, results: bool = True) -> tuple[list[str], list[str]]:
    """Keys and arguments of the script that reads a job."""
    keys = [f"ks:job:{job_id}", f"ks:gone:{job_id}", *([f"ks:job:{job_id}:results"] if results else [])]
    return keys, [f"{job_id}:0"]


Answer = tuple[str, int, list[str]]


def record_of(job_id: str, answer: Answer, owner: str | None) -> dict[str, str]:
    """The record that the script has read."""
    text, rank, _ = answer
    record: dict[str, str] = json.loads(text) if text else {}
    if not record or (owner is not None and record.get("owner", "") != owner):
        raise JobNotFound(f"there is no job {job_id}")
    if rank == GONE:
        raise JobExpired(f"job {job_id} was deleted, or has expired and was removed")
    return record


def job_of(job_id: str, answer: Answer, owner: str | None = None) -> Job:
    """The job that the script has read. Raises as `record_of`."""
    record = record_of(job_id, answer, owner)
    summary = _summary(job_id, record, answer[1])
    stored = dict(zip(answer[2][::2], answer[2][1::2], strict=True))
    results = {int(index): result_of(job_id, text) for index, text in stored.items() if text}
    if summary.status is Status.CANCELLED:
        results.update(_unfinished(summary.request, stored))
    ordered = [results[index] for index in sorted(results)]
    error = _error(summary.request, ordered) if summary.status is Status.FAILED else None
    return Job(**dict(summary), results=ordered, error=error)


def _summary(job_id: str, record: dict[str, str], rank: int) -> JobSummary:
    total = int(record["planned"]) if record["unresolved"] == "0" else None
    running = json.loads(record.get("progress") or "{}")
    running.pop("items", None)
    here, request = f"/jobs/{job_id}", ExplainRequest.model_validate_json(record["request"])
    several = len(request.images) > 1 and request.methods != ["activations"]
    links = LINKS | (LINKS_OF_SEVERAL if several else {})
    return JobSummary(
        id=job_id,
        status=Status(record["status"]),
        created_at=_time(record["created_at"]),
        started_at=_time(record["started_at"]) if "started_at" in record else None,
        finished_at=_time(record["finished_at"]) if "finished_at" in record else None,
        expires_at=_time(record["expires_at"]),
        attempt=int(record["attempt"]),
        queue_position=rank + 1 if rank >= 0 else None,
        request=request,
        progress=Progress(completed=int(record["completed"]), failed=int(record["failed"]), total=total, **running),
        failed_items=int(record["failed"]),
        links={"self": here, **{name: f"{here}/{path}" for name, path in links.items()}},
    )


def _unfinished(request: ExplainRequest, stored: dict[str, str]) -> dict[int, ItemResult]:
    """The items that a cancelled job has no result of."""
    items = [item for part in plan(request, sys.maxsize) for item in part if str(item.index) not in stored]
    return {item.index: ItemResult.of(item, request, item.kernel).cancelled() for item in items}


def result_of(job_id: str, text: str) -> ItemResult:
    """A result as it is kept, with the URLs of its files."""
    fields = json.loads(text)
    blobs = fields.pop("blobs")
    result = ItemResult.model_validate(fields)
    names = [*blobs, *drawn_artifacts(result.method)] if blobs else []
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
