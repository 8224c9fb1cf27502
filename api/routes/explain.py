"""`POST /explain`: explain kernels on images."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from api.edge.access import CallerDep
from api.edge.body import EXPLAIN
from api.jobs.accept import IMAGE_JOB_ERRORS, submit
from api.jobs.responses import SubmitOptionsDep
from api.openapi import UPLOAD, body, example, json_content, refusals
from api.routes.examples import IMAGE, QUEUED_JOB, SUCCEEDED_JOB
from api.services import ServicesDep
from shared.schemas import ExplainBody, Job

router = APIRouter(tags=["explain"])

BODY = {"images": [{"sha256": IMAGE}], "model": "vgg16", "layer": "conv1_2"}
DONE = {"model": Job, "description": "The job has ended, or the same request created it before."}
FIELDS = {
    "image": {
        "type": "array",
        "minItems": 1,
        "maxItems": 16,
        "items": UPLOAD,
    },
    "layer": {"type": "string"},
}


def form_content(**fields: object) -> dict[str, object]:
    """The multipart form of a body with images; fields besides the image and the layer are given."""
    schema = {
        "type": "object",
        "description": "Files as `image`, all other fields by their JSON names. A list has commas, or its field is "
        "repeated.",
        "required": [*FIELDS, *fields],
        "properties": {**FIELDS, **fields},
        "additionalProperties": {"type": "string"},
    }
    return {"schema": schema}


@router.post(
    "/explain",
    status_code=202,
    responses={**example(202, QUEUED_JOB), **example(200, SUCCEEDED_JOB, **DONE), **refusals(*IMAGE_JOB_ERRORS)},
    openapi_extra=body(
        json=json_content(ExplainBody, {**BODY, "kernels": [18]}),
        form=form_content(kernels={"type": "string", "examples": ["3,16", "top:4"]}),
    ),
)
async def explain(
    request: Request, response: Response, services: ServicesDep, caller: CallerDep, options: SubmitOptionsDep
) -> Job:
    """Explain kernels on images.

    Returns a queued job at once, or with `Prefer: wait=N` the job once it has ended; `Location` is the URL to poll. The
    status is 200 instead of 202 if the job has ended, or if an earlier request with the same `Idempotency-Key` created
    it.
    """
    return await submit(services, caller, request, EXPLAIN, options, response)
