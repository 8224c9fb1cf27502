"""A server with one survey of one layer and finished jobs, for tests of clients."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx
from PIL import Image

from shared.catalogue import Layer, LayerInfo, ModelInfo, networks
from shared.errors import InvalidRequest, KernelscopeError, SurveyNotFound
from shared.schemas import (
    ActiveKernel,
    Bin,
    DataSet,
    ExplainRequest,
    Explanation,
    ItemResult,
    Job,
    KernelPage,
    KernelSummary,
    LayerKernels,
    Losses,
    Metrics,
    Progress,
    Score,
    Similar,
    Status,
    Survey,
    TopImage,
    WeightsUsed,
)
from tests.conftest import encoded, png

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
DATASET, SURVEY, JOB, EXPLAINING = (letter * 32 for letter in "abcd")
HOSTILE = '"><script>alert(1)</script> http://elsewhere/x.png'
KERNELS = 12
SILENT = 9  # of them, and without any image
LAYER = networks()["vgg_mini"].layer("conv2_2").model_copy(update={"kernels": KERNELS})


@dataclass
class SurveyServer:
    """Answers requests, and keeps them.

    Args:
        explained: whether X̂ are made.
        status: of the survey and of every job, once it is asked for: at first each runs.
        gone: parts of paths that are not found.
    """

    explained: bool = False
    status: Status = Status.SUCCEEDED
    gone: set[str] = field(default_factory=set)
    requests: list[httpx.Request] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """The response."""
        self.requests.append(request)
        try:
            return self._answer(request)
        except KernelscopeError as error:
            return httpx.Response(error.status, json=error.problem().model_dump())

    def _answer(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if any(part in path for part in self.gone):
            raise SurveyNotFound(f"{path} is gone; `POST /surveys` makes a survey")
        for pattern, answer in ROUTES:
            if found := re.fullmatch(pattern, f"{request.method} {path}"):
                return answer(self, request, *found.groups())
        raise SurveyNotFound(f"nothing is at {path}; `POST /surveys` makes a survey")

    def explain(self, request: httpx.Request) -> httpx.Response:
        """A job, or an error for a layer that does not exist."""
        if b"conv9_9" in request.content:
            raise InvalidRequest("layer conv9_9 does not exist; layers: conv1_1, conv2_2")
        return reported(self.job(EXPLAINING, Status.RUNNING), 202)

    def explain_kernels(self, request: httpx.Request, _: str) -> httpx.Response:
        """A job for each kernel, which is finished immediately."""
        self.explained = True
        return reported([self.job(EXPLAINING, Status.RUNNING) for _ in json.loads(request.content)["kernels"]], 202)

    def events(self, _: httpx.Request) -> httpx.Response:
        """The event stream of any job."""
        text = 'event: progress\ndata: {"completed": 1, "total": 1, "fraction": 0.5}\n\n'
        text += f'event: status\ndata: {{"status": "{self.status}"}}\n\n'
        return httpx.Response(200, text=text, headers={"Content-Type": "text/event-stream"})

    @property
    def survey(self) -> Survey:
        """The only one."""
        return survey(
            dataset_name=f"birds {HOSTILE}",
            model="vgg_mini",
            layers=["conv2_1", "conv2_2"],
            surveyed=1000 if self.status is Status.SUCCEEDED else 512,
            status=self.status,
            weights=WeightsUsed(source="vgg_mini.safetensors", sha256="0" * 64),
        )

    def layer(self) -> LayerKernels:
        """All kernels: the higher its number, the less active."""
        kernels = [
            KernelSummary(
                kernel=one,
                mean=1 / (1 + one),
                max=0 if one == SILENT else 5.0 - one / 10,
                active=0.1,
                active_images=0.5,
                crop=None if one == SILENT else _url(one, "crops", 0),
                picture=_url(one, "pictures", 0) if self.explained and one != SILENT else None,
            )
            for one in range(KERNELS)
        ]
        return LayerKernels(survey=self.survey, surveys=[self.survey], layer=LAYER, kernels=kernels)

    def kernel(self, kernel: int) -> KernelPage:
        """With two images, unless it is the silent one."""
        summary = self.layer().kernels[kernel]
        return kernel_page(
            self.survey,
            LAYER,
            kernel,
            **summary.model_dump(include={"mean", "max", "active", "active_images"}),
            histogram=[
                Bin(start=0, end=0.5, images=500),
                Bin(start=0.5, end=4, images=400),
                Bin(start=4, end=None, images=100),
            ],
            top=[] if kernel == SILENT else [self._top(kernel, rank) for rank in range(2)],
            similar=[
                Similar(kernel=(kernel + 1) % SILENT, correlation=0.9, crop=_url((kernel + 1) % SILENT, "crops", 0))
            ],
            explanation=explanation(
                made=1, of=2, consistency=Score(value=0.62, error=0.03), colour=Score(value=0.1, error=None)
            )
            if self.explained
            else None,
        )

    def _top(self, kernel: int, rank: int) -> TopImage:
        return TopImage(
            rank=rank,
            image="e" * 64,
            name=f"{rank} {HOSTILE}",
            activation=5.0 - rank,
            row=3,
            column=4,
            box=(0, 0, 24, 24),
            crop=_url(kernel, "crops", rank),
            picture=_url(kernel, "pictures", rank) if self.explained and rank == 0 else None,
            ssim=0.98 if self.explained and rank == 0 else None,
            error=f"silent {HOSTILE}" if self.explained and rank == 1 else None,
        )

    def job(self, job_id: str, status: Status | None = None) -> Job:
        """With a result unless it is a survey's."""
        status = status or self.status
        methods = {SURVEY: ["survey"], JOB: ["activations"]}.get(job_id, ["suppression"])
        request = ExplainRequest.model_validate(
            {"model": "vgg_mini", "layer": "conv2_2", "kernels": [3], "methods": methods, "images": ["e" * 64]}
        )
        surveys = methods == ["survey"]
        share = 1.0 if status is Status.SUCCEEDED else 0.5
        return Job(
            id=job_id,
            status=status,
            created_at=NOW,
            started_at=NOW,
            finished_at=NOW if status.terminal else None,
            expires_at=NOW,
            attempt=1,
            queue_position=None,
            request=request,
            progress=Progress(completed=int(status.terminal), total=1, failed=0, fraction=share, seconds_left=30.0),
            failed_items=0,
            links={name: f"/jobs/{job_id}/{name}" for name in ("events", "results")} | {"self": f"/jobs/{job_id}"},
            results=[] if surveys else [_result(job_id, methods[0])],
            error=None,
        )


def survey(survey_id: str = SURVEY, **changes: object) -> Survey:
    """One of the caller's own, of 1,000 images, all of them done."""
    links = {"self": f"/surveys/{survey_id}", "job": f"/jobs/{survey_id}", "csv": f"/surveys/{survey_id}/kernels.csv"}
    own = {"id": survey_id, "dataset": DATASET, "images": 1000, "surveyed": 1000, "status": "succeeded", "links": links}
    return Survey.model_validate(
        {**own, "created_at": NOW, "public": False, "mine": True, "weights": None, **changes},
    )


def kernel_page(survey: Survey, layer: Layer, kernel: int, **others: object) -> KernelPage:
    """Of a kernel in the only survey of its layer."""
    own = {"network": survey.model, "layer": layer, "kernel": kernel, "survey": survey, "surveys": [survey]}
    return KernelPage.model_validate({**own, **others})


def explanation(job_id: str = EXPLAINING, **others: object) -> Explanation:
    """Of a kernel, by the pages' own method, without a score unless one is given."""
    own = {"job": job_id, "status": "succeeded", "method": "evidence", "effort": "quick"}
    scores = dict.fromkeys(("consistency", "discrimination", "colour"))
    return Explanation.model_validate({**own, **scores, "links": {"job": f"/jobs/{job_id}"}, **others})


def reported(found: Any, status: int = 200) -> httpx.Response:
    """A model, or several, as JSON."""
    plain = [one.model_dump(mode="json") for one in found] if isinstance(found, list) else found.model_dump(mode="json")
    return httpx.Response(status, json=plain)


def image(kernel: str, rank: str) -> httpx.Response:
    """A crop, or a part of X̂."""
    colour = (int(kernel), int(rank), 255)
    return httpx.Response(200, content=encoded(Image.new("RGB", (8, 8), colour), "WEBP"))


def dataset() -> DataSet:
    """The only one."""
    known: dict[str, Any] = {"id": DATASET, "name": "birds", "created_at": NOW, "public": False, "mine": True}
    return DataSet(**known, images=1000, refused=0, odd=[], links={"self": f"/datasets/{DATASET}"})


def model() -> ModelInfo:
    """The only one."""
    layers = [LayerInfo(**LAYER.model_dump(), available=True)]
    known: dict[str, Any] = {
        "name": "vgg_mini",
        "title": "small",
        "input_size": 96,
        "available": True,
        "reason": "there",
    }
    return ModelInfo(**known, weights="vgg_mini.safetensors", weights_sha256="0" * 64, layers=layers)


def _url(kernel: int, kind: str, rank: int) -> str:
    return f"/kernels/vgg_mini/conv2_2/{kernel}/{kind}/{rank}?survey={SURVEY}"


def _result(job_id: str, method: str) -> ItemResult:
    known: dict[str, Any] = {"index": 0, "image": "e" * 64, "alpha": 1, "beta": 1, "status": "succeeded"}
    if method == "activations":
        ranking = [ActiveKernel(kernel=one, mean=1 / (1 + one), max=1, active=0.5) for one in range(KERNELS)]
        return ItemResult(**known, kernel=None, method=method, ranking=ranking)
    losses = Losses(preservation=0.1, suppression=0.2, regularization=0.3, total=0.6)
    numbers = ("mse_others", "mse_others_before", "mse_selected", "sparsity")
    metrics = Metrics(ssim=0.98, ssim_window=11, ssim_paper=1, leakage=0.2, **dict.fromkeys(numbers, 0.1))
    artifacts = {name: f"/jobs/{job_id}/artifacts/0/{name}" for name in ("original.png", "optimized.png", "panel.png")}
    made: dict[str, Any] = {"losses": losses, "metrics": metrics, "loss_start": 2, "loss_blank": 1, "seconds": 1}
    return ItemResult(**known, kernel=3, method=method, artifacts=artifacts, **made)


ROUTES: list[tuple[str, Callable[..., httpx.Response]]] = [
    ("GET /datasets", lambda *_: reported([dataset()])),
    ("GET /models", lambda *_: reported([model()])),
    ("GET /models/vgg16", lambda *_: reported(model().model_copy(update={"name": "vgg16", "available": False}))),
    ("GET /surveys", lambda self, _: reported([self.survey])),
    ("POST /surveys", lambda self, _: reported(self.job(SURVEY, Status.RUNNING), 202)),
    (f"GET /surveys/{SURVEY}", lambda self, _: reported(self.survey)),
    (f"DELETE /surveys/{SURVEY}", lambda *_: httpx.Response(204)),
    (f"GET /surveys/{SURVEY}/kernels.csv", lambda *_: httpx.Response(200, text="layer,kernel\r\nconv2_2,0\r\n")),
    ("POST /surveys/([^/]+)/explanations", SurveyServer.explain_kernels),
    ("GET /kernels/vgg_mini/conv2_2", lambda self, _: reported(self.layer())),
    ("GET /kernels/vgg_mini/conv2_2/([0-9]+)", lambda self, _, kernel: reported(self.kernel(int(kernel)))),
    ("GET /kernels/vgg_mini/conv2_2/([0-9]+)/(?:crops|pictures)/([0-9]+)", lambda _, __, *which: image(*which)),
    ("POST /activations", lambda self, _: reported(self.job(JOB, Status.RUNNING), 202)),
    ("POST /explain", SurveyServer.explain),
    ("GET /jobs/([^/]+)", lambda self, _, job_id: reported(self.job(job_id))),
    ("POST /jobs/([^/]+)/cancel", lambda self, _, job_id: reported(self.job(job_id))),
    ("GET /jobs/[^/]+/events", SurveyServer.events),
    ("GET /jobs/[^/]+/artifacts/.*", lambda *_: httpx.Response(200, content=png(Image.new("RGB", (8, 8))))),
]
