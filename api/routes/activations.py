"""`POST /activations`: which kernels of a layer an image activates."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from api.edge.access import Asking
from api.edge.body import ACTIVATIONS
from api.jobs.accept import Wished, submitted
from api.services import Opened
from shared.schemas import Job

router = APIRouter(tags=["explain"])


@router.post("/activations", status_code=202)
async def activations(request: Request, response: Response, services: Opened, caller: Asking, wishes: Wished) -> Job:
    """Rank a layer's kernels by their mean activation on images, with a thumbnail of each feature map.

    A quick job (one forward pass an image), to choose the kernels that `POST /explain` is to explain. Each result has a
    `ranking`, and an artifact `thumbnails.png` with the feature maps in the ranking's order.
    """
    return await submitted(services, caller, request, ACTIVATIONS, wishes, response)
