"""`/kernels/{network}/{layer}/{kernel}`: a web page for each kernel and each layer, and the same as JSON."""

from __future__ import annotations

import gzip
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from api.edge.access import CallerDep, wants_page
from api.edge.site import route_path
from api.openapi import Responses, example, refusals
from api.routes.caching import IfNoneMatch
from api.routes.examples import IMAGE, JOB_ID
from api.routes.page import web_page
from api.routes.surveys import CROP, LAYER, OPTIMIZED_CROP, SURVEY, SURVEYED_LAYER_ERRORS
from api.services import ServicesDep
from api.surveys.kernels import LayerView
from shared.errors import UnknownKernel
from shared.schemas import (
    Bin,
    Explanation,
    KernelPage,
    KernelSummary,
    LayerKernels,
    Score,
    Similar,
    Status,
    TopImage,
)

router = APIRouter(prefix="/kernels", tags=["surveys"])

SurveyId = Annotated[
    str | None,
    Query(
        max_length=64,
        description="the survey; by default the newest complete one of this layer that you may read",
    ),
]
HEADERS = {"Cache-Control": "no-store", "Vary": "Accept, Accept-Encoding"}
COMPRESSED_BYTES = 10_000  # a longer response is compressed

ACTIVITY = {"mean": 0.11, "max": 9.75, "active": 0.04, "active_images": 0.31}
LAYER_KERNELS = LayerKernels(
    survey=SURVEY,
    surveys=[SURVEY],
    layer=LAYER,
    kernels=[KernelSummary(kernel=12, **ACTIVITY, crop=CROP, picture=OPTIMIZED_CROP, consistency=0.81, colour=0.2)],
)
TOP_IMAGE = TopImage(
    rank=0,
    image=IMAGE,
    name="birds/brambling.jpg",
    activation=9.75,
    row=6,
    column=8,
    box=(38, 6, 224, 202),
    crop=CROP,
    picture=OPTIMIZED_CROP,
    whole=f"/jobs/{JOB_ID}/artifacts/0/panel.png",
    ssim=0.98,
)
EXPLANATION = Explanation(
    job=JOB_ID,
    status=Status.SUCCEEDED,
    method="evidence",
    effort="quick",
    made=9,
    of=9,
    consistency=Score(value=0.81, error=0.03),
    colour=Score(value=0.2, error=0.04),
    links={"self": f"/jobs/{JOB_ID}", "events": f"/jobs/{JOB_ID}/events", "retry": f"/jobs/{JOB_ID}/retry"},
)
KERNEL_PAGE = KernelPage(
    network="vgg16",
    layer=LAYER,
    kernel=12,
    survey=SURVEY,
    surveys=[SURVEY],
    **ACTIVITY,
    histogram=[Bin(start=0, end=0, images=690), Bin(start=8, end=9.51, images=310)],
    top=[TOP_IMAGE],
    similar=[Similar(kernel=40, correlation=0.62, crop=CROP)],
    explanation=EXPLANATION,
)


def _page_or(value: KernelPage | LayerKernels) -> Responses:
    """A web page, or this as JSON."""
    json = example(200, value)[200]["content"]
    return {200: {"content": {"text/html": {"schema": {"type": "string"}}, **json}, "description": "HTML or JSON."}}


async def _layer_view(
    network: str,
    layer: str,
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    survey: SurveyId = None,
) -> LayerView | None:
    """The layer as the caller sees it; None where a browser requests the page, which fetches the JSON itself."""
    if wants_page(request, route_path(request.scope)):
        return None
    return await run_in_threadpool(LayerView, services, caller.owner, network, layer, survey)


@router.get(
    "/{network}/{layer}",
    response_model=LayerKernels,
    responses={**_page_or(LAYER_KERNELS), **refusals(*SURVEYED_LAYER_ERRORS)},
)
async def get_layer_kernels(
    view: Annotated[LayerView | None, Depends(_layer_view)],
    request: Request,
    services: ServicesDep,
    if_none_match: IfNoneMatch = "",
) -> Response:
    """All kernels of a layer: how active each is, and a crop of the image that activates it most."""
    if view is None:
        return web_page("layer.html", if_none_match)
    found = await run_in_threadpool(view.kernels)
    return _json(found.under(services.settings.root), request)


@router.get(
    "/{network}/{layer}/{kernel}",
    response_model=KernelPage,
    responses={**_page_or(KERNEL_PAGE), **refusals(*SURVEYED_LAYER_ERRORS, UnknownKernel)},
)
async def get_kernel(
    kernel: int,
    view: Annotated[LayerView | None, Depends(_layer_view)],
    request: Request,
    services: ServicesDep,
    if_none_match: IfNoneMatch = "",
) -> Response:
    """One kernel: the images that activate it most, the X̂ of those that were explained, and its statistics."""
    if view is None:
        return web_page("kernel.html", if_none_match)
    found = await run_in_threadpool(view.kernel, kernel)
    return _json(found.under(services.settings.root), request)


def _json(found: KernelPage | LayerKernels, request: Request) -> Response:
    """A JSON response, compressed if the client accepts it: a layer of 2,048 kernels is 500 kB, or 30 kB compressed."""
    data, headers = found.model_dump_json().encode(), dict(HEADERS)
    if len(data) >= COMPRESSED_BYTES and "gzip" in request.headers.get("accept-encoding", ""):
        data, headers["Content-Encoding"] = gzip.compress(data, compresslevel=5), "gzip"
    return Response(data, media_type="application/json", headers=headers)
