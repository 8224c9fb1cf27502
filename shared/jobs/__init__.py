"""The job record: the truth about every job, in Redis while it is alive, in the object store once it has ended.

Celery only carries the news that a slice may be runnable.

A job is cut into slices of at most 16 items. A slice is what a worker claims, holds under a lease and retries:

    queued ──claim──▶ running ──finish──▶ done          the job ends with its last slice
       ▲                 │
       └── release, lapse┘                              (a worker that stops; a lease that ran out)

`cancel` ends a job from any of these states, at once. `retry` queues the slices of an ended job that have failed items.
Which slice a worker is given is decided by `next`: callers take turns.

Every transition is one Lua script, so it happens wholly or not at all; every transition of a running slice needs
the token of its claim, so a worker that lost its lease can write nothing.
"""

from shared.connection import connect
from shared.jobs.claims import ANYONE, Caller, Claim, Hold, LostLease, Next, Sign, Submitted
from shared.jobs.files import (
    ARTIFACTS,
    DRAWN_ARTIFACTS,
    JOB_ARTIFACTS,
    MEDIA_TYPES,
    STORED_ARTIFACTS,
    drawn_artifacts,
)
from shared.jobs.forms import Found
from shared.jobs.ids import JOB_ID, new_id
from shared.jobs.polling import Event, Polling
from shared.jobs.record import Head, Place, Records, Wanted
from shared.jobs.retention import Retention
from shared.jobs.submission import check_retry
from shared.jobs.transitions import Transitions

__all__ = [
    "ANYONE",
    "ARTIFACTS",
    "DRAWN_ARTIFACTS",
    "JOB_ARTIFACTS",
    "JOB_ID",
    "MEDIA_TYPES",
    "STORED_ARTIFACTS",
    "Caller",
    "Claim",
    "Event",
    "Found",
    "Head",
    "Hold",
    "LostLease",
    "Next",
    "Place",
    "Polling",
    "Records",
    "Retention",
    "Sign",
    "Submitted",
    "Transitions",
    "Wanted",
    "check_retry",
    "connect",
    "drawn_artifacts",
    "new_id",
]
