"""What `/openapi.json` says of surveys and kernels: their errors, and an example of each answer and body."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel

from shared import errors
from shared.catalogue import Layer
from shared.errors import KernelscopeError
from shared.schemas import Status, WeightsUsed
from shared.surveys.forms import (
    Bin,
    ExplainKernels,
    Explanation,
    KernelPage,
    KernelSummary,
    LayerKernels,
    NewSurvey,
    Score,
    Similar,
    Survey,
    TopImage,
)

BODIES: tuple[type[BaseModel], ...] = (NewSurvey, ExplainKernels)
SURVEY = "01a222303eba704f9d0af5282b32bbc2"
DATASET = "944165909aaf421dab8c26d340c123cc"
IMAGE = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
WEIGHTS = WeightsUsed(
    source="vgg16.safetensors", sha256="c82bec0ca9bb2a5bb1ccb4e05b2dd5d1a38d6b1e0f2b9a0b9fd4c1b2b6a3a0d1"
)

NAMED = (errors.UnknownModel, errors.UnknownLayer)
QUEUED = (
    errors.ModelUnavailable,
    errors.LayerNotCovered,
    errors.IdempotencyConflict,
    errors.WebhookRefused,
    errors.QuotaExceeded,
    errors.QueueFull,
)
SENT = (
    errors.MalformedBody,
    errors.UnsupportedContentType,
    errors.BodyTooLarge,
    errors.RequestTimeout,
    errors.ServerBusy,
)
KERNEL = (errors.SurveyNotFound, errors.NetworkChanged, *NAMED)
CROP = (*KERNEL, errors.ArtifactNotFound, errors.DrawingQueueFull)
ERRORS: dict[str, tuple[type[KernelscopeError], ...]] = {
    "post /surveys": (errors.DataSetNotFound, errors.DataSetFull, *NAMED, *QUEUED, *SENT),
    "get /surveys/{survey_id}": (errors.SurveyNotFound,),
    "delete /surveys/{survey_id}": (errors.SurveyNotFound,),
    "get /surveys/{survey_id}/kernels.csv": (errors.SurveyNotFound,),
    "post /surveys/{survey_id}/explanations": (
        *KERNEL,
        errors.DataSetNotFound,
        errors.UnknownKernel,
        errors.SilentKernel,
        *QUEUED,
        *SENT,
    ),
    "get /surveys/{survey_id}/layers/{layer}/crops/{image}/{row}/{column}": (*CROP, errors.DataSetNotFound),
    "get /surveys/{survey_id}/layers/{layer}/pictures/{job}/{item}/{row}/{column}": (
        *CROP,
        errors.JobNotFound,
        errors.JobExpired,
    ),
    "get /kernels/{network}/{layer}": KERNEL,
    "get /kernels/{network}/{layer}/{kernel}": (*KERNEL, errors.UnknownKernel),
}


def examples(queued: Any) -> dict[str, dict[int, Any]]:
    """What each route answers when all is well; a job that waits is given."""
    here = f"/surveys/{SURVEY}"
    survey = Survey(
        id=SURVEY,
        dataset=DATASET,
        dataset_name="birds",
        model="vgg16",
        layers=["conv5_3"],
        images=1000,
        surveyed=1000,
        status=Status.SUCCEEDED,
        created_at=datetime(2026, 11, 25, 9, 30, tzinfo=UTC),
        public=False,
        mine=True,
        weights=WEIGHTS,
        links={"self": here, "csv": f"{here}/kernels.csv", "job": f"/jobs/{SURVEY}"},
    )
    layer = Layer(
        name="conv5_3",
        node="features.29",
        kernels=512,
        height=14,
        width=14,
        receptive_field=196,
        stride=16,
        block="block 5",
    )
    crop, picture = f"{here}/layers/conv5_3/crops/17/6/8", f"{here}/layers/conv5_3/pictures/{DATASET}/0/6/8"
    activity = {"mean": 0.11, "max": 9.75, "active": 0.04, "active_images": 0.31}
    summary = KernelSummary(kernel=12, **activity, crop=crop, picture=picture, consistency=0.81, colour=0.2)
    top = TopImage(
        rank=0,
        image=IMAGE,
        name="birds/brambling.jpg",
        activation=9.75,
        row=6,
        column=8,
        box=(38, 6, 224, 202),
        crop=crop,
        picture=picture,
        whole=f"/jobs/{DATASET}/artifacts/0/panel.png",
        ssim=0.98,
    )
    explanation = Explanation(
        job=DATASET,
        status=Status.SUCCEEDED,
        method="evidence",
        effort="quick",
        made=9,
        of=9,
        consistency=Score(value=0.81, error=0.03),
        colour=Score(value=0.2, error=0.04),
        links={"self": f"/jobs/{DATASET}", "events": f"/jobs/{DATASET}/events", "retry": f"/jobs/{DATASET}/retry"},
    )
    page = KernelPage(
        network="vgg16",
        layer=layer,
        kernel=12,
        survey=survey,
        surveys=[survey],
        **activity,
        histogram=[Bin(start=0, end=0, images=690), Bin(start=8, end=9.51, images=310)],
        top=[top],
        similar=[Similar(kernel=40, correlation=0.62, crop=crop)],
        explanation=explanation,
    )
    kernels = LayerKernels(survey=survey, surveys=[survey], layer=layer, kernels=[summary])
    told = survey.model_dump(mode="json")
    return {
        "post /surveys": {202: queued, 200: queued},
        "get /surveys": {200: [told]},
        "get /surveys/{survey_id}": {200: told},
        "post /surveys/{survey_id}/explanations": {202: [queued.model_dump(mode="json")]},
        "get /kernels/{network}/{layer}": {200: kernels.model_dump(mode="json")},
        "get /kernels/{network}/{layer}/{kernel}": {200: page.model_dump(mode="json")},
    }


BODY_EXAMPLES: dict[str, dict[str, Any]] = {
    "post /surveys": {"dataset": DATASET, "model": "vgg16", "layers": ["conv5_3"]},
    "post /surveys/{survey_id}/explanations": {"layer": "conv5_3", "kernels": [12, 40]},
}
