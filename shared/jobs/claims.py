"""Who submits a job, who holds a slice of it, and what they are told."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal

from shared.schemas import ExplainRequest, Item

Queue = Literal["interactive", "bulk"]
QUEUES: tuple[Queue, ...] = ("interactive", "bulk")
SUSPECTED = " suspected"  # ends the name of a bucket of slices that workers may have died of


class LostLease(Exception):
    """The slice was given to somebody else, or its job is gone: drop what you have of it."""


@dataclass(frozen=True)
class Caller:
    """Whose a job is, and how much of the queue is left to them.

    Jobs, images and cached results of one owner are nobody else's business.
    """

    owner: str = ""
    max_open: int = sys.maxsize  # slices of this owner that have not ended
    max_queued: int = sys.maxsize  # slices of all owners that wait


ANYONE = Caller()


@dataclass(frozen=True)
class Claim:
    """A running slice in the hands of one worker."""

    slice_id: str
    job_id: str
    token: str
    attempt: int
    items: list[Item]  # those that have no result yet
    request: ExplainRequest
    expires_at: float  # by Redis's clock
    queue: Queue
    owner: str
    traceparent: str = ""  # of the request that made the job
    seconds_left: float | None = None  # until its deadline, when it was claimed
    waited: float | None = None  # seconds in the queue; None of one that nobody claimed
    suspected: bool = False  # workers died of it, or might have: it shall not run beside another such slice


@dataclass(frozen=True)
class Next:
    """What a worker that asks a queue for work is given."""

    claim: Claim | None
    waiting: int  # slices of the queue that go on waiting, this worker's business or not
    unannounced: int  # of them, those that no message in the broker is about


@dataclass(frozen=True)
class Sign:
    """That a claim's holder lives: how far it is, and what X̂ looks like of items of a watched job."""

    claim: Claim
    progress: dict[str, Any]
    previews: dict[int, bytes] = field(default_factory=dict)  # by the item's index: a WebP file


class Hold(IntEnum):
    """How a claim holds."""

    LOST = 0
    HELD = 1
    WATCHED = 2  # and somebody wants to see its job's previews


@dataclass(frozen=True)
class Submitted:
    """The job that a request has: a new one, or the one that its idempotency key already made."""

    job_id: str
    slices: list[tuple[str, Queue]]  # to announce; none where the job is an old one

    @property
    def replayed(self) -> bool:
        """Whether the job was there before."""
        return not self.slices
