"""`POST /explain`: explain kernels on images."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from api.edge.access import Asking
from api.edge.body import EXPLAIN
from api.jobs.accept import Wished, submitted
from api.services import Opened
from shared.schemas import Job

router = APIRouter(tags=["explain"])


@router.post("/explain", status_code=202)
async def explain(request: Request, response: Response, services: Opened, caller: Asking, wishes: Wished) -> Job:
    """Explain kernels on images.

    Answers at once with a queued job, or with `Prefer: wait=N` once it has ended; `Location` is where to poll it. 200
    instead of 202: the job has ended, or the `Idempotency-Key` had made it before.
    """
    return await submitted(services, caller, request, EXPLAIN, wishes, response)
