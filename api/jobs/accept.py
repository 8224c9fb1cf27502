"""From a checked body to a queued job: images stored, record created, slices announced."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Header, Request, Response
from starlette.concurrency import run_in_threadpool

from api.edge.access import Visitor
from api.edge.admission import caller_of, verified
from api.edge.body import BodyT, Form, received
from api.jobs.feeds import KEEPALIVE_SECONDS
from api.jobs.news import LOOK_SECONDS
from api.jobs.outbound import check_target
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
)
from shared.jobs import Caller, new_id
from shared.queue import announce
from shared.schemas import ActivationsBody, ExplainBody, ExplainRequest, ImageSource, Item, Job, plan

log = logging.getLogger(__name__)

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
    services: Services, caller: Visitor, request: Request, form: Form[Any, BodyT], wishes: Wishes, response: Response
) -> Job:
    """The job of this request's body, and the response's status and headers."""
    async with received(request, form, services.admission) as body:
        job, replayed = await _taken(services, request, body, wishes.idempotency_key)
    del body  # it may be large, and the wait long
    return await told(services, caller, job, wishes, response, replayed=replayed)


async def told(
    services: Services, caller: Visitor, job: Job, wishes: Wishes, response: Response, *, replayed: bool
) -> Job:
    """The job after the wait that was asked for, and the response's status and headers."""
    job = await answered(services, caller, job, wishes.prefer, response)
    response.headers["Location"] = job.links["self"]
    if replayed:
        response.headers["Idempotent-Replayed"] = "true"
    if replayed or job.status.terminal:
        response.status_code = 200
    return job


async def answered(services: Services, caller: Visitor, job: Job, prefer: str, response: Response) -> Job:
    """The job after the wait that was asked for; the response says how long that was, and whether the job has ended."""
    found = WAIT.search(prefer)
    if found is None:
        return job
    seconds = min(LONGEST_WAIT, int(found[1]))
    response.headers["Preference-Applied"] = f"wait={seconds}"
    return job if job.status.terminal else await ended(services, caller, job.id, seconds)


async def ended(services: Services, caller: Visitor, job_id: str, seconds: float) -> Job:
    """The job once it has ended; or as it stands after so many seconds, or when this process is told to stop.

    Raises:
        Unauthorized: the caller's key was revoked meanwhile.
    """
    begin = checked_at = time.monotonic()
    with services.news.of(job_id, "status", "gone") as bell, services.news.waits.track_inprogress():
        while True:
            job = await services.polling.job(job_id, caller.owner)
            now = time.monotonic()
            left = begin + seconds - now
            if job.status.terminal or left <= 0 or services.news.ending:
                return job
            if now >= checked_at + KEEPALIVE_SECONDS - LOOK_SECONDS:
                await caller.check()
                checked_at = now
            await bell.wait(min(left, LOOK_SECONDS))


async def _taken(
    services: Services, request: Request, body: ExplainBody | ActivationsBody, idempotency_key: str | None
) -> tuple[Job, bool]:
    """The job, and whether it was there before. What costs most is done last: images are decoded, then stored."""
    caller: Caller = request.state.caller
    wanted, known = await run_in_threadpool(_foreseen, services, caller, body, idempotency_key)
    if known:
        return known, True
    for source in body.images:
        if source.data is not None:
            await verified(services.admission, caller_of(request), source.data, services.max_pixels)
    return await run_in_threadpool(_accept, services, caller, body, wanted, idempotency_key)


def explained(services: Services, caller: Caller, body: ExplainBody, idempotency_key: str) -> tuple[Job, bool]:
    """The same for images that this server has checked before."""
    wanted, known = _foreseen(services, caller, body, idempotency_key)
    return (known, True) if known else _accept(services, caller, body, wanted, idempotency_key)


@dataclass(frozen=True)
class Wanted:
    """A job that is not made yet."""

    request: ExplainRequest
    slices: list[list[Item]]


def _wanted(services: Services, body: ExplainBody | ActivationsBody) -> Wanted:
    """What is to be done, by the catalogue alone."""
    layer = workers.network(services.redis, body.model).layer(body.layer)
    if isinstance(body, ExplainBody) and isinstance(body.kernels, list):
        catalogue.check_kernels(layer, body.kernels)
    catalogue.check_methods(layer, getattr(body, "methods", []))
    digests = [source.sha256 or services.store.digest(source.data or b"") for source in body.images]
    request = _request(body, layer.name, digests)
    return Wanted(request, plan(request, services.settings.max_items))


def _foreseen(
    services: Services, caller: Caller, body: ExplainBody | ActivationsBody, idempotency_key: str | None
) -> tuple[Wanted, Job | None]:
    """The job that the key made before. Where there is none, refuses what can be refused without the images."""
    wanted = _wanted(services, body)
    if known := foreseen(services, caller, wanted, idempotency_key):
        return wanted, known
    for source in body.images:
        if source.sha256 and services.records.image(source.sha256, caller.owner) is None:
            raise _unknown(source.sha256)
    return wanted, None


def foreseen(services: Services, caller: Caller, wanted: Wanted, idempotency_key: str | None) -> Job | None:
    """The job that the key made before. Where there is none, refuses what is refused whatever the images are."""
    request = wanted.request
    if job_id := services.transitions.foresee(request, len(wanted.slices), idempotency_key, caller):
        try:
            return services.records.job(job_id)
        except (JobNotFound, JobExpired):  # Redis lost it: the key may make another
            services.transitions.free(idempotency_key or "", job_id, caller)
    if request.webhook_url is not None:
        check_target(request.webhook_url, private=services.settings.webhook_private)
    for layer in request.layers or [request.layer]:
        _check_available(services, request.model, layer)
    return None


def _accept(
    services: Services,
    caller: Caller,
    body: ExplainBody | ActivationsBody,
    wanted: Wanted,
    idempotency_key: str | None,
) -> tuple[Job, bool]:
    job_id = new_id()
    try:
        for source, digest in zip(body.images, wanted.request.images, strict=True):
            _put(services, caller, job_id, source, digest)
        found, replayed = queued(services, caller, job_id, wanted, idempotency_key)
    except (StoreUnavailable, UnknownImage, QuotaExceeded, QueueFull, IdempotencyConflict):
        with suppress(StoreUnavailable):  # else it is found by the walk through the store
            services.records.late(job_id)
        raise
    if found.id != job_id:  # the same request came twice at this moment
        services.records.late(job_id)
    return found, replayed


def queued(
    services: Services, caller: Caller, job_id: str, wanted: Wanted, idempotency_key: str | None
) -> tuple[Job, bool]:
    """The job of this id in the queue; or another one, that the same request has made at this moment."""
    lifetime = services.settings.retention_days * 86400
    submitted = services.transitions.submit(job_id, wanted.request, wanted.slices, lifetime, idempotency_key, caller)
    announced(services, submitted.slices)
    return services.records.job(submitted.job_id), submitted.replayed


def _put(services: Services, caller: Caller, job_id: str, source: ImageSource, digest: str) -> None:
    """An image into the job's folder: as it came, or out of that of the job that it came with."""
    if source.data is not None:
        services.store.put(job_id, source.data)
        return
    former = services.records.image(digest, caller.owner)
    if former is None or not services.store.copy(former, digest, job_id):  # it was removed at this moment
        raise _unknown(digest)


def _request(body: ExplainBody | ActivationsBody, layer: str, digests: list[str]) -> ExplainRequest:
    options = body.model_dump(exclude={"images", "layer"})
    if isinstance(body, ActivationsBody):
        options |= {"kernels": [], "methods": ["activations"]}
    names = [source.name for source in body.images]
    return ExplainRequest(**options, layer=layer, images=digests, names=names if any(names) else [])


def _check_available(services: Services, model: str, layer: str) -> None:
    """Refuse what no living worker could do. With no worker at all the job is taken: workers may be starting."""
    living = workers.living(services.redis)
    states = [worker.networks[model] for worker in living if model in worker.networks]
    if living and not states:
        raise ModelUnavailable(f"{model} cannot be explained here: no worker that is connected has it any more")
    if states and not any(state.available for state in states):
        raise ModelUnavailable(f"{model} cannot be explained here: {states[0].reason}")
    usable = [state for state in states if state.available]
    if usable and not any(state.covers(layer) for state in usable):
        raise LayerNotCovered(
            f"the weights of {model} ({usable[0].source}) do not cover {layer}; "
            f"they cover {', '.join(usable[0].layers)}"
        )


def _unknown(digest: str) -> UnknownImage:
    return UnknownImage(f"no image with sha256 {digest} is kept; send its bytes as data")


def announced(services: Services, slices: Sequence[tuple[str, str]]) -> None:
    """The record is the truth: a message that cannot be sent is sent later, by housekeeping."""
    try:
        for slice_id, queue in slices:
            announce(services.queue, slice_id, queue)
    except StoreUnavailable as error:
        log.warning("%s: %s; housekeeping will announce it", slices[0][0], error)
