"""The job record in Redis: the truth about every job. Celery only carries the news that a slice may be runnable.

A job is cut into slices of at most 16 items. A slice is what a worker claims, holds under a lease and retries:

    queued ──claim──▶ running ──finish──▶ done          the job ends with its last slice
       ▲                 │
       └── release, lapse┘                              (a worker that stops; a lease that ran out)

`cancel` ends a job from any of these states, at once.

Every transition is one Lua script, so it happens wholly or not at all; every transition of a running slice needs
the token of its claim, so a worker that lost its lease can write nothing.
"""

from shared.jobs.claims import ANYONE, Caller, Claim, Hold, LostLease, Sign, Submitted
from shared.jobs.polling import Event, Polling
from shared.jobs.record import (
    ARTIFACTS,
    DRAWN_ARTIFACTS,
    JOB_ARTIFACTS,
    JOB_ID,
    MEDIA_TYPES,
    STORED_ARTIFACTS,
    Place,
    Records,
    Wanted,
    connect,
    drawn_artifacts,
)
from shared.jobs.retention import Retention
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
    "Hold",
    "LostLease",
    "Place",
    "Polling",
    "Records",
    "Retention",
    "Sign",
    "Submitted",
    "Transitions",
    "Wanted",
    "connect",
    "drawn_artifacts",
]
