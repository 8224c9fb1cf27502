"""`/kernels/{network}/{layer}/{kernel}`: a page for each kernel and each layer, and the same as JSON."""

from __future__ import annotations

import gzip
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from api.edge.access import Asking, page_wanted
from api.edge.site import route
from api.routes.page import page
from api.services import Opened
from api.surveys.kernels import View
from shared.surveys.forms import KernelPage, LayerKernels

router = APIRouter(prefix="/kernels", tags=["surveys"])

Chosen = Annotated[
    str | None,
    Query(
        max_length=64,
        description="which survey; unless given the newest that has looked at all its images, of those that you may "
        "read and that have the layer",
    ),
]
HTML: dict[int | str, dict[str, Any]] = {200: {"content": {"text/html": {"schema": {"type": "string"}}}}}
IfNoneMatch = Annotated[str, Header()]
HEADERS = {"Cache-Control": "no-store", "Vary": "Accept, Accept-Encoding"}
COMPRESSED_BYTES = 10_000


async def _looking(
    network: str, layer: str, request: Request, services: Opened, caller: Asking, survey: Chosen = None
) -> View | None:
    """What the caller looks at; None where a browser wants the page, which asks for the rest itself."""
    if page_wanted(request, route(request.scope)):
        return None
    return await run_in_threadpool(View, services, caller.owner, network, layer, survey)


@router.get("/{network}/{layer}", response_model=LayerKernels, responses=HTML)
async def get_layer_kernels(
    view: Annotated[View | None, Depends(_looking)], request: Request, services: Opened, if_none_match: IfNoneMatch = ""
) -> Response:
    """All kernels of a layer: how active each is, and the first thing that it sees."""
    if view is None:
        return page("layer.html", if_none_match)
    found = await run_in_threadpool(view.kernels)
    return _json(found.under(services.settings.root), request)


@router.get("/{network}/{layer}/{kernel}", response_model=KernelPage, responses=HTML)
async def get_kernel(
    kernel: int,
    view: Annotated[View | None, Depends(_looking)],
    request: Request,
    services: Opened,
    if_none_match: IfNoneMatch = "",
) -> Response:
    """What is known of a kernel: the images that activate it most, the X̂ that were made of them, and its numbers."""
    if view is None:
        return page("kernel.html", if_none_match)
    found = await run_in_threadpool(view.kernel, kernel)
    return _json(found.under(services.settings.root), request)


def _json(found: KernelPage | LayerKernels, request: Request) -> Response:
    """Compressed where the caller takes that: a layer of 2,048 kernels is half a megabyte, and 30 kB so."""
    data, headers = found.model_dump_json().encode(), dict(HEADERS)
    if len(data) >= COMPRESSED_BYTES and "gzip" in request.headers.get("accept-encoding", ""):
        data, headers["Content-Encoding"] = gzip.compress(data, compresslevel=5), "gzip"
    return Response(data, media_type="application/json", headers=headers)
