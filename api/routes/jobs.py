"""`/jobs`: the list, one job, its events and webhook, cancelling and deleting it."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from api.accept import Prefer, answered
from api.access import Asking
from api.services import Opened
from shared import catalogue
from shared.errors import ArtifactNotFound, InvalidRequest, JobNotFound
from shared.jobs import JOB_ID, Place, Wanted
from shared.schemas import Job, Page, Status
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
        raise JobNotFound(f"there is no job {job_id}; ids are 32 hexadecimal digits")


async def _own(job_id: str, services: Opened, caller: Asking) -> str:
    """The id of a job that is there and the caller's."""
    check_id(job_id)
    await services.polling.check(job_id, caller.owner)
    return job_id


Own = Annotated[str, Depends(_own)]


@router.get("")
def list_jobs(  # noqa: PLR0913, PLR0917 - its filters
    request: Request,
    response: Response,
    services: Opened,
    caller: Asking,
    status: Annotated[Status | None, Query(description="only jobs in this state")] = None,
    model: Annotated[str | None, Query(max_length=64, description="only jobs on this network")] = None,
    layer: Annotated[str | None, Query(max_length=64, description="only jobs on this layer")] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="jobs on a page at most")] = 20,
    cursor: Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before")] = None,
) -> Page:
    """Your jobs, newest first. A page may be short or empty and yet have a next one, where a filter rarely fits."""
    if model is not None and layer is not None:
        layer = catalogue.network(model).layer(layer).name
    after = _place(cursor) if cursor is not None else None
    found, place = services.records.page(caller.owner, Wanted(status, model, layer), limit, after)
    following = _cursor(place) if place else None
    if following:
        query = dict(request.query_params) | {"cursor": following}
        response.headers["Link"] = f'</jobs?{urlencode(query)}>; rel="next"'
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
    """The job as it stands; `Retry-After` says when to ask again while it has not ended."""
    response = Response(media_type="application/json", headers={"Cache-Control": "no-store"})
    check_id(job_id)
    found = await services.polling.job(job_id, caller.owner)
    found = await answered(services, caller, found, prefer, response)
    if not found.status.terminal:
        response.headers["Retry-After"] = RETRY_SECONDS
    response.body = found.model_dump_json().encode()
    response.headers["Content-Length"] = str(len(response.body))
    return response


@router.post("/{job_id}/cancel")
def cancel_job(job_id: Own, services: Opened) -> Job:
    """End a job that is queued or running; what is finished of it stays. 409 where it has ended already."""
    services.transitions.cancel(job_id)
    return services.records.job(job_id)


@router.delete("/{job_id}", status_code=204)
def delete_job(job_id: Own, services: Opened) -> None:
    """Cancel a job if need be, and remove it with its files. It answers 410 from now on, and 404 in a week."""
    services.retention.discard(services.store, services.retention.remove(job_id))


@router.get("/{job_id}/events", response_class=StreamingResponse, responses=EVENTS)
async def get_events(
    job_id: Own,
    services: Opened,
    last_event_id: Annotated[str | None, Header(max_length=64)] = None,
    *,
    previews: Annotated[bool, Query(description="have X̂ shown as it forms")] = False,
) -> Response:
    """What happens to the job, as Server-Sent Events: `status`, `progress`, `result`; ends when the job has ended.

    A reader that comes back with `Last-Event-ID` misses no `status` and no `result` and is told none twice; of the
    `progress` that it missed it is told the latest. 204: it had been told everything, and the job has ended.

    With `previews=true`, `items` of `progress` have a `preview` once there is one, the evaluation that it is of:
    `GET /jobs/{id}/previews/{item}` is the picture.
    """
    stream = await services.feeds.follow(job_id, last_event_id, watch=previews)
    if stream is None:
        return Response(status_code=204)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


@router.get("/{job_id}/previews/{item}", response_class=Response, responses=PREVIEW)
async def get_preview(job_id: Own, item: int, services: Opened) -> Response:
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
    return services.webhooks.delivery(job_id)
