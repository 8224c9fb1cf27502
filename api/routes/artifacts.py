"""`GET /jobs/{id}/artifacts/{item}/{name}`: immutable files; pictures are drawn when first asked for."""

from __future__ import annotations

from io import BytesIO
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Header, Response
from PIL import Image

from api import figures
from api.services import Access, Services
from shared import catalogue, images
from shared.errors import ArtifactNotFound
from shared.jobs import DRAWN_ARTIFACTS, MEDIA_TYPES, STORED_ARTIFACTS
from shared.schemas import ExplainRequest, ItemResult

router = APIRouter(prefix="/jobs", tags=["jobs"])

CACHE = "private, max-age=31536000, immutable"
FILES: dict[int | str, dict[str, Any]] = {
    200: {"content": {media: {} for media in sorted(set(MEDIA_TYPES.values()))}, "description": "The file."},
    304: {"description": "The caller has it already."},
}


@router.get("/{job_id}/artifacts/{item}/{name}", response_class=Response, responses=FILES)
def artifact(
    job_id: str, item: int, name: str, services: Access, if_none_match: Annotated[str, Header()] = ""
) -> Response:
    """One file of one result."""
    if name not in (*STORED_ARTIFACTS, *DRAWN_ARTIFACTS):
        raise ArtifactNotFound(f"no artifact is named {name}; names: {', '.join(STORED_ARTIFACTS + DRAWN_ARTIFACTS)}")
    request, result, blobs = services.records.result(job_id, item)
    if not blobs:
        raise ArtifactNotFound(f"result {item} of job {job_id} has no artifacts: it {result.status}")
    data: bytes | None = None
    if name not in blobs:
        data = figures.draw(name, _evidence(services, request, result, blobs))
        blobs[name] = services.store.digest(data)
        services.records.keep_drawn(job_id, item, name, blobs[name])
        services.store.put(data)
    etag = f'"{blobs[name]}"'
    headers = {"ETag": etag, "Cache-Control": CACHE}
    if etag in [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]:
        return Response(status_code=304, headers=headers)
    media_type = MEDIA_TYPES[name.rsplit(".", 1)[-1]]
    return Response(data or _blob(services, blobs, name), media_type=media_type, headers=headers)


def _evidence(
    services: Services, request: ExplainRequest, result: ItemResult, blobs: dict[str, str]
) -> figures.Evidence:
    original = services.store.get(result.image)
    if original is None:
        raise ArtifactNotFound(f"the original image {result.image} is gone, so its pictures cannot be drawn")
    maps = np.load(BytesIO(_blob(services, blobs, "maps.npz")))
    size = catalogue.network(request.model).input_size
    return figures.Evidence(
        request=request,
        result=result,
        original=images.resized(images.decode(original, services.max_pixels), size),
        optimized=Image.open(BytesIO(_blob(services, blobs, "optimized.png"))),
        x=np.load(BytesIO(_blob(services, blobs, "optimized.npy"))),
        before=maps["before"],
        after=maps["after"],
        others=maps["others"].tolist(),
        others_before=maps["others_before"],
        others_after=maps["others_after"],
    )


def _blob(services: Services, blobs: dict[str, str], name: str) -> bytes:
    data = services.store.get(blobs[name])
    if data is None:
        raise ArtifactNotFound(f"{name} is gone from the store")
    return data
