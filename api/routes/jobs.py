"""`GET /jobs/{id}` and `POST /jobs/{id}/cancel`."""

from __future__ import annotations

from fastapi import APIRouter, Response

from api.services import Access
from shared.schemas import Job

router = APIRouter(prefix="/jobs", tags=["jobs"])


@router.get("/{job_id}", response_model=Job)
async def job(job_id: str, services: Access) -> Response:
    """The job as it stands; `Retry-After` says when to ask again while it is not finished."""
    found = await services.polling.job(job_id)
    headers = {"Cache-Control": "no-store"}
    if not found.status.terminal:
        headers["Retry-After"] = "1"
    return Response(found.model_dump_json(), media_type="application/json", headers=headers)


@router.post("/{job_id}/cancel")
def cancel(job_id: str, services: Access) -> Job:
    """End a job that is queued or running; what is finished of it stays. 409 where it has ended already."""
    services.transitions.cancel(job_id)
    return services.records.job(job_id)
