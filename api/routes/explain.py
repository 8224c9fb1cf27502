"""`POST /explain`: check, store the images, create the record, announce its slices."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Annotated
from uuid import uuid4

from fastapi import APIRouter, Header, Request, Response
from starlette.concurrency import run_in_threadpool

from api.body import read_explain
from api.services import Access, Services
from shared import catalogue, images, workers
from shared.errors import LayerNotCovered, ModelUnavailable, StoreUnavailable, UnknownImage
from shared.queue import announce
from shared.schemas import ExplainBody, ExplainRequest, ImageSource, Job, plan

log = logging.getLogger(__name__)
router = APIRouter(tags=["explain"])

BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": ExplainBody.model_json_schema(ref_template="#/components/schemas/{model}")},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["image", "layer", "kernels"],
                "properties": {
                    "image": {"type": "array", "items": {"type": "string", "format": "binary"}},
                    "layer": {"type": "string"},
                    "kernels": {"type": "string", "examples": ["3,16", "top:4"]},
                },
                "additionalProperties": {"type": "string"},
            }
        },
    },
}


IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="names this request for 24 h: sent again with it, the request is answered 200 with the same job",
    ),
]


@router.post("/explain", status_code=202, openapi_extra={"requestBody": BODY})
async def explain(
    request: Request, response: Response, services: Access, idempotency_key: IdempotencyKey = None
) -> Job:
    """Explain kernels on images. Answers at once with a queued job; `Location` is where to poll it."""
    body = await read_explain(request)
    job, replayed = await run_in_threadpool(_accept, services, body, idempotency_key)
    response.headers["Location"] = f"/jobs/{job.id}"
    if replayed:
        response.status_code = 200
        response.headers["Idempotent-Replayed"] = "true"
    return job


def _accept(services: Services, body: ExplainBody, idempotency_key: str | None) -> tuple[Job, bool]:
    """The job, and whether it was there before."""
    layer = catalogue.network(body.model).layer(body.layer)
    if isinstance(body.kernels, list):
        catalogue.check_kernels(layer, body.kernels)
    _check_available(services, body.model, layer.name)
    blobs = [_image(services, source) for source in body.images]
    digests = [digest for digest, _ in blobs]
    options = body.model_dump(exclude={"images", "layer"})
    wanted = ExplainRequest(**options, layer=layer.name, images=digests)
    slices = plan(wanted, services.settings.max_items)

    job_id = uuid4().hex
    expires_at = time.time() + services.settings.retention_days * 86400
    services.records.hold(job_id, digests, expires_at)
    for _, data in blobs:
        if data is not None:
            services.store.put(data)
    submitted = services.transitions.submit(job_id, wanted, slices, expires_at, idempotency_key)
    _announce(services, submitted.slices)
    return services.records.job(submitted.job_id), submitted.replayed


def _check_available(services: Services, model: str, layer: str) -> None:
    """Refuse what no living worker could do. With no worker at all the job is taken: workers may be starting."""
    states = [worker.networks[model] for worker in workers.living(services.redis) if model in worker.networks]
    if states and not any(state.available for state in states):
        raise ModelUnavailable(f"{model} cannot be explained here: {states[0].reason}")
    usable = [state for state in states if state.available]
    if usable and not any(layer in state.layers for state in usable):
        raise LayerNotCovered(
            f"the weights of {model} ({usable[0].source}) do not cover {layer}; "
            f"they cover {', '.join(usable[0].layers)}"
        )


def _image(services: Services, source: ImageSource) -> tuple[str, bytes | None]:
    """The image's digest, and its bytes where they were sent."""
    if source.data is not None:
        images.decode(source.data, services.max_pixels)
        return services.store.digest(source.data), source.data
    assert source.sha256
    if not (services.records.known_image(source.sha256) and services.store.has(source.sha256)):
        raise UnknownImage(f"no image with sha256 {source.sha256} is kept; send its bytes as data")
    return source.sha256, None


def _announce(services: Services, slices: Sequence[tuple[str, str]]) -> None:
    """The record is the truth: a message that cannot be sent is sent later, by housekeeping."""
    try:
        for slice_id, queue in slices:
            announce(services.queue, slice_id, queue)
    except StoreUnavailable as error:
        log.warning("%s: %s; housekeeping will announce it", slices[0][0], error)
