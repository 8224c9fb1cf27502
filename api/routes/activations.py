"""`POST /activations`: which kernels of a layer an image activates."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from api.edge.access import CallerDep
from api.edge.body import ACTIVATIONS
from api.jobs.accept import IMAGE_JOB_ERRORS, submit
from api.jobs.responses import SubmitOptionsDep
from api.openapi import body, example, json_content, refusals
from api.routes.examples import QUEUED_JOB, RANKED_JOB
from api.routes.explain import BODY, DONE, form_content
from api.services import ServicesDep
from shared.schemas import ActivationsBody, Job

router = APIRouter(tags=["explain"])


@router.post(
    "/activations",
    status_code=202,
    responses={**example(202, QUEUED_JOB), **example(200, RANKED_JOB, **DONE), **refusals(*IMAGE_JOB_ERRORS)},
    openapi_extra=body(json=json_content(ActivationsBody, BODY), form=form_content()),
)
async def activations(
    request: Request, response: Response, services: ServicesDep, caller: CallerDep, options: SubmitOptionsDep
) -> Job:
    """Rank a layer's kernels by their mean activation on images, with a thumbnail of each feature map.

    A quick job (one forward pass per image) that helps to choose kernels for `POST /explain`. Each result has a
    `ranking`, and an artifact `thumbnails.png` with the feature maps in the order of the ranking.
    """
    return await submit(services, caller, request, ACTIVATIONS, options, response)
