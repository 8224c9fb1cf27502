"""`GET /jobs/{id}/artifacts/{item}/{name}`: the files of a result. `GET /jobs/{id}/bundle.zip`: all of them.

The URL names content that never changes, so caches may keep it for ever. Pictures that only show a result are drawn
when they are first asked for, and kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import BytesIO
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Header, Response
from fastapi.responses import StreamingResponse
from zipstream import ZipStream

from api import figures
from api.comparison import comparable, made
from api.drawing import draw
from api.evidence import blob, evidence
from api.routes.jobs import Own
from api.services import Opened, Services
from shared import images
from shared.errors import ArtifactNotFound, RangeNotSatisfiable
from shared.jobs import ARTIFACTS, JOB_ARTIFACTS, MEDIA_TYPES, drawn_artifacts
from shared.schemas import ExplainRequest, ItemResult, Job, variants

router = APIRouter(prefix="/jobs", tags=["jobs"])

CACHE = "private, max-age=31536000, immutable"
FORMS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
SIDE_BY_SIDE = ("panel.png", "sweep.png")  # show what else there is of the same kernel and image
ONE_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
FILE: dict[str, Any] = {"type": "string", "format": "binary"}
HISTORY = {"columns": ["iteration", "preservation"], "rows": [[1, 0.0]]}
BYTES: dict[str, Any] = {  # generated clients go by the first of these
    "application/octet-stream": {"schema": FILE},
    "image/png": {"schema": FILE},
    "application/json": {"schema": {"type": "object"}, "example": HISTORY},
}
FILES: dict[int | str, dict[str, Any]] = {
    200: {"content": BYTES, "description": "The file."},
    206: {"content": BYTES, "description": "The part of it that `Range` asked for."},
    304: {"description": "The caller has it already."},
}
ZIP: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"application/zip": {"schema": FILE}},
        "description": "A ZIP file.",
    }
}


@router.get("/{job_id}/artifacts/{item}/{name}", response_class=Response, responses=FILES)
def get_artifact(  # noqa: PLR0913, PLR0917 - its headers
    job_id: Own,
    item: int,
    name: str,
    services: Opened,
    if_none_match: Annotated[str, Header()] = "",
    if_range: Annotated[str, Header()] = "",
    range: Annotated[str, Header(description="one range of bytes, `bytes=0-1023`")] = "",  # noqa: A002
) -> Response:
    """One file of one result; `ETag` is its SHA-256."""
    if name not in ARTIFACTS:
        raise ArtifactNotFound(f"no artifact is named {name}; names: {', '.join(ARTIFACTS)}")
    request, result, blobs = services.records.result(job_id, item)
    if not blobs:
        raise ArtifactNotFound(f"result {item} of job {job_id} has no artifacts: it {result.status}")
    data, final = _drawn(services, job_id, name, (request, result, blobs))
    cache = CACHE if final else "no-store"
    headers = {"ETag": f'"{blobs[name]}"', "Cache-Control": cache, "Accept-Ranges": "bytes"}
    if _matches(headers["ETag"], if_none_match):
        return Response(status_code=304, headers=headers)
    media_type = MEDIA_TYPES[name.rsplit(".", 1)[-1]]
    data = data or blob(services, blobs, name)
    if (wanted := _range(range, len(data))) and if_range in ("", headers["ETag"]):
        start, end = wanted
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        return Response(data[start:end], 206, media_type=media_type, headers=headers)
    return Response(data, media_type=media_type, headers=headers)


Found = tuple[ExplainRequest, ItemResult, dict[str, str]]


def _drawn(services: Services, job_id: str, name: str, found: Found) -> tuple[bytes | None, bool]:
    """The picture, where it had to be drawn now, and whether it will stay so; its digest is among the blobs then."""
    request, result, blobs = found
    drawn = name in drawn_artifacts(result.method)
    if name in blobs and (not drawn or services.store.has(blobs[name])):
        return None, True
    if not drawn:
        raise ArtifactNotFound(f"result {result.index} is of method {result.method}, which makes no {name}")
    final, siblings = True, [found]
    if name in SIDE_BY_SIDE and len(variants(request)) > 1:
        final, siblings = _siblings(services, job_id, found)
    with services.drawing:  # the original may be large
        if result.method == "activations":
            data = figures.thumbnails(np.load(BytesIO(blob(services, blobs, "activations.npz")))["thumbnails"], result)
        else:
            shown = [evidence(services, *one) for one in siblings]
            own = next(one for one in shown if one.result.index == result.index)
            data = draw(name, own, shown)
    blobs[name] = services.store.digest(data)
    if final:
        services.records.keep_drawn(job_id, result.index, name, blobs[name])
        services.store.put(data)
    return data, final


def _siblings(services: Services, job_id: str, found: Found) -> tuple[bool, list[Found]]:
    """Whether every method, α and β of this image and kernel has ended, and those that succeeded, in order."""
    request, result, _ = found
    job = services.records.job(job_id)
    first = result.index - result.index % len(variants(request))
    group = [one for one in job.results if first <= one.index < first + len(variants(request))]
    own = [services.records.result(job_id, one.index) for one in group if one.status == "succeeded"]
    return job.status.terminal or len(group) == len(variants(request)), own


def _matches(etag: str, condition: str) -> bool:
    return condition.strip() == "*" or etag in [tag.strip().removeprefix("W/") for tag in condition.split(",")]


def _range(text: str, size: int) -> tuple[int, int] | None:
    """(first byte, byte after the last); None where the whole is to be sent: no range, several, or no valid one.

    Raises:
        RangeNotSatisfiable: it begins behind the end.
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


@router.get("/{job_id}/bundle.zip", response_class=StreamingResponse, responses=ZIP)
def get_bundle(job_id: Own, services: Opened) -> StreamingResponse:
    """Everything that there is of the job so far: `job.json`, the images, a folder for each result. Streamed."""
    job = services.records.job(job_id)
    headers = {"Content-Disposition": f'attachment; filename="kernelscope-{job_id}.zip"', "Cache-Control": "no-store"}
    return StreamingResponse(_packed(services, job), media_type="application/zip", headers=headers)


def _packed(services: Services, job: Job) -> Iterator[bytes]:
    sheet = ZipStream()
    sheet.add(job.model_dump_json(indent=1), "job.json")
    for digest in dict.fromkeys(job.request.images):
        if data := services.store.get(digest):
            sheet.add(data, f"images/{digest}.{FORMS[images.form_of(data)]}")
            yield from sheet.all_files()
    if any(result.artifacts for result in job.results) and comparable(job):
        for name in JOB_ARTIFACTS:
            sheet.add(_compared(services, job.id, name), name)
            yield from sheet.all_files()
    for result in job.results:
        for name in result.artifacts:
            sheet.add(_lazily(services, job.id, result.index, name), f"{folder(job, result)}/{name}")
            yield from sheet.all_files()
    yield from sheet.finalize()


def _lazily(services: Services, job_id: str, index: int, name: str) -> Iterator[bytes]:
    found = services.records.result(job_id, index)
    data, _ = _drawn(services, job_id, name, found)
    yield data or blob(services, found[2], name)


def _compared(services: Services, job_id: str, name: str) -> Iterator[bytes]:
    yield made(services, job_id, name)[0]


def folder(job: Job, result: ItemResult) -> str:
    """`0003-conv1_2-kernel18`, `0004-conv1_2-kernel18-lrp`."""
    parts = [f"{result.index:04}", job.request.layer]
    if result.kernel is not None:
        parts.append(f"kernel{result.kernel}")
    if result.method != "suppression":
        parts.append(result.method)
    return "-".join(parts)
