"""Parts of reading jobs: filters and places in lists, and the parsing of what the script `job` returns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from shared.errors import JobExpired, JobNotFound
from shared.jobs.archive import SEPARATOR
from shared.jobs.forms import Record, Stored
from shared.jobs.ids import made_at
from shared.schemas import ExplainRequest, JobSummary, Status

GONE = -2  # the rank of a deleted job

Answer = tuple[str, int, list[str] | None]  # what the script `job` returns


@dataclass(frozen=True)
class Head:
    """The main fields of a job's record."""

    job_id: str
    owner: str
    request: ExplainRequest
    ended: bool
    round: int = 0  # number of retries of failed items


@dataclass(frozen=True, order=True)
class Place:
    """The position of a job in its owner's list."""

    created: float
    job_id: str


@dataclass(frozen=True)
class JobFilter:
    """A filter for lists of jobs; None matches everything."""

    status: Status | None = None
    model: str | None = None
    layer: str | None = None

    def may_fit(self, line: str) -> bool:
        """Whether a line of the list may match; only those of ended jobs have the fields that decide it."""
        fields = line.split(SEPARATOR)[1:]
        return not fields or self._fits(fields[:3])

    def fits(self, job: JobSummary) -> bool:
        """Whether a job matches."""
        return self._fits([job.status, job.request.model, job.request.layer])

    def _fits(self, own: Sequence[str]) -> bool:
        asked = (self.status, self.model, self.layer)
        return all(want is None or want == have for want, have in zip(asked, own, strict=True))


def keys_of(job_id: str, most: int | None) -> tuple[list[str], list[str | int]]:
    """Keys and arguments of the script that reads a live job.

    Args:
        most: as in `Records.stored`.
    """
    results = [f"ks:job:{job_id}:results"] if most is not None else []
    return [f"ks:job:{job_id}", f"ks:gone:{job_id}", *results], [f"{job_id}:0", most or 0]


def live_of(job_id: str, answer: Answer, owner: str | None) -> Stored | None:
    """The job that the script has read; None if it is not in Redis.

    Raises:
        JobNotFound: it belongs to another owner.
        JobExpired: it was removed.
    """
    text, rank, texts = answer
    if not text:
        return None
    record: Record = json.loads(text)
    if owner is not None and record.get("owner", "") != owner:
        raise JobNotFound(f"there is no job {job_id}")
    if rank == GONE:
        raise JobExpired(f"job {job_id} was deleted, or has expired and was removed")
    results = None if texts is None else dict(zip(map(int, texts[::2]), texts[1::2], strict=True))
    return Stored(record, rank, results)


def missing(job_id: str) -> JobNotFound | JobExpired:
    """The error for a job that does not exist: if its id contains a time of creation, it did exist."""
    if made_at(job_id) is None:
        return JobNotFound(f"there is no job {job_id}")
    return JobExpired(
        f"job {job_id} is gone: it was deleted, has expired, or was lost by Redis (failover, restored backup). "
        "Send the request again; its Idempotency-Key is free"
    )
