"""Job records, the source of truth about jobs: in Redis while a job is live, in the object store once it has ended.

Celery only notifies workers that a slice may be runnable.

A job is split into slices of at most 16 items. A slice is the unit that workers claim, hold under a lease and retry:

    queued ──claim──▶ running ──finish──▶ done          the job ends with its last slice
       ▲                 │
       └── release, lapse┘                              (a worker that stops; a lease that expired)

`cancel` ends a job immediately in any of these states. `retry` queues the slices of an ended job with failed items.
`next` selects the slice that a worker gets: callers take turns.

Every transition is one Lua script, and so atomic. Those of a running slice require the fencing token of its claim, so a
worker that has lost its lease cannot write.
"""

from shared.connection import connect
from shared.jobs.claims import ANYONE, Caller, Claim, Heartbeat, LeaseState, LostLease, Next, Submitted
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
from shared.jobs.record import Records
from shared.jobs.retention import Retention
from shared.jobs.submission import check_retry
from shared.jobs.transitions import Transitions
from shared.jobs.views import Head, JobFilter, Place

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
    "Heartbeat",
    "JobFilter",
    "LeaseState",
    "LostLease",
    "Next",
    "Place",
    "Polling",
    "Records",
    "Retention",
    "Submitted",
    "Transitions",
    "check_retry",
    "connect",
    "drawn_artifacts",
    "new_id",
]
