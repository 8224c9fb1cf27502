"""`GET /jobs/{id}` and `POST /jobs/{id}/cancel`."""

from __future__ import annotations

from fastapi import APIRouter, Response

from api.services import Access
from shared.schemas import Job

router = APIRouter(prefix="/jobs", tags=["jobs"])


@router.get("/{job_id}")
def job(job_id: str, response: Response, services: Access) -> Job:
    """The job as it stands; `Retry-After` says when to ask again while it is not finished."""
    found = services.records.job(job_id)
    response.headers["Cache-Control"] = "no-store"
    if not found.status.terminal:
        response.headers["Retry-After"] = "1"
    return found


@router.post("/{job_id}/cancel")
def cancel(job_id: str, services: Access) -> Job:
    """End a job that is queued or running; what is finished of it stays. 409 where it has ended already."""
    services.transitions.cancel(job_id)
    return services.records.job(job_id)
