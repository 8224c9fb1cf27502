"""`/surveys`: what each kernel of some layers responds to in the images of a data set."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from io import StringIO

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from api.edge.access import CallerDep
from api.edge.body import BODY_ERRORS, read_object
from api.jobs.accept import LAYER_ERRORS, QUEUE_ERRORS
from api.jobs.responses import SubmitOptionsDep, respond
from api.openapi import body, example, file, json_content, refusals
from api.routes.caching import IMMUTABLE
from api.routes.examples import CREATED_AT, JOB_ID, QUEUED_JOB, WEIGHTS
from api.routes.explain import DONE
from api.routes.jobs import JOB_ERRORS
from api.services import Services, ServicesDep
from api.surveys import lifecycle
from api.surveys.crops import image_crop, optimized_crop
from api.surveys.explanations import request_explanations
from shared.catalogue import Layer
from shared.errors import (
    ArtifactNotFound,
    DataSetFull,
    DataSetNotFound,
    DrawingQueueFull,
    NetworkChanged,
    SilentKernel,
    SurveyNotFound,
    UnknownKernel,
)
from shared.schemas import ExplainKernels, Job, NewSurvey, Status, Survey
from shared.surveys.store import SurveyFacts
from shared.surveys.tally import TOP

router = APIRouter(prefix="/surveys", tags=["surveys"])

SURVEYED_LAYER_ERRORS = (SurveyNotFound, NetworkChanged, *LAYER_ERRORS)
CROP_ERRORS = (*SURVEYED_LAYER_ERRORS, ArtifactNotFound, DrawingQueueFull)
CSV = file("text/csv", "A CSV table.", {"type": "string"})
WEBP = file("image/webp", "A WebP picture.")

SURVEY_ID = "01a222303eba704f9d0af5282b32bbc2"
HERE = f"/surveys/{SURVEY_ID}"
CROP = f"{HERE}/layers/conv5_3/crops/17/6/8"
OPTIMIZED_CROP = f"{HERE}/layers/conv5_3/pictures/{JOB_ID}/0/6/8"
SURVEY = Survey(
    id=SURVEY_ID,
    dataset=JOB_ID,
    dataset_name="birds",
    model="vgg16",
    layers=["conv5_3"],
    images=1000,
    surveyed=1000,
    status=Status.SUCCEEDED,
    created_at=CREATED_AT,
    public=False,
    mine=True,
    weights=WEIGHTS.model_copy(update={"source": "vgg16.safetensors"}),
    links={"self": HERE, "csv": f"{HERE}/kernels.csv", "job": f"/jobs/{SURVEY_ID}"},
)
LAYER = Layer(
    name="conv5_3",
    node="features.29",
    kernels=512,
    height=14,
    width=14,
    receptive_field=196,
    stride=16,
    block="block 5",
)


@router.post(
    "",
    status_code=202,
    responses={
        **example(202, QUEUED_JOB),
        **example(200, QUEUED_JOB, **DONE),
        **refusals(DataSetNotFound, DataSetFull, *LAYER_ERRORS, *QUEUE_ERRORS, *BODY_ERRORS),
    },
    openapi_extra=body(json=json_content(NewSurvey, {"dataset": JOB_ID, "model": "vgg16", "layers": ["conv5_3"]})),
)
async def create_survey(
    request: Request, response: Response, services: ServicesDep, caller: CallerDep, options: SubmitOptionsDep
) -> Job:
    """Find the images of a data set that activate each kernel of some layers most.

    Runs as a job in the background, with one forward pass per image; the job's id is also the survey's. The survey is
    stored until it is deleted, even after its job has expired. Images added to the data set later are not part of it.
    """
    wanted = await read_object(request, NewSurvey, services.capacity)
    job, replayed = await run_in_threadpool(lifecycle.create, services, caller, wanted, options.idempotency_key)
    return await respond(services, caller, job, options, response, replayed=replayed)


@router.get("", responses={**example(200, [SURVEY.model_dump(mode="json")]), **refusals()})
def list_surveys(response: Response, services: ServicesDep, caller: CallerDep) -> list[Survey]:
    """Your surveys and the public ones, newest first."""
    response.headers["Cache-Control"] = "no-store"
    return [one.under(services.settings.root) for one in lifecycle.readable(services, caller.owner)]


@router.get("/{survey_id}", responses={**example(200, SURVEY), **refusals(SurveyNotFound)})
def get_survey(survey_id: str, response: Response, services: ServicesDep, caller: CallerDep) -> Survey:
    """A survey and its progress."""
    response.headers["Cache-Control"] = "no-store"
    facts = services.surveys.collection.facts(survey_id, caller.owner)
    return lifecycle.describe(services, survey_id, facts, caller.owner).under(services.settings.root)


@router.delete("/{survey_id}", status_code=204, responses=refusals(SurveyNotFound))
def delete_survey(survey_id: str, services: ServicesDep, caller: CallerDep) -> None:
    """Delete a survey of yours, and cancel it if it is running. The data set is kept."""
    lifecycle.delete(services, survey_id, caller.owner)


@router.get("/{survey_id}/kernels.csv", response_class=StreamingResponse, responses={**CSV, **refusals(SurveyNotFound)})
def get_survey_csv(survey_id: str, services: ServicesDep, caller: CallerDep) -> StreamingResponse:
    """A table of all kernels of all layers: how active each is, and the images that activate it most."""
    facts = services.surveys.collection.facts(survey_id, caller.owner)
    headers = {"Content-Disposition": f'attachment; filename="survey-{survey_id}.csv"', "Cache-Control": "no-store"}
    return StreamingResponse(_table(services, survey_id, facts), media_type="text/csv; charset=utf-8", headers=headers)


@router.post(
    "/{survey_id}/explanations",
    status_code=202,
    responses={
        **example(202, [QUEUED_JOB.model_dump(mode="json")]),
        **refusals(
            *(*SURVEYED_LAYER_ERRORS, DataSetNotFound, UnknownKernel, SilentKernel),
            *(*QUEUE_ERRORS, *BODY_ERRORS),
        ),
    },
    openapi_extra=body(json=json_content(ExplainKernels, {"layer": "conv5_3", "kernels": [12, 40]})),
)
async def explain_kernels(survey_id: str, request: Request, services: ServicesDep, caller: CallerDep) -> list[Job]:
    """Explain kernels on the images that activate them most: one job per kernel, with the method `evidence`.

    The same request returns the same jobs again. With `rivals` there is a second job for each kernel. 429 or 503 if the
    queue has no room for all of them: the jobs created so far run on, and the same request later creates the rest.
    """
    wanted = await read_object(request, ExplainKernels, services.capacity)
    return await run_in_threadpool(request_explanations, services, caller, survey_id, wanted)


@router.get(
    "/{survey_id}/layers/{layer}/crops/{image}/{row}/{column}",
    response_class=Response,
    responses={**WEBP, **refusals(*CROP_ERRORS, DataSetNotFound)},
)
async def get_crop(  # noqa: PLR0913, PLR0917 - its path
    survey_id: str, layer: str, image: int, row: int, column: int, services: ServicesDep, caller: CallerDep
) -> Response:
    """The receptive field of one position of a layer's maps in an image, by the image's number in the survey."""
    data = await image_crop(services, caller.owner, survey_id, layer, image, (row, column))
    return Response(data, media_type="image/webp", headers={"Cache-Control": IMMUTABLE})


@router.get(
    "/{survey_id}/layers/{layer}/pictures/{job}/{item}/{row}/{column}",
    response_class=Response,
    responses={**WEBP, **refusals(*CROP_ERRORS, *JOB_ERRORS)},
)
async def get_crop_of_picture(  # noqa: PLR0913, PLR0917 - its path
    survey_id: str,
    layer: str,
    job: str,
    item: int,
    row: int,
    column: int,
    services: ServicesDep,
    caller: CallerDep,
) -> Response:
    """The same crop of X̂, with its contrast stretched, by the job that made it and the index of the result."""
    data = await optimized_crop(services, caller.owner, survey_id, layer, (job, item), (row, column))
    return Response(data, media_type="image/webp", headers={"Cache-Control": IMMUTABLE})


def _table(services: Services, survey_id: str, facts: SurveyFacts) -> Iterator[str]:
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
    """A name as a spreadsheet's cell: text that begins like a formula would be run."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name
