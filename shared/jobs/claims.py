"""Callers, claims of slices, and what the transitions return."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal

from shared.schemas import ExplainRequest, Item

Queue = Literal["interactive", "bulk"]
QUEUES: tuple[Queue, ...] = ("interactive", "bulk")
SUSPECTED = " suspected"  # suffix of buckets for slices that may have killed workers


class LostLease(Exception):
    """The claim is no longer valid: the slice belongs to another worker, or its job is gone. Discard its results."""


@dataclass(frozen=True)
class Caller:
    """The owner of a job, and the caller's limits in the queue.

    Jobs, images and cached results of an owner are not visible to others.
    """

    owner: str = ""
    max_open: int = sys.maxsize  # unfinished slices of this owner
    max_queued: int = sys.maxsize  # queued slices of all owners


ANYONE = Caller()


@dataclass(frozen=True)
class Claim:
    """A running slice, leased to one worker."""

    slice_id: str
    job_id: str
    token: str
    attempt: int
    items: list[Item]  # without a result so far
    request: ExplainRequest
    expires_at: float  # by Redis's clock
    queue: Queue
    owner: str
    traceparent: str = ""  # of the request that made the job
    seconds_left: float | None = None  # until its deadline, at the time of the claim
    waited: float | None = None  # seconds in the queue; None if it was not claimed by a worker
    suspected: bool = False  # it may have killed workers, so two such slices must not run at the same time


@dataclass(frozen=True)
class Next:
    """The response to a worker that asks a queue for work."""

    claim: Claim | None
    waiting: int  # slices that remain in the queue, whether this worker can run them or not
    unannounced: int  # how many of them have no message in the broker


@dataclass(frozen=True)
class Heartbeat:
    """A heartbeat for a claim, with the progress, and for watched jobs previews of X̂."""

    claim: Claim
    progress: dict[str, Any]
    previews: dict[int, bytes] = field(default_factory=dict)  # by the item's index: a WebP file


class LeaseState(IntEnum):
    """The state of a claim after a heartbeat."""

    LOST = 0
    HELD = 1
    WATCHED = 2  # held, and clients are watching the job's previews


@dataclass(frozen=True)
class Submitted:
    """The job of a request: a new one, or an earlier one with the same idempotency key."""

    job_id: str
    slices: list[tuple[str, Queue]]  # to announce; empty for an earlier job

    @property
    def replayed(self) -> bool:
        """Whether it is an earlier job."""
        return not self.slices
