"""`/datasets`: many images under one name."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BeforeValidator, Field

from api.edge.access import Asking
from api.edge.admission import caller_of, verified
from api.edge.body import received_files, received_object
from api.services import Opened
from shared.archives import shown
from shared.errors import UnsupportedImage, UnusableImage
from shared.schemas import AddedImages, DataSet, DataSetImage, DataSetImages, NewDataSet, number

router = APIRouter(prefix="/datasets", tags=["datasets"])


@router.post("", status_code=201)
async def create_dataset(request: Request, response: Response, services: Opened, caller: Asking) -> DataSet:
    """An empty data set, to which images are then added. It is kept until it is deleted."""
    wanted = await received_object(request, NewDataSet, services.admission)
    made = await run_in_threadpool(services.datasets.create, caller.owner, wanted.name)
    made = made.under(services.settings.root)
    response.headers["Location"] = made.links["self"]
    return made


@router.get("")
def list_datasets(response: Response, services: Opened, caller: Asking) -> list[DataSet]:
    """Your data sets and those that are everybody's, newest first."""
    response.headers["Cache-Control"] = "no-store"
    return [one.under(services.settings.root) for one in services.datasets.all(caller.owner)]


@router.get("/{dataset_id}")
def get_dataset(dataset_id: str, response: Response, services: Opened, caller: Asking) -> DataSet:
    """A data set: how many images it has, and which files were not taken."""
    response.headers["Cache-Control"] = "no-store"
    return services.datasets.get(dataset_id, caller.owner).under(services.settings.root)


@router.get("/{dataset_id}/images")
def get_dataset_images(
    dataset_id: str,
    response: Response,
    services: Opened,
    caller: Asking,
    limit: Annotated[
        int, Field(ge=1, le=1000), BeforeValidator(number), Query(description="images on a page at most")
    ] = 100,
    cursor: Annotated[
        str | None, Query(max_length=20, pattern=r"^\d{1,9}$", description="`next_cursor` of the page before")
    ] = None,
) -> DataSetImages:
    """The images of a data set by name and digest, in the order in which they came."""
    found, start = services.datasets.images(dataset_id, caller.owner), int(cursor or 0)
    response.headers["Cache-Control"] = "no-store"
    page = [DataSetImage(name=name, sha256=digest) for digest, name in found[start : start + limit]]
    return DataSetImages(images=page, next_cursor=str(start + limit) if start + limit < len(found) else None)


@router.post("/{dataset_id}/images")
async def add_images(dataset_id: str, request: Request, services: Opened, caller: Asking) -> AddedImages:
    """Add images: a form with files as `image`.

    What is no image that can be read is left out and listed with the reason. The same image is kept once, and the same
    request may be sent again. A large data set is sent in several requests, each as large as a body may be.
    """
    known = await run_in_threadpool(services.datasets.open, dataset_id, caller.owner)
    async with received_files(request, services.admission) as files:
        for name, data in files:
            one = shown(name)
            try:
                await verified(services.admission, caller_of(request), data, services.max_pixels)
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


@router.delete("/{dataset_id}", status_code=204)
def delete_dataset(dataset_id: str, services: Opened, caller: Asking) -> None:
    """Delete a data set of yours, with its images."""
    services.datasets.remove(dataset_id, caller.owner)
