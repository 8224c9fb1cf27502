"""`POST /activations`: which kernels of a layer an image activates."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from api.accept import IdempotencyKey, Prefer, accept, answered
from api.access import Asking
from api.body import ACTIVATIONS, read
from api.services import Opened
from shared.schemas import Job

router = APIRouter(tags=["explain"])


@router.post("/activations", status_code=202)
async def activations(
    request: Request,
    response: Response,
    services: Opened,
    caller: Asking,
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = "",
) -> Job:
    """Rank a layer's kernels by their mean activation on images, with a thumbnail of each feature map.

    A quick job (one forward pass an image), to choose the kernels that `POST /explain` is to explain. Each result has a
    `ranking`, and an artifact `thumbnails.png` with the feature maps in the ranking's order.
    """
    job, replayed = await accept(services, caller, await read(request, ACTIVATIONS), idempotency_key)
    job = await answered(services, caller, job, prefer, response)
    response.headers["Location"] = job.links["self"]
    if replayed:
        response.headers["Idempotent-Replayed"] = "true"
    if replayed or job.status.terminal:
        response.status_code = 200
    return job
