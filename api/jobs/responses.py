"""The response of a request about one job: its headers, and the wait that the client prefers (RFC 7240)."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Response

from api.edge.access import RequestCaller
from api.jobs.feeds import KEEPALIVE_SECONDS
from api.jobs.updates import RECHECK_SECONDS
from api.services import Services
from shared.schemas import Job

LONGEST_WAIT = 60  # seconds
WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,9})\"?\s*(?=$|[,;])", re.IGNORECASE)

Prefer = Annotated[
    str,
    Header(
        description="`wait=N`: respond when the job has ended, or after N seconds (at most 60) with its state by then",
        examples=["wait=30"],
    ),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="identifies this request for 24 h: if it is sent again with this key, the response is 200 with the "
        "same job",
    ),
]


@dataclass(frozen=True)
class SubmitOptions:
    """The headers of a request that creates a job."""

    idempotency_key: IdempotencyKey = None
    prefer: Prefer = ""


SubmitOptionsDep = Annotated[SubmitOptions, Depends()]


async def respond(
    services: Services,
    caller: RequestCaller,
    job: Job,
    options: SubmitOptions,
    response: Response,
    *,
    replayed: bool,
) -> Job:
    """The job, after the wait that the client prefers; sets the status and headers of the response."""
    job = await wait_if_preferred(services, caller, job, options.prefer, response)
    response.headers["Location"] = job.links["self"]
    if replayed:
        response.headers["Idempotent-Replayed"] = "true"
    if replayed or job.status.terminal:
        response.status_code = 200
    return job


async def wait_if_preferred(
    services: Services, caller: RequestCaller, job: Job, prefer: str, response: Response
) -> Job:
    """The job, after the wait that the client prefers; `Preference-Applied` says how long that may have been."""
    found = WAIT.search(prefer)
    if found is None:
        return job
    seconds = min(LONGEST_WAIT, int(found[1]))
    response.headers["Preference-Applied"] = f"wait={seconds}"
    return job if job.status.terminal else await _wait_until_ended(services, caller, job.id, seconds)


async def _wait_until_ended(services: Services, caller: RequestCaller, job_id: str, seconds: float) -> Job:
    """The job once it has ended, after this time, or when this process stops.

    Raises:
        Unauthorized: the caller's key was revoked meanwhile.
    """
    begin = checked_at = time.monotonic()
    updates = services.updates
    with updates.subscribe(job_id, "status", "gone") as subscription, updates.waits.track_inprogress():
        while True:
            job = await services.polling.job(job_id, caller.owner)
            now = time.monotonic()
            left = begin + seconds - now
            if job.status.terminal or left <= 0 or updates.stopping:
                return job
            if now >= checked_at + KEEPALIVE_SECONDS - RECHECK_SECONDS:
                await caller.check()
                checked_at = now
            await subscription.wait(min(left, RECHECK_SECONDS))
