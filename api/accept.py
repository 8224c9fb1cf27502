"""From a checked body to a queued job: images stored, record created, slices announced."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated
from uuid import uuid4

from fastapi import Depends, Header, Response
from starlette.concurrency import run_in_threadpool

from api.news import LOOK_SECONDS
from api.outbound import check_target
from api.services import Services
from shared import catalogue, images, workers
from shared.errors import LayerNotCovered, ModelUnavailable, StoreUnavailable, UnknownImage
from shared.jobs import Caller
from shared.queue import announce
from shared.schemas import ActivationsBody, ExplainBody, ExplainRequest, ImageSource, Job, plan

log = logging.getLogger(__name__)

HELD_SECONDS = 600.0  # for images of a request that is refused in the end; an accepted one holds them for its time
LARGE_PIXELS = 4_000_000
LONGEST_WAIT = 60  # seconds that a request may ask to be kept waiting
WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,9})\"?\s*(?=$|[,;])", re.IGNORECASE)

Prefer = Annotated[
    str,
    Header(
        description="`wait=N`: answer once the job has ended, or after N seconds (at most 60) as it stands then",
        examples=["wait=30"],
    ),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="names this request for 24 h: sent again with it, the request is answered 200 with the same job",
    ),
]


@dataclass(frozen=True)
class Wishes:
    """How a caller wants to be answered."""

    idempotency_key: IdempotencyKey = None
    prefer: Prefer = ""


Wished = Annotated[Wishes, Depends()]


async def submitted(
    services: Services, caller: Caller, body: ExplainBody | ActivationsBody, wishes: Wishes, response: Response
) -> Job:
    """The job of this body, and the response's status and headers."""
    for source in body.images:
        if source.data is not None:
            await _verified(services, source.data)
    job, replayed = await run_in_threadpool(_accept, services, caller, body, wishes.idempotency_key)
    job = await answered(services, caller, job, wishes.prefer, response)
    response.headers["Location"] = job.links["self"]
    if replayed:
        response.headers["Idempotent-Replayed"] = "true"
    if replayed or job.status.terminal:
        response.status_code = 200
    return job


async def answered(services: Services, caller: Caller, job: Job, prefer: str, response: Response) -> Job:
    """The job after the wait that was asked for; the response says how long that was, and whether the job has ended."""
    found = WAIT.search(prefer)
    if found is None:
        return job
    seconds = min(LONGEST_WAIT, int(found[1]))
    response.headers["Preference-Applied"] = f"wait={seconds}"
    return job if job.status.terminal else await ended(services, caller, job.id, seconds)


async def ended(services: Services, caller: Caller, job_id: str, seconds: float) -> Job:
    """The job once it has ended, or as it stands after so many seconds."""
    until = time.monotonic() + seconds
    with services.news.of(job_id, "status", "gone") as bell:
        while True:
            job = await services.polling.job(job_id, caller.owner)
            left = until - time.monotonic()
            if job.status.terminal or left <= 0:
                return job
            await bell.wait(min(left, LOOK_SECONDS))


async def _verified(services: Services, data: bytes) -> None:
    """Refuse bytes that are no whole image. Of the large ones one is decoded at a time: each may take a gigabyte."""
    most = services.max_pixels
    if await run_in_threadpool(images.pixels, data, most) <= LARGE_PIXELS:
        await run_in_threadpool(images.decode, data, most)
        return
    async with services.large_image:
        await run_in_threadpool(images.verify, data, most)


def _accept(
    services: Services, caller: Caller, body: ExplainBody | ActivationsBody, idempotency_key: str | None
) -> tuple[Job, bool]:
    layer = catalogue.network(body.model).layer(body.layer)
    if isinstance(body, ExplainBody) and isinstance(body.kernels, list):
        catalogue.check_kernels(layer, body.kernels)
    if body.webhook_url is not None:
        check_target(body.webhook_url, private=services.settings.webhook_private)
    _check_available(services, body.model, layer.name)
    blobs = [_image(services, caller, source) for source in body.images]
    wanted = _request(body, layer.name, [digest for digest, _ in blobs])
    slices = plan(wanted, services.settings.max_items)

    job_id = uuid4().hex
    expires_at = time.time() + services.settings.retention_days * 86400
    services.records.hold_images(job_id, wanted.images, time.time() + HELD_SECONDS, caller.owner)
    for digest, data in blobs:
        if data is not None:
            services.store.put(data)
        elif not services.store.has(digest):  # its last job was removed before our hold
            raise _unknown(digest)
    submitted = services.transitions.submit(job_id, wanted, slices, expires_at, idempotency_key, caller)
    _announce(services, submitted.slices)
    return services.records.job(submitted.job_id), submitted.replayed


def _request(body: ExplainBody | ActivationsBody, layer: str, digests: list[str]) -> ExplainRequest:
    options = body.model_dump(exclude={"images", "layer"})
    if isinstance(body, ActivationsBody):
        options |= {"kernels": [], "methods": ["activations"]}
    return ExplainRequest(**options, layer=layer, images=digests)


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


def _image(services: Services, caller: Caller, source: ImageSource) -> tuple[str, bytes | None]:
    """The image's digest, and its bytes where they were sent."""
    if source.data is not None:
        return services.store.digest(source.data), source.data
    assert source.sha256
    if not (services.records.known_image(source.sha256, caller.owner) and services.store.has(source.sha256)):
        raise _unknown(source.sha256)
    return source.sha256, None


def _unknown(digest: str) -> UnknownImage:
    return UnknownImage(f"no image with sha256 {digest} is kept; send its bytes as data")


def _announce(services: Services, slices: Sequence[tuple[str, str]]) -> None:
    """The record is the truth: a message that cannot be sent is sent later, by housekeeping."""
    try:
        for slice_id, queue in slices:
            announce(services.queue, slice_id, queue)
    except StoreUnavailable as error:
        log.warning("%s: %s; housekeeping will announce it", slices[0][0], error)
