"""Converts stored job records to the schemas of the API. Pure functions, without Redis or store.

A record is a flat mapping of texts. Results are JSON texts by item index; the empty text stands for a rank without an
active kernel. Unknown fields, which a later version may have written, are ignored.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from shared.errors import Problem, SilentKernel
from shared.jobs.files import drawn_artifacts
from shared.schemas import ExplainRequest, ItemResult, Job, JobSummary, Progress, Status, WholeJob, plan

FORM = 2  # version of the records that are written; those of version 1 have no number
MOST_RESULTS = 64  # a job with more items is returned without its results

LINKS = {
    "results": "results",
    "events": "events",
    "cancel": "cancel",
    "retry": "retry",
    "bundle": "bundle.zip",
}
LINKS_OF_SEVERAL = {"consistency": "consistency", "contact_sheet": "contact_sheet.png"}  # for several images
LEAST_FRACTION = 0.02  # of a job that must be done before its remaining time is estimated
BLOBS, METHOD, NO_ERROR = ', "blobs": ', re.compile(r'"method": "(\w+)"'), '"error": null'

Record = Mapping[str, str]
Texts = Mapping[int, str]  # stored results by item index
Found = tuple[ItemResult, dict[str, str]]  # a result and its blobs, name → SHA-256


@dataclass(frozen=True)
class Stored:
    """A stored job.

    Args:
        rank: position in the queue, from 0; -1: not queued.
        results: None: not requested, or too many.
    """

    record: Record
    rank: int = -1
    results: Texts | None = None


def summary_of(job_id: str, stored: Stored) -> JobSummary:
    """The job without results."""
    record, rank = stored.record, stored.rank
    here, request = f"/jobs/{job_id}", ExplainRequest.model_validate_json(record["request"])
    links = LINKS | (LINKS_OF_SEVERAL if len(request.images) > 1 and request.explains else {})
    links = {name: f"{here}/{path}" for name, path in links.items()} | {"self": here}
    links |= {"survey": f"/surveys/{job_id}"} if request.surveys else {}
    status = Status(record["status"])
    return JobSummary(
        id=job_id,
        status=status,
        created_at=_time(record["created_at"]),
        started_at=_time(record["started_at"]) if "started_at" in record else None,
        finished_at=_time(record["finished_at"]) if "finished_at" in record else None,
        expires_at=_time(record["expires_at"]),
        attempt=int(record["attempt"]),
        queue_position=rank + 1 if rank >= 0 else None,
        queue_seconds=_wait(record, rank),
        waiting_for=record.get("waiting_for"),
        request=request,
        progress=_progress(record, status),
        failed_items=int(record["failed"]),
        links=links,
    )


def job_of(job_id: str, stored: Stored) -> Job:
    """The job, with its results if these are not too many."""
    if int(stored.record["planned"]) <= MOST_RESULTS:
        return whole_of(job_id, stored)
    summary = summary_of(job_id, stored)
    failed = summary.status is Status.FAILED  # `stored` has the results then, for the error
    return Job(**dict(summary), results=None, error=whole_of(job_id, stored).error if failed else None)


def whole_of(job_id: str, stored: Stored) -> WholeJob:
    """The job with all its results."""
    summary, texts = summary_of(job_id, stored), stored.results or {}
    results = {index: result_of(job_id, text) for index, text in texts.items() if text}
    if summary.status is Status.CANCELLED:
        results |= dict(_unfinished(summary.request, texts))
    ordered = [results[index] for index in sorted(results)]
    error = _error(summary.request, ordered) if summary.status is Status.FAILED else None
    return WholeJob(**dict(summary), results=ordered, error=error)


def page_of(job_id: str, stored: Stored, start: int, count: int) -> tuple[list[ItemResult], int | None]:
    """Up to `count` results from index `start` on, and the index of the next page; None if this is the last."""
    texts = stored.results or {}
    request = ExplainRequest.model_validate_json(stored.record["request"])
    cancelled = stored.record["status"] == Status.CANCELLED
    missing = dict(_unfinished(request, texts)) if cancelled else {}
    indices = sorted(index for index in {*texts, *missing} if index >= start and texts.get(index) != "")
    page = [missing.get(index) or result_of(job_id, texts[index]) for index in indices[:count]]
    return page, indices[count] if len(indices) > count else None


def result_of(job_id: str, text: str) -> ItemResult:
    """A result from its stored text, with the URLs of its files."""
    result, blobs = found_of(text)
    result.artifacts = _artifacts(job_id, result.index, result.method, blobs)
    return result


def found_of(text: str) -> Found:
    """A result from its stored text, and its blobs."""
    fields = json.loads(text)
    blobs: dict[str, str] = fields.pop("blobs")
    return ItemResult.model_validate(fields), blobs


def text_of(result: ItemResult, blobs: Mapping[str, str]) -> str:
    """The stored text of a result. Its blobs come last, so that they can be split off without parsing."""
    return json.dumps({**result.model_dump(mode="json", exclude={"artifacts"}), "blobs": blobs})


def json_of(job_id: str, index: int, text: str, root: str) -> str:
    """A stored result as JSON for the client, without parsing where possible, as a job may have 2,048 of them.

    Args:
        root: the path under which the API is served.
    """
    head, found, blobs = text.rpartition(BLOBS)
    method = METHOD.search(head)
    if not found or not method or NO_ERROR not in head:
        return result_of(job_id, text).under(root).model_dump_json()
    artifacts = _artifacts(f"{root}/jobs/{job_id}", index, method[1], json.loads(blobs[:-1]))
    return f'{head}, "artifacts": {json.dumps(artifacts)}}}'


def _artifacts(job_id: str, index: int, method: str, blobs: Mapping[str, str]) -> dict[str, str]:
    here = job_id if "/" in job_id else f"/jobs/{job_id}"
    names = dict.fromkeys([*blobs, *drawn_artifacts(method)]) if blobs else {}
    return {name: f"{here}/artifacts/{index}/{name}" for name in names}


def _progress(record: Record, status: Status) -> Progress:
    """The progress of a job; the fraction never decreases."""
    completed, planned = int(record["completed"]), int(record["planned"])
    running = json.loads(record.get("progress") or "{}")
    for name in ("items", "share"):
        running.pop(name, None)
    fraction = completed / planned if planned else float(status.terminal)
    if status is Status.RUNNING:
        fraction = min(1.0, max(fraction, float(record.get("fraction", 0))))
    left = None
    if status is Status.RUNNING and fraction >= LEAST_FRACTION and "now" in record:
        left = round((float(record["now"]) - float(record["started_at"])) * (1 - fraction) / fraction, 1)
    return Progress(
        completed=completed,
        failed=int(record["failed"]),
        total=planned if record["unresolved"] == "0" else None,
        fraction=round(fraction, 4),
        seconds_left=left,
        **running,
    )


def _wait(record: Record, rank: int) -> float | None:
    """Estimated seconds until a queued job starts, at the speed of the last minutes."""
    pace = float(record.get("pace", 0))
    return round((rank + 1) / pace, 1) if rank >= 0 and pace else None


def _unfinished(request: ExplainRequest, texts: Texts) -> Iterator[tuple[int, ItemResult]]:
    """Results for the unfinished items of a cancelled job."""
    for item in (item for part in plan(request, sys.maxsize) for item in part):
        if item.index not in texts:
            yield item.index, ItemResult.of(item, request, item.kernel).cancelled()


def _error(request: ExplainRequest, results: list[ItemResult]) -> Problem:
    """The problem of a failed job: that of its first failed item, with the number of failed items."""
    problems = [result.error for result in results if result.error]
    if not problems:  # "top:N", and no kernel is active
        return SilentKernel(f"every kernel of {request.layer} is silent on this image: nothing to explain").problem()
    if len(problems) == 1:
        return problems[0]
    return problems[0].model_copy(
        update={"detail": f"all {len(problems)} items failed; the first: {problems[0].detail}"}
    )


def _time(seconds: str) -> datetime:
    return datetime.fromtimestamp(float(seconds), UTC)
