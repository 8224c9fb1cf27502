"""What a job's images have in common: `GET /jobs/{id}/consistency` and `GET /jobs/{id}/contact_sheet.png`."""

from __future__ import annotations

from fastapi import APIRouter, Response

from api.openapi import example, file, refusals
from api.pictures.comparison import Consistency
from api.routes.caching import IMMUTABLE
from api.routes.jobs import JOB_ERRORS, OwnJobId
from api.services import Services, ServicesDep
from shared.errors import ArtifactNotFound, DrawingQueueFull

router = APIRouter(prefix="/jobs", tags=["jobs"])

ERRORS = refusals(*JOB_ERRORS, ArtifactNotFound, DrawingQueueFull)
SCORES = {
    "final": True,
    "series": [
        {
            "kernel": 18,
            "method": "suppression",
            "alpha": 1.0,
            "beta": 1.0,
            "images": 4,
            "consistency": 0.81,
            "discrimination": 0.92,
        }
    ],
    "originals": 0.44,
    "left_out": "",
}


@router.get("/{job_id}/consistency", response_model=Consistency, responses={**example(200, SCORES), **ERRORS})
async def get_consistency(job_id: OwnJobId, services: ServicesDep) -> Response:
    """Whether each kernel responds to the same thing in all images, and to something else than the other kernels.

    404 for a job on one image, and for a job of `POST /activations`.
    """
    return await _job_file(services, job_id, "consistency.json")


@router.get(
    "/{job_id}/contact_sheet.png",
    response_class=Response,
    responses={**file("image/png", "The figure."), **ERRORS},
)
async def get_contact_sheet(job_id: OwnJobId, services: ServicesDep) -> Response:
    """One figure: a row for each image, a column for each kernel and method, with the scores of `consistency`."""
    return await _job_file(services, job_id, "contact_sheet.png")


async def _job_file(services: Services, job_id: str, name: str) -> Response:
    file = await services.pictures.job_file(job_id, name)
    headers = {"Cache-Control": IMMUTABLE if file.final else "no-store"}
    return Response(await services.pictures.content(file), media_type=file.media_type, headers=headers)
