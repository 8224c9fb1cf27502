"""`/jobs`: the list of jobs; one job: its results, events, previews and webhook; cancel, retry and delete it."""

from __future__ import annotations

import base64
import binascii
import re
from contextlib import nullcontext, suppress
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BeforeValidator, Field

from api.edge.access import CallerDep
from api.jobs.accept import LAYER_ERRORS, announce_slices
from api.jobs.responses import Prefer, wait_if_preferred
from api.openapi import Responses, example, file, refusals
from api.routes.examples import CANCELLED_JOB, EXPLAINED, QUEUED_JOB, SUCCEEDED_JOB
from api.routes.paging import CURSOR, IndexCursor
from api.services import ServicesDep
from shared import workers
from shared.errors import (
    ArtifactNotFound,
    InvalidRequest,
    JobEnded,
    JobExpired,
    JobNotFound,
    NothingToRetry,
    QueueFull,
    QuotaExceeded,
    UnknownLayer,
    brief,
)
from shared.jobs import JOB_ID, JobFilter, Place, check_retry
from shared.jobs.forms import MOST_RESULTS
from shared.schemas import Job, Page, ResultsPage, Status, number
from shared.webhooks import Delivery

router = APIRouter(prefix="/jobs", tags=["jobs"])

RETRY_SECONDS = "1"
PLACE = re.compile(r"(\d{1,12}(?:\.\d{1,9})?) ([0-9a-f]{32})")  # the creation time and id of the last job of a page
JOB_ERRORS = (JobNotFound, JobExpired)
LISTED = {
    "jobs": [SUCCEEDED_JOB.model_dump(mode="json", exclude={"results", "error"})],
    "next_cursor": None,
}
RESULTS = {"results": [EXPLAINED.model_dump(mode="json")], "next_cursor": None}
DELIVERED = {
    "url": "https://lab.example/kernelscope",
    "state": "delivered",
    "attempts": [{"at": "2026-11-25T09:30:12Z", "seconds": 0.08, "status": 204, "error": None}],
    "next_at": None,
}
STATUS_EVENT = 'id: 1795599012345-0\nevent: status\ndata: {"status": "running"}\n\n'
EVENTS: Responses = {
    200: {"content": {"text/event-stream": {"example": STATUS_EVENT}}, "description": "A stream of events."},
    204: {"description": "There are no more events, and there will be none."},
}


def check_id(job_id: str) -> None:
    """Refuse text that is no job id, before it becomes part of a Redis key."""
    if not JOB_ID.fullmatch(job_id):
        raise JobNotFound(f"there is no job {brief(job_id)}; ids are 32 hexadecimal digits")


async def _own_job_id(job_id: str, services: ServicesDep, caller: CallerDep) -> str:
    """The id of a job that exists and belongs to the caller."""
    check_id(job_id)
    await services.polling.check(job_id, caller.owner)
    return job_id


async def _other_job_id(
    services: ServicesDep,
    caller: CallerDep,
    beside: Annotated[str | None, Query(description="another job, whose results `panel.png` also shows")] = None,
) -> str | None:
    """The id of a second job, where the query names one."""
    return None if beside is None else await _own_job_id(beside, services, caller)


OwnJobId = Annotated[str, Depends(_own_job_id)]
OtherJobId = Annotated[str | None, Depends(_other_job_id)]


@router.get("", responses={**example(200, LISTED), **refusals(*LAYER_ERRORS)})
def list_jobs(  # noqa: PLR0913, PLR0917 - its filters
    request: Request,
    response: Response,
    services: ServicesDep,
    caller: CallerDep,
    status: Annotated[Status | None, Query(description="only jobs with this status")] = None,
    model: Annotated[str | None, Query(max_length=64, description="only jobs on this network")] = None,
    layer: Annotated[str | None, Query(max_length=64, description="only jobs on this layer")] = None,
    limit: Annotated[
        int, Field(ge=1, le=100), BeforeValidator(number), Query(description="maximum number of jobs per page")
    ] = 20,
    cursor: Annotated[str | None, Query(max_length=200, description=CURSOR)] = None,
) -> Page:
    """Your jobs, newest first.

    If few jobs match a filter, a page may be short or even empty although another one follows.
    """
    if model is not None and layer is not None:
        network = workers.network(services.redis, model)
        with suppress(UnknownLayer) if network.architecture else nullcontext():  # its architecture may have changed
            layer = network.layer(layer).name
    after = _from_cursor(cursor) if cursor is not None else None
    found, place = services.records.page(caller.owner, JobFilter(status, model, layer), limit, after)
    following = _to_cursor(place) if place else None
    if following:
        query = dict(request.query_params) | {"cursor": following}
        response.headers["Link"] = f'<{services.settings.root}/jobs?{urlencode(query)}>; rel="next"'
    response.headers["Cache-Control"] = "no-store"
    return Page(jobs=found, next_cursor=following)


def _to_cursor(place: Place) -> str:
    return base64.urlsafe_b64encode(f"{place.created!r} {place.job_id}".encode()).decode().rstrip("=")


def _from_cursor(cursor: str) -> Place:
    try:
        text = base64.urlsafe_b64decode(cursor.encode() + b"=" * (-len(cursor) % 4)).decode()
        match = PLACE.fullmatch(text)
    except (ValueError, binascii.Error):
        match = None
    if match is None:
        raise InvalidRequest("cursor: not a cursor of this server; send `next_cursor` unchanged")
    return Place(float(match[1]), match[2])


@router.get("/{job_id}", response_model=Job, responses={**example(200, SUCCEEDED_JOB), **refusals(*JOB_ERRORS)})
async def get_job(job_id: str, services: ServicesDep, caller: CallerDep, prefer: Prefer = "") -> Response:
    """The job's current state. While it has not ended, `Retry-After` says when to ask again.

    For a job of more than 64 items `results` is null: `GET /jobs/{id}/results` returns them page by page.
    """
    response = Response(media_type="application/json", headers={"Cache-Control": "no-store"})
    check_id(job_id)
    found = await services.polling.job(job_id, caller.owner)
    found = await wait_if_preferred(services, caller, found, prefer, response)
    if not found.status.terminal:
        response.headers["Retry-After"] = RETRY_SECONDS
    response.body = found.model_dump_json().encode()
    response.headers["Content-Length"] = str(len(response.body))
    return response


@router.get("/{job_id}/results", responses={**example(200, RESULTS), **refusals(*JOB_ERRORS)})
def get_results(
    job_id: OwnJobId,
    response: Response,
    services: ServicesDep,
    limit: Annotated[
        int, Field(ge=1, le=100), BeforeValidator(number), Query(description="maximum number of results per page")
    ] = MOST_RESULTS,
    cursor: IndexCursor = None,
) -> ResultsPage:
    """The job's results so far, ordered by the index of their item.

    Items of a running job finish in any order: to get every result, read the pages once the job has ended, or follow
    its events.
    """
    results, following = services.records.page_of_results(job_id, int(cursor or 0), limit)
    response.headers["Cache-Control"] = "no-store"
    return ResultsPage(results=results, next_cursor=None if following is None else str(following))


@router.post("/{job_id}/cancel", responses={**example(200, CANCELLED_JOB), **refusals(*JOB_ERRORS, JobEnded)})
def cancel_job(job_id: OwnJobId, services: ServicesDep) -> Job:
    """Cancel a queued or running job; finished results are kept. 409 if it has already ended."""
    job = services.records.job(job_id)
    if job.status.terminal:  # its record may already be archived, out of the transition's reach
        raise JobEnded(f"job {job_id} has already {job.status}; only a queued or running job can be cancelled")
    services.transitions.cancel(job_id)
    return services.records.job(job_id)


@router.post(
    "/{job_id}/retry",
    status_code=202,
    responses={
        **example(202, QUEUED_JOB),
        **refusals(*JOB_ERRORS, NothingToRetry, QuotaExceeded, QueueFull),
    },
)
def retry_job(job_id: OwnJobId, services: ServicesDep, caller: CallerDep) -> Job:
    """Run the failed items of an ended job again. 409 if none has failed, or the job has not ended.

    The other items keep their results. The job is `queued` again: its deadline starts anew, and its webhook is sent
    again once it ends.
    """
    job = services.records.job(job_id)
    check_retry(job_id, job.status, job.failed_items)
    services.records.archive.restore(job_id)
    announce_slices(services, services.transitions.retry(job_id, caller))
    return services.records.job(job_id)


@router.delete("/{job_id}", status_code=204, responses=refusals(*JOB_ERRORS))
def delete_job(job_id: OwnJobId, services: ServicesDep) -> None:
    """Delete a job with its files, and cancel it if it has not ended. Later requests for it return 410."""
    services.retention.remove(job_id)


@router.get("/{job_id}/events", response_class=StreamingResponse, responses={**EVENTS, **refusals(*JOB_ERRORS)})
async def get_events(
    job_id: OwnJobId,
    services: ServicesDep,
    caller: CallerDep,
    last_event_id: Annotated[str | None, Header(max_length=64)] = None,
    *,
    previews: Annotated[bool, Query(description="make previews of X̂ while the job runs")] = False,
) -> Response:
    """The job's events as Server-Sent Events: `status`, `progress` and `result`. The stream ends with the job.

    A client that reconnects with `Last-Event-ID` receives every `status` and `result` exactly once, and of the
    `progress` events that it missed the latest. 204: the client has received every event, and the job has ended.

    If the stream ends before the job does, its last event may give the reason, with a problem as its data. `gone`: the
    job was deleted. `problem` with status 401: the key was revoked or the session has ended. Any other `problem`:
    reconnect with `Last-Event-ID`.

    With `previews=true`, each of the `items` of a `progress` event has a `preview` as soon as there is one: the number
    of the evaluation that it shows. The picture is at `GET /jobs/{id}/previews/{item}`.
    """
    stream = await services.feeds.follow(job_id, last_event_id, previews=previews, check=caller.check)
    if stream is None:
        return Response(status_code=204)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


Evaluation = Annotated[
    int | None,
    Query(
        ge=0, description="number of the evaluation, to make URLs unique; the newest preview is returned in any case"
    ),
]


@router.get(
    "/{job_id}/previews/{item}",
    response_class=Response,
    responses={**file("image/webp", "A picture."), **refusals(*JOB_ERRORS, ArtifactNotFound)},
)
async def get_preview(
    job_id: OwnJobId,
    item: int,
    services: ServicesDep,
    evaluation: Evaluation = None,  # noqa: ARG001 - makes the URL unique, so that a browser loads the picture again
) -> Response:
    """The current X̂ of a running item. Stored for a minute, while a client reads the events with `previews=true`."""
    picture = await services.polling.preview(job_id, item)
    if picture is None:
        raise ArtifactNotFound(
            f"there is no preview of item {item}; previews are made while /jobs/{job_id}/events?previews=true is read"
        )
    return Response(picture, media_type="image/webp", headers={"Cache-Control": "no-store"})


@router.get("/{job_id}/webhook", responses={**example(200, DELIVERED), **refusals(*JOB_ERRORS)})
def get_webhook(job_id: OwnJobId, services: ServicesDep) -> Delivery:
    """The delivery of the job's webhook: each attempt so far, and the time of the next one."""
    return services.webhooks.delivery(job_id, services.records.webhook_of(job_id))
