"""What a job's images have in common: `GET /jobs/{id}/consistency` and `GET /jobs/{id}/contact_sheet.png`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from api.pictures.comparison import Consistency
from api.routes.artifacts import CACHE, FILE
from api.routes.jobs import Own
from api.services import Opened, Services
from shared.jobs import MEDIA_TYPES

router = APIRouter(prefix="/jobs", tags=["jobs"])

PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {"schema": FILE}}, "description": "The figure."}}


@router.get("/{job_id}/consistency", response_model=Consistency)
async def get_consistency(job_id: Own, services: Opened) -> Response:
    """Whether kernels see the same thing in all images of the job, and another thing than other kernels do.

    404 for jobs of one image, and of `POST /activations`.
    """
    return await _compared(services, job_id, "consistency.json")


@router.get("/{job_id}/contact_sheet.png", response_class=Response, responses=PNG)
async def get_contact_sheet(job_id: Own, services: Opened) -> Response:
    """One figure: a row for each image, a column for each kernel and method, with the scores of `consistency`."""
    return await _compared(services, job_id, "contact_sheet.png")


async def _compared(services: Services, job_id: str, name: str) -> Response:
    file = await services.pictures.of_job(job_id, name)
    headers = {"Cache-Control": CACHE if file.final else "no-store"}
    media_type = MEDIA_TYPES[name.rsplit(".", 1)[-1]]
    return Response(await services.pictures.content(file), media_type=media_type, headers=headers)
