"""What a job's images have in common: `GET /jobs/{id}/consistency` and `GET /jobs/{id}/contact_sheet.png`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from api.comparison import Consistency, made
from api.routes.artifacts import CACHE, FILE
from api.routes.jobs import Own
from api.services import Opened

router = APIRouter(prefix="/jobs", tags=["jobs"])

PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {"schema": FILE}}, "description": "The figure."}}


@router.get("/{job_id}/consistency", response_model=Consistency)
def get_consistency(job_id: Own, services: Opened) -> Response:
    """Whether kernels see the same thing in all images of the job, and another thing than other kernels do.

    404 for jobs of one image, and of `POST /activations`.
    """
    data, final = made(services, job_id, "consistency.json")
    return Response(data, media_type="application/json", headers={"Cache-Control": CACHE if final else "no-store"})


@router.get("/{job_id}/contact_sheet.png", response_class=Response, responses=PNG)
def get_contact_sheet(job_id: Own, services: Opened) -> Response:
    """One figure: a row for each image, a column for each kernel and method, with the scores of `consistency`."""
    data, final = made(services, job_id, "contact_sheet.png")
    return Response(data, media_type="image/png", headers={"Cache-Control": CACHE if final else "no-store"})
