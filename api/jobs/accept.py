"""From a request to a queued job: checks, images stored, record created, slices announced."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response
from starlette.concurrency import run_in_threadpool

from api.edge.access import RequestCaller
from api.edge.body import BODY_ERRORS, BodyModels, BodyT, read_body
from api.edge.capacity import caller_key, check_image
from api.jobs.outbound import check_target
from api.jobs.responses import SubmitOptions, respond
from api.services import Services
from shared import catalogue, workers
from shared.errors import (
    IdempotencyConflict,
    JobExpired,
    JobNotFound,
    LayerNotCovered,
    ModelUnavailable,
    QueueFull,
    QuotaExceeded,
    StoreUnavailable,
    UnknownImage,
    UnknownKernel,
    UnknownLayer,
    UnknownModel,
    UnsupportedImage,
    UnusableImage,
    WebhookRefused,
)
from shared.jobs import Caller, new_id
from shared.queue import announce
from shared.schemas import ActivationsBody, ExplainBody, ExplainRequest, ImageSource, Item, Job, plan

log = logging.getLogger(__name__)


LAYER_ERRORS = (UnknownModel, UnknownLayer)
QUEUE_ERRORS = (ModelUnavailable, LayerNotCovered, IdempotencyConflict, WebhookRefused, QuotaExceeded, QueueFull)
IMAGE_JOB_ERRORS = (
    *BODY_ERRORS,
    UnsupportedImage,
    UnusableImage,
    UnknownImage,
    *LAYER_ERRORS,
    UnknownKernel,
    *QUEUE_ERRORS,
)


async def submit(
    services: Services,
    caller: RequestCaller,
    request: Request,
    models: BodyModels[Any, BodyT],
    options: SubmitOptions,
    response: Response,
) -> Job:
    """Create the job of a request with images; sets the status and headers of the response."""
    async with read_body(request, models, services.capacity) as body:
        job, replayed = await _create(services, request, body, options.idempotency_key)
    del body  # it may be large, and the wait long
    return await respond(services, caller, job, options, response, replayed=replayed)


async def _create(
    services: Services, request: Request, body: ExplainBody | ActivationsBody, idempotency_key: str | None
) -> tuple[Job, bool]:
    """The job, and whether an earlier request created it. Images are decoded and stored last: that costs most."""
    caller: Caller = request.state.caller
    planned, existing = await run_in_threadpool(_check, services, caller, body, idempotency_key)
    if existing:
        return existing, True
    for source in body.images:
        if source.data is not None:
            await check_image(services.capacity, caller_key(request), source.data, services.max_pixels)
    return await run_in_threadpool(_store, services, caller, body, planned, idempotency_key)


def create_from_known_images(
    services: Services, caller: Caller, body: ExplainBody, idempotency_key: str
) -> tuple[Job, bool]:
    """The same for images that this server has checked before."""
    planned, existing = _check(services, caller, body, idempotency_key)
    return (existing, True) if existing else _store(services, caller, body, planned, idempotency_key)


@dataclass(frozen=True)
class PlannedJob:
    """A job that is not yet created."""

    request: ExplainRequest
    slices: list[list[Item]]


def _plan(services: Services, body: ExplainBody | ActivationsBody) -> PlannedJob:
    """The job of a body. Only the catalogue is needed for it."""
    layer = workers.network(services.redis, body.model).layer(body.layer)
    if isinstance(body, ExplainBody) and isinstance(body.kernels, list):
        catalogue.check_kernels(layer, body.kernels)
    catalogue.check_methods(layer, getattr(body, "methods", []))
    digests = [source.sha256 or services.store.digest(source.data or b"") for source in body.images]
    request = _request(body, layer.name, digests)
    return PlannedJob(request, plan(request, services.settings.max_items))


def _check(
    services: Services, caller: Caller, body: ExplainBody | ActivationsBody, idempotency_key: str | None
) -> tuple[PlannedJob, Job | None]:
    """The planned job, and an existing one of the same key. Raises every error that does not need the images' bytes."""
    planned = _plan(services, body)
    if existing := find_existing(services, caller, planned, idempotency_key):
        return planned, existing
    for source in body.images:
        if source.sha256 and services.records.image(source.sha256, caller.owner) is None:
            raise _unknown(source.sha256)
    return planned, None


def find_existing(services: Services, caller: Caller, planned: PlannedJob, idempotency_key: str | None) -> Job | None:
    """The job that an earlier request with this key created. If there is none, raises every error but the images'."""
    request = planned.request
    if job_id := services.transitions.check_submit(request, len(planned.slices), idempotency_key, caller):
        try:
            return services.records.job(job_id)
        except (JobNotFound, JobExpired):  # Redis has lost it: the key may be used again
            services.transitions.free(idempotency_key or "", job_id, caller)
    if request.webhook_url is not None:
        check_target(request.webhook_url, private=services.settings.webhook_private)
    for layer in request.layers or [request.layer]:
        _check_available(services, request.model, layer)
    return None


def _store(
    services: Services,
    caller: Caller,
    body: ExplainBody | ActivationsBody,
    planned: PlannedJob,
    idempotency_key: str | None,
) -> tuple[Job, bool]:
    """Store the images and enqueue the job."""
    job_id = new_id()
    try:
        for source, digest in zip(body.images, planned.request.images, strict=True):
            _put(services, caller, job_id, source, digest)
        found, replayed = enqueue(services, caller, job_id, planned, idempotency_key)
    except (StoreUnavailable, UnknownImage, QuotaExceeded, QueueFull, IdempotencyConflict):
        with suppress(StoreUnavailable):  # the daily scan of the store removes the images then
            services.records.schedule_cleanup(job_id)
        raise
    if found.id != job_id:  # the same request arrived twice at the same time
        services.records.schedule_cleanup(job_id)
    return found, replayed


def enqueue(
    services: Services, caller: Caller, job_id: str, planned: PlannedJob, idempotency_key: str | None
) -> tuple[Job, bool]:
    """The job with this id in the queue; or another one, if the same request created that at the same time."""
    lifetime = services.settings.retention_days * 86400
    submitted = services.transitions.submit(job_id, planned.request, planned.slices, lifetime, idempotency_key, caller)
    announce_slices(services, submitted.slices)
    return services.records.job(submitted.job_id), submitted.replayed


def _put(services: Services, caller: Caller, job_id: str, source: ImageSource, digest: str) -> None:
    """Store an image in the job's folder: its bytes, or a copy from the folder of an earlier job."""
    if source.data is not None:
        services.store.put(job_id, source.data)
        return
    former = services.records.image(digest, caller.owner)
    if former is None or not services.store.copy(former, digest, job_id):  # it was deleted at this moment
        raise _unknown(digest)


def _request(body: ExplainBody | ActivationsBody, layer: str, digests: list[str]) -> ExplainRequest:
    options = body.model_dump(exclude={"images", "layer"})
    if isinstance(body, ActivationsBody):
        options |= {"kernels": [], "methods": ["activations"]}
    names = [source.name for source in body.images]
    return ExplainRequest(**options, layer=layer, images=digests, names=names if any(names) else [])


def _check_available(services: Services, model: str, layer: str) -> None:
    """Refuse a job that no connected worker can run, or will soon try to load the network of.

    With no worker at all it is accepted: workers may be starting.
    """
    living = workers.living(services.redis)
    states = [worker.networks[model] for worker in living if model in worker.networks]
    if living and not states:
        raise ModelUnavailable(f"{model} cannot be explained: no connected worker has it any more")
    if any(state.failure == "temporary" for state in states):
        return  # a worker is trying to load it again; the job says so while it waits
    if states and not any(state.available for state in states):
        raise ModelUnavailable(f"{model} cannot be explained: {states[0].reason}")
    usable = [state for state in states if state.available]
    if usable and not any(state.covers(layer) for state in usable):
        raise LayerNotCovered(
            f"the weights of {model} ({usable[0].source}) do not cover {layer}; "
            f"they cover {', '.join(usable[0].layers)}"
        )


def _unknown(digest: str) -> UnknownImage:
    return UnknownImage(f"no image with sha256 {digest} is stored; send its bytes as data")


def announce_slices(services: Services, slices: Sequence[tuple[str, str]]) -> None:
    """Send a message for each slice. What cannot be sent now is sent later by housekeeping, from the job record."""
    try:
        for slice_id, queue in slices:
            announce(services.queue, slice_id, queue)
    except StoreUnavailable as error:
        log.warning("%s: %s; housekeeping will announce it", slices[0][0], error)
