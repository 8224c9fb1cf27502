"""How the version before read jobs (form 1): kept as it was released, to see what it makes of new records."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime

from shared.errors import JobExpired, JobNotFound, Problem, SilentKernel
from shared.jobs.files import drawn_artifacts
from shared.schemas import ExplainRequest, ItemResult, Job, JobSummary, Progress, Status, plan

LINKS = {"events": "events", "cancel": "cancel", "bundle": "bundle.zip"}
LINKS_OF_SEVERAL = {"consistency": "consistency", "contact_sheet": "contact_sheet.png"}  # images
GONE = -2
Answer = tuple[str, int, list[str] | None]
JOB = """
local fields, record = redis.call('HGETALL', KEYS[1]), {}
if #fields == 0 then
  local owner = redis.call('GET', KEYS[2])
  return {owner and cjson.encode({owner = owner}) or '', -2, {}}
end
for at = 1, #fields, 2 do record[fields[at]] = fields[at + 1] end
local rank = record.status == 'queued' and redis.call('ZRANK', 'ks:queued:' .. record.queue, ARGV[1])
local results = {}
if KEYS[3] then
  local many = ARGV[2] and redis.call('HLEN', KEYS[3]) > tonumber(ARGV[2])
  results = not many and redis.call('HGETALL', KEYS[3])
end
return {cjson.encode(record), rank or -1, results}
"""


def keys_of(job_id: str, *, results: bool = True, most: int | None = None) -> tuple[list[str], list[str]]:
    """Keys and arguments of the script that reads a job.

    Args:
        most: results that are wanted; where there are more, the answer has None in their place.
    """
    keys = [f"ks:job:{job_id}", f"ks:gone:{job_id}", *([f"ks:job:{job_id}:results"] if results else [])]
    return keys, [f"{job_id}:0", *([str(most)] if most is not None else [])]


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
    reported = answer[2] or []
    stored = dict(zip(reported[::2], reported[1::2], strict=True))
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
