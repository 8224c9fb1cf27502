"""`POST /explain`: explain kernels on images."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from api.accept import IdempotencyKey, Prefer, accept, answered
from api.access import Asking
from api.body import EXPLAIN, read
from api.services import Opened
from shared.schemas import Job

router = APIRouter(tags=["explain"])


@router.post("/explain", status_code=202)
async def explain(
    request: Request,
    response: Response,
    services: Opened,
    caller: Asking,
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = "",
) -> Job:
    """Explain kernels on images.

    Answers at once with a queued job, or with `Prefer: wait=N` once it has ended; `Location` is where to poll it. 200
    instead of 202: the job has ended, or the `Idempotency-Key` had made it before.
    """
    job, replayed = await accept(services, caller, await read(request, EXPLAIN), idempotency_key)
    job = await answered(services, caller, job, prefer, response)
    response.headers["Location"] = job.links["self"]
    if replayed:
        response.headers["Idempotent-Replayed"] = "true"
    if replayed or job.status.terminal:
        response.status_code = 200
    return job
