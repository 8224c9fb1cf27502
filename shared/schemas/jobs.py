"""Jobs, their progress, and pages of jobs and results."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Self

from pydantic import BaseModel, Field

from shared.errors import Problem
from shared.schemas.requests import ExplainRequest
from shared.schemas.results import ItemResult


class Status(StrEnum):
    """States of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether the job has ended."""
        return self not in {Status.QUEUED, Status.RUNNING}


class Progress(BaseModel):
    """How much of a job is done."""

    completed: int = Field(description="items that have ended")
    total: int | None = Field(description='all items; null until the worker has resolved "top:N"')
    failed: int = Field(description="items that have failed")
    iteration: int | None = Field(
        None,
        description="gradient evaluations done for the items that are running, in the slice that reported last",
    )
    budget: int | None = Field(None, description="most evaluations that these items may take")
    loss: float | None = Field(None, description="mean total loss of these items at present")
    fraction: float = Field(0.0, ge=0, le=1, description="fraction of the job's work that is done; never decreases")
    seconds_left: float | None = Field(None, description="estimate from the speed so far; null where there is none yet")


class JobSummary(BaseModel):
    """A job as listed by `GET /jobs`."""

    id: str
    status: Status
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime
    attempt: int = Field(
        description="highest number of attempts at any part of the job; above 1 if a worker died while it ran one"
    )
    queue_position: int | None = Field(
        description="position by waiting time, from 1; null once the job is running. Callers take turns, so a caller "
        "with few jobs in the queue may be served earlier"
    )
    waiting_for: str | None = Field(
        None, description="what the job needs before it can run, such as a worker with its network; null if nothing"
    )
    queue_seconds: float | None = Field(None, description="estimated time in the queue; null where unknown")
    request: ExplainRequest
    progress: Progress
    failed_items: int
    links: dict[str, str]

    def under(self, root: str) -> Self:
        """The job with its URLs under this path."""
        return self.model_copy(update={"links": {name: root + path for name, path in self.links.items()}})


class Page(BaseModel):
    """Jobs, newest first."""

    jobs: list[JobSummary]
    next_cursor: str | None = Field(description="cursor of the next page; null on the last page")


class ResultsPage(BaseModel):
    """Results of a job, by item index."""

    results: list[ItemResult]
    next_cursor: str | None = Field(description="cursor of the next page; null if there are no more results at present")


class Job(JobSummary):
    """A job as returned by `GET /jobs/{id}`."""

    results: list[ItemResult] | None = Field(
        description="null for a job of more than 64 items: read them page by page at `links.results`"
    )
    error: Problem | None

    def under(self, root: str) -> Self:
        """The job with its URLs under this path."""
        results = None if self.results is None else [result.under(root) for result in self.results]
        error = self.error and self.error.under(root)
        return super().under(root).model_copy(update={"results": results, "error": error})


class WholeJob(Job):
    """A job with all its results."""

    results: list[ItemResult]
