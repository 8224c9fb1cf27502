"""`/datasets`: collections of images under one name."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BeforeValidator, Field

from api.edge.access import CallerDep
from api.edge.body import BODY_ERRORS, read_files, read_object
from api.edge.capacity import caller_key, check_image
from api.openapi import UPLOAD, body, example, json_content, refusals
from api.routes.examples import CREATED_AT, IMAGE, JOB_ID
from api.routes.paging import IndexCursor
from api.services import ServicesDep
from shared.archives import shown
from shared.errors import DataSetFull, DataSetNotFound, UnsupportedImage, UnusableImage
from shared.schemas import AddedImages, DataSet, DataSetImage, DataSetImages, NewDataSet, number

router = APIRouter(prefix="/datasets", tags=["datasets"])

REFUSED = [{"name": "birds/readme.txt", "reason": "not an image that can be read; PNG, JPEG and WebP are accepted"}]
BIRD = {"name": "birds/brambling.jpg", "sha256": IMAGE}
BIRDS = {
    "id": JOB_ID,
    "name": "birds",
    "created_at": CREATED_AT.isoformat(),
    "public": False,
    "mine": True,
    "images": 1,
    "refused": 1,
    "odd": REFUSED,
    "links": {"self": f"/datasets/{JOB_ID}", "images": f"/datasets/{JOB_ID}/images"},
}
FILES: dict[str, Any] = {
    "schema": {
        "type": "object",
        "required": ["image"],
        "properties": {
            "image": {
                "type": "array",
                "minItems": 1,
                "items": UPLOAD,
            }
        },
        "additionalProperties": False,
    }
}


@router.post(
    "",
    status_code=201,
    responses={
        **example(201, {**BIRDS, "images": 0, "refused": 0, "odd": []}),
        **refusals(DataSetFull, *BODY_ERRORS),
    },
    openapi_extra=body(json=json_content(NewDataSet, {"name": "birds"})),
)
async def create_dataset(request: Request, response: Response, services: ServicesDep, caller: CallerDep) -> DataSet:
    """Create an empty data set, to which images are then added. It is stored until it is deleted."""
    wanted = await read_object(request, NewDataSet, services.capacity)
    made = await run_in_threadpool(services.datasets.create, caller.owner, wanted.name)
    made = made.under(services.settings.root)
    response.headers["Location"] = made.links["self"]
    return made


@router.get("", responses={**example(200, [BIRDS]), **refusals()})
def list_datasets(response: Response, services: ServicesDep, caller: CallerDep) -> list[DataSet]:
    """Your data sets and the public ones, newest first."""
    response.headers["Cache-Control"] = "no-store"
    return [one.under(services.settings.root) for one in services.datasets.all(caller.owner)]


@router.get("/{dataset_id}", responses={**example(200, BIRDS), **refusals(DataSetNotFound)})
def get_dataset(dataset_id: str, response: Response, services: ServicesDep, caller: CallerDep) -> DataSet:
    """A data set: its number of images, and the files that were refused."""
    response.headers["Cache-Control"] = "no-store"
    return services.datasets.get(dataset_id, caller.owner).under(services.settings.root)


@router.get(
    "/{dataset_id}/images",
    responses={**example(200, {"images": [BIRD], "next_cursor": None}), **refusals(DataSetNotFound)},
)
def get_dataset_images(
    dataset_id: str,
    response: Response,
    services: ServicesDep,
    caller: CallerDep,
    limit: Annotated[
        int, Field(ge=1, le=1000), BeforeValidator(number), Query(description="maximum number of images per page")
    ] = 100,
    cursor: IndexCursor = None,
) -> DataSetImages:
    """The images of a data set by name and digest, in the order in which they were added."""
    found, start = services.datasets.images(dataset_id, caller.owner), int(cursor or 0)
    response.headers["Cache-Control"] = "no-store"
    page = [DataSetImage(name=name, sha256=digest) for digest, name in found[start : start + limit]]
    return DataSetImages(images=page, next_cursor=str(start + limit) if start + limit < len(found) else None)


@router.post(
    "/{dataset_id}/images",
    responses={
        **example(200, {"added": [BIRD], "odd": REFUSED, "dataset": BIRDS}),
        **refusals(DataSetNotFound, DataSetFull, *BODY_ERRORS),
    },
    openapi_extra=body(form=FILES),
)
async def add_images(dataset_id: str, request: Request, services: ServicesDep, caller: CallerDep) -> AddedImages:
    """Add images: a form with files as `image`.

    Files that are not readable images are left out and listed with the reason. An image that is already in the data set
    is stored once, so a request may safely be repeated. Send a large data set in several requests, each within the
    limit on the size of a body.
    """
    known = await run_in_threadpool(services.datasets.open, dataset_id, caller.owner)
    async with read_files(request, services.capacity) as files:
        for name, data in files:
            one = shown(name)
            try:
                await check_image(services.capacity, caller_key(request), data, services.max_pixels)
            except (UnsupportedImage, UnusableImage) as error:
                known.refuse(one, error.detail)
            else:
                await run_in_threadpool(known.take, one, data)
    dataset = await run_in_threadpool(known.close)
    return AddedImages(
        added=[DataSetImage(name=name, sha256=digest) for name, digest in known.sent],
        odd=known.odd,
        dataset=dataset.under(services.settings.root),
    )


@router.delete("/{dataset_id}", status_code=204, responses=refusals(DataSetNotFound))
def delete_dataset(dataset_id: str, services: ServicesDep, caller: CallerDep) -> None:
    """Delete a data set of yours, with its images."""
    services.datasets.remove(dataset_id, caller.owner)
