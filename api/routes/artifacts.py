"""`GET /jobs/{id}/artifacts/{item}/{name}`: the files of a result. `GET /jobs/{id}/bundle.zip`: all of them.

The content at a URL never changes once it is final, so caches may keep it for ever.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import PurePath
from typing import Annotated

from fastapi import APIRouter, Header, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from zipstream import ZipStream

from api.openapi import BINARY, Responses, file, refusals
from api.pictures.comparison import comparable
from api.pictures.service import PANEL
from api.routes.caching import IMMUTABLE, IfNoneMatch, etag_matches
from api.routes.jobs import JOB_ERRORS, OtherJobId, OwnJobId
from api.services import Services, ServicesDep
from shared import images
from shared.errors import ArtifactNotFound, DrawingQueueFull, RangeNotSatisfiable
from shared.jobs import JOB_ARTIFACTS
from shared.schemas import ExplainRequest, ItemResult, Job, WholeJob

router = APIRouter(prefix="/jobs", tags=["jobs"])

MOST_LETTERS = 60  # of an image's name in the bundle: at most 240 bytes
FORMS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
ONE_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
JSON = "application/json"
BYTES = {"application/octet-stream": {"schema": BINARY}, "image/png": {"schema": BINARY}}
HISTORY = {"columns": ["iteration", "preservation"], "rows": [[1, 0.0]]}
ARTIFACT: Responses = {  # generated clients use the first media type
    200: {
        "content": {**BYTES, JSON: {"schema": {"type": "object"}, "example": HISTORY}},
        "description": "The file.",
    },
    206: {"content": BYTES, "description": "The requested `Range` of the file. JSON is always sent whole."},
    304: {"description": "The client's copy is current."},
}


@router.get(
    "/{job_id}/artifacts/{item}/{name}",
    response_class=Response,
    responses={**ARTIFACT, **refusals(*JOB_ERRORS, ArtifactNotFound, RangeNotSatisfiable, DrawingQueueFull)},
)
async def get_artifact(  # noqa: PLR0913, PLR0917 - its headers
    job_id: OwnJobId,
    item: int,
    name: str,
    services: ServicesDep,
    beside: OtherJobId,
    if_none_match: IfNoneMatch = "",
    if_range: Annotated[str, Header()] = "",
    range: Annotated[str, Header(description="one range of bytes, `bytes=0-1023`")] = "",  # noqa: A002
) -> Response:
    """One file of one result; its `ETag` is its SHA-256.

    `panel.png?beside=JOB` adds the rows of another job of yours on the same image and kernel, by another network with
    the same layer: two checkpoints of one architecture, for example.
    """
    if beside is None:
        file = await services.pictures.result_file(job_id, item, name)
    elif name == PANEL:
        file = await services.pictures.panel_beside(job_id, item, beside)
    else:
        raise ArtifactNotFound(f"{name} shows one job only; `beside` applies to {PANEL}")
    headers = {"ETag": f'"{file.digest}"', "Cache-Control": IMMUTABLE if file.final else "no-store"}
    headers["Accept-Ranges"] = "none" if file.media_type == JSON else "bytes"  # a part of a JSON text is not JSON
    if etag_matches(headers["ETag"], if_none_match):
        return Response(status_code=304, headers=headers)
    data = await services.pictures.content(file)
    requested = None if file.media_type == JSON else _byte_range(range, len(data))
    if requested and if_range in ("", headers["ETag"]):
        start, end = requested
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        return Response(data[start:end], 206, media_type=file.media_type, headers=headers)
    return Response(data, media_type=file.media_type, headers=headers)


def _byte_range(text: str, size: int) -> tuple[int, int] | None:
    """(first byte, byte after the last); None if the whole file is to be sent: no range, several, or an invalid one.

    Raises:
        RangeNotSatisfiable: it begins after the end of the file.
    """
    match = ONE_RANGE.fullmatch(text.replace(" ", ""))
    if match is None or match[0] == "bytes=-":
        return None
    first, last = match.groups()
    if first:
        start, end = int(first), min(size, int(last) + 1 if last else size)
        if last and int(last) < start:
            return None
    else:
        start, end = max(0, size - int(last)), size
    if start >= end:
        headers = {"Content-Range": f"bytes */{size}"}
        raise RangeNotSatisfiable(f"the file has {size} bytes; {text} is outside", headers=headers)
    return start, end


@router.get(
    "/{job_id}/bundle.zip",
    response_class=StreamingResponse,
    responses={**file("application/zip", "A ZIP file."), **refusals(*JOB_ERRORS)},
)
async def get_bundle(job_id: OwnJobId, services: ServicesDep) -> StreamingResponse:
    """All files of the job so far as a ZIP archive: `job.json`, the images, a folder for each result. Streamed."""
    job = await run_in_threadpool(services.records.whole, job_id)
    headers = {"Content-Disposition": f'attachment; filename="kernelscope-{job_id}.zip"', "Cache-Control": "no-store"}
    return StreamingResponse(_zipped(services, job), media_type="application/zip", headers=headers)


async def _zipped(services: Services, job: WholeJob) -> AsyncIterator[bytes]:
    archive = ZipStream()
    async for name, data in _contents(services, job):
        archive.add(data, name)
        async for part in iterate_in_threadpool(archive.all_files()):
            yield part
    async for part in iterate_in_threadpool(archive.finalize()):
        yield part


async def _contents(services: Services, job: WholeJob) -> AsyncIterator[tuple[str, bytes]]:
    """Name and bytes of each file, one at a time.

    Pictures still to be drawn wait for their turn however long the queue is: a response that has begun cannot be
    refused any more.
    """
    pictures = services.pictures
    yield "job.json", _without_secrets(job).model_dump_json(indent=1).encode()
    for name, digest in _originals(job.request).items():
        if data := await run_in_threadpool(services.store.get, job.id, digest):
            yield f"images/{name}.{FORMS[images.form_of(data)]}", data
    if any(result.artifacts for result in job.results) and comparable(job.request):
        for name in JOB_ARTIFACTS:
            yield name, await pictures.content(await pictures.job_file(job.id, name, bounded=False))
    for result in job.results:
        for name in result.artifacts:
            file = await pictures.result_file(job.id, result.index, name, bounded=False)
            yield f"{folder(job, result)}/{name}", await pictures.content(file)


def _without_secrets(job: Job) -> Job:
    """The job as it may be passed on to others: the path and query of its webhook's URL may contain a password."""
    if job.request.webhook_url is None:
        return job
    scheme, _, rest = job.request.webhook_url.partition("://")
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    request = job.request.model_copy(update={"webhook_url": f"{scheme}://{host}/***"})
    return job.model_copy(update={"request": request})


def _originals(request: ExplainRequest) -> dict[str, str]:
    """The images' digests by file name, without the ending: `00-cat`, or the digest where an image has no name.

    The names are valid on every file system.
    """
    found = {}
    for number, digest in enumerate(request.images):
        stem = PurePath(request.name_of(number) or "").stem
        safe = re.sub(r"[^\w ()+-]+", "_", stem)[:MOST_LETTERS].strip()
        found[f"{number:02}-{safe}" if safe else digest] = digest
    return found


def folder(job: Job, result: ItemResult) -> str:
    """`0003-conv1_2-kernel18`, `0004-conv1_2-kernel18-lrp`."""
    parts = [f"{result.index:04}", job.request.layer]
    if result.kernel is not None:
        parts.append(f"kernel{result.kernel}")
    if result.method != "suppression":
        parts.append(result.method)
    return "-".join(parts)
