"""`/jobs`: the list, one job, its events and webhook, cancelling and deleting it."""

from __future__ import annotations

import base64
import binascii
import re
from contextlib import nullcontext, suppress
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BeforeValidator, Field

from api.edge.access import Asking
from api.jobs.accept import Prefer, announced, answered
from api.services import Opened
from shared import workers
from shared.errors import ArtifactNotFound, InvalidRequest, JobEnded, JobNotFound, UnknownLayer, brief
from shared.jobs import JOB_ID, Place, Wanted, check_retry
from shared.jobs.forms import MOST_RESULTS
from shared.schemas import Job, Page, ResultsPage, Status, number
from shared.webhooks import Delivery

router = APIRouter(prefix="/jobs", tags=["jobs"])

RETRY_SECONDS = "1"
PLACE = re.compile(r"(\d{1,12}(?:\.\d{1,9})?) ([0-9a-f]{32})")  # what a cursor holds
TOLD = 'id: 1795599012345-0\nevent: status\ndata: {"status": "running"}\n\n'
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"example": TOLD}}, "description": "A stream of events."},
    204: {"description": "There are no more events, and there will be none."},
}
PREVIEW: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/webp": {"schema": {"type": "string", "format": "binary"}}}, "description": "A picture."}
}


def check_id(job_id: str) -> None:
    """No other text becomes part of a key of the record."""
    if not JOB_ID.fullmatch(job_id):
        raise JobNotFound(f"there is no job {brief(job_id)}; ids are 32 hexadecimal digits")


async def _own(job_id: str, services: Opened, caller: Asking) -> str:
    """The id of a job that is there and the caller's."""
    check_id(job_id)
    await services.polling.check(job_id, caller.owner)
    return job_id


async def _beside(
    services: Opened,
    caller: Asking,
    beside: Annotated[str | None, Query(description="another job, whose results `panel.png` shows too")] = None,
) -> str | None:
    """The same of a second job, where one is named."""
    return None if beside is None else await _own(beside, services, caller)


Own = Annotated[str, Depends(_own)]
Beside = Annotated[str | None, Depends(_beside)]


@router.get("")
def list_jobs(  # noqa: PLR0913, PLR0917 - its filters
    request: Request,
    response: Response,
    services: Opened,
    caller: Asking,
    status: Annotated[Status | None, Query(description="only jobs in this state")] = None,
    model: Annotated[str | None, Query(max_length=64, description="only jobs on this network")] = None,
    layer: Annotated[str | None, Query(max_length=64, description="only jobs on this layer")] = None,
    limit: Annotated[
        int, Field(ge=1, le=100), BeforeValidator(number), Query(description="jobs on a page at most")
    ] = 20,
    cursor: Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before")] = None,
) -> Page:
    """Your jobs, newest first. A page may be short or empty and yet have a next one, where a filter rarely fits."""
    if model is not None and layer is not None:
        network = workers.network(services.redis, model)
        with suppress(UnknownLayer) if network.architecture else nullcontext():  # it may have been another before
            layer = network.layer(layer).name
    after = _place(cursor) if cursor is not None else None
    found, place = services.records.page(caller.owner, Wanted(status, model, layer), limit, after)
    following = _cursor(place) if place else None
    if following:
        query = dict(request.query_params) | {"cursor": following}
        response.headers["Link"] = f'<{services.settings.root}/jobs?{urlencode(query)}>; rel="next"'
    response.headers["Cache-Control"] = "no-store"
    return Page(jobs=found, next_cursor=following)


def _cursor(place: Place) -> str:
    return base64.urlsafe_b64encode(f"{place.created!r} {place.job_id}".encode()).decode().rstrip("=")


def _place(cursor: str) -> Place:
    try:
        text = base64.urlsafe_b64decode(cursor.encode() + b"=" * (-len(cursor) % 4)).decode()
        match = PLACE.fullmatch(text)
    except (ValueError, binascii.Error):
        match = None
    if match is None:
        raise InvalidRequest("cursor: not one that this server gave; send `next_cursor` as it came")
    return Place(float(match[1]), match[2])


@router.get("/{job_id}", response_model=Job)
async def get_job(job_id: str, services: Opened, caller: Asking, prefer: Prefer = "") -> Response:
    """The job as it stands; `Retry-After` says when to ask again while it has not ended.

    Of a job of more than 64 items `results` is null: `GET /jobs/{id}/results` tells them page by page.
    """
    response = Response(media_type="application/json", headers={"Cache-Control": "no-store"})
    check_id(job_id)
    found = await services.polling.job(job_id, caller.owner)
    found = await answered(services, caller, found, prefer, response)
    if not found.status.terminal:
        response.headers["Retry-After"] = RETRY_SECONDS
    response.body = found.model_dump_json().encode()
    response.headers["Content-Length"] = str(len(response.body))
    return response


@router.get("/{job_id}/results")
def get_results(
    job_id: Own,
    response: Response,
    services: Opened,
    limit: Annotated[
        int, Field(ge=1, le=100), BeforeValidator(number), Query(description="results on a page at most")
    ] = MOST_RESULTS,
    cursor: Annotated[
        str | None, Query(max_length=20, pattern=r"^\d{1,9}$", description="`next_cursor` of the page before")
    ] = None,
) -> ResultsPage:
    """The job's results by the item's index, as far as there are any.

    While the job runs, results come in any order: whoever wants them all reads them once it has ended, or follows its
    events.
    """
    results, following = services.records.page_of_results(job_id, int(cursor or 0), limit)
    response.headers["Cache-Control"] = "no-store"
    return ResultsPage(results=results, next_cursor=None if following is None else str(following))


@router.post("/{job_id}/cancel")
def cancel_job(job_id: Own, services: Opened) -> Job:
    """End a job that is queued or running; what is finished of it stays. 409 where it has ended already."""
    job = services.records.job(job_id)
    if job.status.terminal:  # it may be in Redis no more
        raise JobEnded(f"job {job_id} has already {job.status}; only a queued or running job can be cancelled")
    services.transitions.cancel(job_id)
    return services.records.job(job_id)


@router.post("/{job_id}/retry", status_code=202)
def retry_job(job_id: Own, services: Opened, caller: Asking) -> Job:
    """Run the failed items of an ended job again; the others stay. 409 where none has failed, or it has not ended.

    The job is `queued` again, with all that this means: its deadline starts anew, its webhook tells its new end.
    """
    job = services.records.job(job_id)
    check_retry(job_id, job.status, job.failed_items)
    services.records.archive.restore(job_id)
    announced(services, services.transitions.retry(job_id, caller))
    return services.records.job(job_id)


@router.delete("/{job_id}", status_code=204)
def delete_job(job_id: Own, services: Opened) -> None:
    """Cancel a job if need be, and remove it with its files. It answers 410 from now on."""
    services.retention.remove(job_id)


@router.get("/{job_id}/events", response_class=StreamingResponse, responses=EVENTS)
async def get_events(
    job_id: Own,
    services: Opened,
    caller: Asking,
    last_event_id: Annotated[str | None, Header(max_length=64)] = None,
    *,
    previews: Annotated[bool, Query(description="have X̂ shown as it forms")] = False,
) -> Response:
    """What happens to the job, as Server-Sent Events: `status`, `progress`, `result`; ends when the job has ended.

    A reader that comes back with `Last-Event-ID` misses no `status` and no `result` and is told none twice; of the
    `progress` that it missed it is told the latest. 204: it had been told everything, and the job has ended.

    A stream that ends before the job has may say why, with a problem as its data: `gone`, the job was deleted;
    `problem` with status 401, the key was revoked or the session is over; `problem` else, come back with
    `Last-Event-ID`.

    With `previews=true`, `items` of `progress` have a `preview` once there is one, the evaluation that it is of:
    `GET /jobs/{id}/previews/{item}` is the picture.
    """
    stream = await services.feeds.follow(job_id, last_event_id, watch=previews, check=caller.check)
    if stream is None:
        return Response(status_code=204)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


Evaluation = Annotated[int | None, Query(ge=0, description="which one is wanted; the newest is what there is")]


@router.get("/{job_id}/previews/{item}", response_class=Response, responses=PREVIEW)
async def get_preview(
    job_id: Own,
    item: int,
    services: Opened,
    evaluation: Evaluation = None,  # noqa: ARG001 - a browser takes it for another picture then
) -> Response:
    """What X̂ of an item that runs looks like now; kept for a minute, while somebody reads the events with previews."""
    picture = await services.polling.preview(job_id, item)
    if picture is None:
        raise ArtifactNotFound(
            f"no preview of item {item}; there are some while /jobs/{job_id}/events?previews=true is read"
        )
    return Response(picture, media_type="image/webp", headers={"Cache-Control": "no-store"})


@router.get("/{job_id}/webhook")
def get_webhook(job_id: Own, services: Opened) -> Delivery:
    """How it goes with the job's webhook: each attempt to deliver it, and when the next one is."""
    return services.webhooks.delivery(job_id, services.records.webhook_of(job_id))
