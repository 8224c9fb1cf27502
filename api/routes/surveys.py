"""`/surveys`: what every kernel of some layers responds to in the images of a data set."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from io import StringIO
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from api.edge.access import Asking
from api.edge.body import received_object
from api.jobs.accept import Wished, told
from api.services import Opened, Services
from api.surveys import start
from api.surveys.crops import crop_of, picture_of
from api.surveys.explanations import explanations
from shared.schemas import Job
from shared.surveys.forms import ExplainKernels, NewSurvey, Survey
from shared.surveys.store import Facts
from shared.surveys.tally import TOP

router = APIRouter(prefix="/surveys", tags=["surveys"])

CACHE = "private, max-age=31536000, immutable"
FILE: dict[str, Any] = {"type": "string", "format": "binary"}
CSV: dict[int | str, dict[str, Any]] = {200: {"content": {"text/csv": {"schema": {"type": "string"}}}}}
WEBP: dict[int | str, dict[str, Any]] = {200: {"content": {"image/webp": {"schema": FILE}}}}


@router.post("", status_code=202)
async def create_survey(request: Request, response: Response, services: Opened, caller: Asking, wishes: Wished) -> Job:
    """Look at every image of a data set with every kernel of some layers.

    One forward pass an image, as a job in the background; its id is the survey's. The survey stays when the job has
    expired, until it is deleted. Images that are added to the data set later are not in it.
    """
    body = await received_object(request, NewSurvey, services.admission)
    job, replayed = await run_in_threadpool(start.started, services, caller, body, wishes.idempotency_key)
    return await told(services, caller, job, wishes, response, replayed=replayed)


@router.get("")
def list_surveys(response: Response, services: Opened, caller: Asking) -> list[Survey]:
    """Your surveys and those that are everybody's, newest first."""
    response.headers["Cache-Control"] = "no-store"
    return [one.under(services.settings.root) for one in start.surveys_of(services, caller.owner)]


@router.get("/{survey_id}")
def get_survey(survey_id: str, response: Response, services: Opened, caller: Asking) -> Survey:
    """A survey, and how far it is."""
    response.headers["Cache-Control"] = "no-store"
    facts = services.surveys.shelf.facts(survey_id, caller.owner)
    return start.described(services, survey_id, facts, caller.owner).under(services.settings.root)


@router.delete("/{survey_id}", status_code=204)
def delete_survey(survey_id: str, services: Opened, caller: Asking) -> None:
    """Delete a survey of yours; one that runs is cancelled. The data set stays."""
    start.removed(services, survey_id, caller.owner)


@router.get("/{survey_id}/kernels.csv", response_class=StreamingResponse, responses=CSV)
def get_survey_csv(survey_id: str, services: Opened, caller: Asking) -> StreamingResponse:
    """All kernels of all layers as a table: how active each is, and the images that activate it most."""
    facts = services.surveys.shelf.facts(survey_id, caller.owner)
    headers = {"Content-Disposition": f'attachment; filename="survey-{survey_id}.csv"', "Cache-Control": "no-store"}
    return StreamingResponse(_table(services, survey_id, facts), media_type="text/csv; charset=utf-8", headers=headers)


@router.post("/{survey_id}/explanations", status_code=202)
async def explain_kernels(survey_id: str, request: Request, services: Opened, caller: Asking) -> list[Job]:
    """Explain kernels on the images that activate each most: a job for each kernel, of method `evidence`.

    The same request again gives the same jobs. With `rivals` there is a second job for each kernel. 429 or 503 where
    the queue has no room for all: what was begun goes on, and the same request later adds the rest.
    """
    body = await received_object(request, ExplainKernels, services.admission)
    return await run_in_threadpool(explanations, services, caller, survey_id, body)


@router.get("/{survey_id}/layers/{layer}/crops/{image}/{row}/{column}", response_class=Response, responses=WEBP)
async def get_crop(  # noqa: PLR0913, PLR0917 - its path
    survey_id: str, layer: str, image: int, row: int, column: int, services: Opened, caller: Asking
) -> Response:
    """What one position of a layer's maps sees of an image, by the image's number in the survey."""
    data = await crop_of(services, caller.owner, survey_id, layer, image, (row, column))
    return Response(data, media_type="image/webp", headers={"Cache-Control": CACHE})


@router.get("/{survey_id}/layers/{layer}/pictures/{job}/{item}/{row}/{column}", response_class=Response, responses=WEBP)
async def get_crop_of_picture(  # noqa: PLR0913, PLR0917 - its path
    survey_id: str, layer: str, job: str, item: int, row: int, column: int, services: Opened, caller: Asking
) -> Response:
    """The same part of X̂, its contrast stretched, by the job that made it and the result's index."""
    data = await picture_of(services, caller.owner, survey_id, layer, (job, item), (row, column))
    return Response(data, media_type="image/webp", headers={"Cache-Control": CACHE})


def _table(services: Services, survey_id: str, facts: Facts) -> Iterator[str]:
    text = StringIO()
    writer = csv.writer(text)
    places = [f"top_{rank}_{what}" for rank in range(1, TOP + 1) for what in ("image", "activation")]
    writer.writerow(["layer", "kernel", "mean", "max", "active", "active_images", *places])
    names: dict[int, str] = {}
    for layer in facts.layers:
        whole = services.surveys.layer(survey_id, layer)
        for number in sorted({*whole.tally.top.ravel().tolist()} - {*names, -1} if whole else ()):
            names[number] = services.surveys.image(survey_id, number)[1]
        for kernel in range(len(whole.tally.mean) if whole else 0):
            assert whole is not None
            one = whole.tally.kernel(kernel)
            top = []
            for number, peak, _ in one.top:
                top += [_safe(names[number]), f"{peak:.6g}"]
            numbers = (f"{value:.6g}" for value in (one.mean, one.max, one.active, one.active_images))
            writer.writerow([layer, kernel, *numbers, *top, *[""] * (len(places) - len(top))])
        yield text.getvalue()
        text.seek(0)
        text.truncate()


def _safe(name: str) -> str:
    """Spreadsheets run what begins like a formula."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name
