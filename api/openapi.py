"""What `/openapi.json` says beyond the routes' own types: bodies, every error, and an example of each.

`make openapi` writes it to `openapi.json`, which a test compares with the code.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from api.surveys import reference
from api.surveys.reference import NAMED, QUEUED, SENT
from shared import errors
from shared.errors import KernelscopeError, Problem
from shared.schemas import (
    ActivationsBody,
    ActiveKernel,
    ExplainBody,
    ExplainRequest,
    ItemResult,
    Job,
    Losses,
    Metrics,
    NewDataSet,
    Progress,
    Status,
    Thumbnails,
    WeightsUsed,
)
from shared.version import VERSION

DESCRIPTION = """
Shows what any convolution kernel of a trained CNN responds to in a given image. `POST /explain` makes a job; wait for
it with `Prefer: wait=N`, poll `GET /jobs/{id}`, read `/jobs/{id}/events`, or be called (`webhook_url`); then fetch the
pictures that its results name. Every error is an `application/problem+json` (RFC 9457) whose `type` is a page of this
server. Where keys are needed, send `Authorization: Bearer <key>`.
"""
TAGS = [
    {"name": "explain", "description": "Make jobs."},
    {"name": "jobs", "description": "Follow, fetch, cancel and delete them."},
    {"name": "datasets", "description": "Many images under one name."},
    {"name": "surveys", "description": "What kernels respond to in a data set."},
    {"name": "models", "description": "What can be explained."},
    {"name": "webhooks", "description": "What they are signed with."},
    {"name": "session", "description": "A cookie in place of a key, for pages."},
    {"name": "health", "description": "For operators and orchestrators."},
    {"name": "problems", "description": "What an error's `type` means."},
]

JOB = "944165909aaf421dab8c26d340c123cc"
IMAGE = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
WEIGHTS = "c82bec0ca9bb2a5bb1ccb4e05b2dd5d1a38d6b1e0f2b9a0b9fd4c1b2b6a3a0d1"
SECRET = "whsec_" + "A" * 43 + "="
WHEN = datetime(2026, 11, 25, 9, 30, tzinfo=UTC)

PROBLEM = "application/problem+json"
OPEN = {"/healthz", "/readyz", "/", "/problems/{slug}"}
GONE = (errors.JobNotFound, errors.JobExpired)
BODY = (
    *SENT,
    errors.UnsupportedImage,
    errors.UnusableImage,
    errors.UnknownImage,
    *NAMED,
    errors.UnknownKernel,
    *QUEUED,
)
ERRORS: dict[str, tuple[type[KernelscopeError], ...]] = {
    "post /explain": BODY,
    "post /activations": BODY,
    "get /jobs": (errors.UnknownModel, errors.UnknownLayer),
    "get /jobs/{job_id}": GONE,
    "get /jobs/{job_id}/results": GONE,
    "post /jobs/{job_id}/cancel": (*GONE, errors.JobEnded),
    "post /jobs/{job_id}/retry": (*GONE, errors.NothingToRetry, errors.QuotaExceeded, errors.QueueFull),
    "delete /jobs/{job_id}": GONE,
    "get /jobs/{job_id}/events": GONE,
    "get /jobs/{job_id}/previews/{item}": (*GONE, errors.ArtifactNotFound),
    "get /jobs/{job_id}/webhook": GONE,
    "get /jobs/{job_id}/bundle.zip": GONE,
    "get /jobs/{job_id}/artifacts/{item}/{name}": (
        *GONE,
        errors.ArtifactNotFound,
        errors.RangeNotSatisfiable,
        errors.DrawingQueueFull,
    ),
    "get /jobs/{job_id}/consistency": (*GONE, errors.ArtifactNotFound, errors.DrawingQueueFull),
    "get /jobs/{job_id}/contact_sheet.png": (*GONE, errors.ArtifactNotFound, errors.DrawingQueueFull),
    "post /datasets": (errors.DataSetFull, *SENT),
    "get /datasets/{dataset_id}": (errors.DataSetNotFound,),
    "delete /datasets/{dataset_id}": (errors.DataSetNotFound,),
    "get /datasets/{dataset_id}/images": (errors.DataSetNotFound,),
    "post /datasets/{dataset_id}/images": (errors.DataSetNotFound, errors.DataSetFull, *SENT),
    **reference.ERRORS,
    "get /models/{name}": (errors.ModelNotFound,),
    "get /metrics": (errors.NoSuchPath,),
    "get /problems/{slug}": (errors.NoSuchPath,),
}
EVERYWHERE = (
    errors.Unauthorized,
    errors.CrossOrigin,
    errors.RateLimited,
    errors.InvalidRequest,
    errors.StoreUnavailable,
    KernelscopeError,
)


def _request() -> ExplainRequest:
    return ExplainRequest(model="vgg16", layer="conv1_2", kernels=[18], images=[IMAGE])


def _job(status: Status, **fields: Any) -> Job:
    here = f"/jobs/{JOB}"
    links = {"self": here, "results": f"{here}/results", "events": f"{here}/events"}
    links |= {"cancel": f"{here}/cancel", "retry": f"{here}/retry", "bundle": f"{here}/bundle.zip"}
    known: dict[str, Any] = {
        "started_at": None,
        "finished_at": None,
        "attempt": 0,
        "queue_position": None,
        "request": _request(),
        "progress": Progress(completed=0, total=1, failed=0),
        "failed_items": 0,
        "results": [],
        "error": None,
        **fields,
    }
    return Job(id=JOB, status=status, created_at=WHEN, expires_at=WHEN + timedelta(days=30), links=links, **known)


def _ended(status: Status, **fields: Any) -> Job:
    times = {"started_at": WHEN + timedelta(milliseconds=9), "finished_at": WHEN + timedelta(seconds=12)}
    progress = Progress(completed=1, total=1, failed=0)
    return _job(status, attempt=1, **{"progress": progress, **times, **fields})


def _result() -> ItemResult:
    metrics = Metrics(
        ssim=0.9983,
        ssim_window=11,
        ssim_paper=0.9981,
        mse_others=0.2365,
        mse_others_before=1.5893,
        mse_selected=0.0011,
        leakage=0.3176,
        sparsity=0.0044,
        invention=0.08,
        invention_by_layer={"conv1_1": 0.08},
        invention_beyond_blank=0.07,
    )
    losses = Losses(preservation=0.0064, suppression=0.3176, regularization=0.1165, total=0.4405)
    names = ("optimized.png", "optimized.npy", "maps.npz", "history.json", "contrast.png", "feature_map.png")
    more = ("original.png", "optimized_feature_map.png", "difference.png", "others.png", "panel.png", "sweep.png")
    return ItemResult(
        index=0,
        image=IMAGE,
        kernel=18,
        method="suppression",
        alpha=1.0,
        beta=1.0,
        status="succeeded",
        losses=losses,
        losses_float=losses,
        loss_start=1.5255,
        loss_blank=0.992,
        metrics=metrics,
        metrics_float=metrics,
        iterations=400,
        seconds=12.0,
        stopped="converged",
        precision="float32",
        weights=WeightsUsed(source="vgg16-blocks1-2.safetensors", sha256=WEIGHTS),
        device="cpu",
        artifacts={name: f"/jobs/{JOB}/artifacts/0/{name}" for name in (*names, *more)},
    )


def _ranked() -> ItemResult:
    names = ("activations.npz", "thumbnails.png")
    return ItemResult(
        index=0,
        image=IMAGE,
        kernel=None,
        method="activations",
        alpha=1.0,
        beta=1.0,
        status="succeeded",
        ranking=[ActiveKernel(kernel=18, mean=2.31, max=9.75, active=0.93)],
        thumbnails=Thumbnails(columns=16, tile=56),
        weights=WeightsUsed(source="vgg16-blocks1-2.safetensors", sha256=WEIGHTS),
        device="cpu",
        artifacts={name: f"/jobs/{JOB}/artifacts/0/{name}" for name in names},
    )


def _examples() -> dict[str, dict[int, Any]]:
    """What each route answers when all is well."""
    queued = _job(Status.QUEUED, queue_position=1)
    done = _ended(Status.SUCCEEDED, results=[_result()])
    cancelled = _ended(Status.CANCELLED, progress=Progress(completed=0, total=1, failed=0))
    looked = _request().model_copy(update={"kernels": [], "methods": ["activations"]})
    network = {
        "name": "vgg16",
        "title": "VGG-16",
        "architecture": "vgg16",
        "input_size": 224,
        "channels": 3,
        "available": True,
        "reason": "in the weights folder",
    }
    known = {**network, "weights": "vgg16-blocks1-2.safetensors", "weights_sha256": WEIGHTS, "weights_refused": []}
    version = {"version": f"{VERSION} (94416590)"}
    worker = {"id": "host-4711", "device": "cpu", "ready": True, "networks": ["vgg16", "vgg_mini"], **version}
    attempt = {"at": "2026-11-25T09:30:12Z", "seconds": 0.08, "status": 204, "error": None}
    delivered = {"state": "delivered", "attempts": [attempt], "next_at": None}
    agreement = {"kernel": 18, "method": "suppression", "alpha": 1.0, "beta": 1.0, "images": 4, "consistency": 0.81}
    agreements = {"series": [{**agreement, "discrimination": 0.92}], "originals": 0.44, "left_out": ""}
    here = f"/datasets/{JOB}"
    odd = [{"name": "birds/readme.txt", "reason": "this is no PNG, JPEG or WebP; PNG, JPEG and WebP are taken"}]
    facts = {"name": "birds", "created_at": WHEN.isoformat(), "public": False, "mine": True}
    birds = {
        "id": JOB,
        **facts,
        "images": 1,
        "refused": 1,
        "odd": odd,
        "links": {"self": here, "images": f"{here}/images"},
    }
    bird = {"name": "birds/brambling.jpg", "sha256": IMAGE}
    return {
        **reference.examples(queued),
        "post /datasets": {201: {**birds, "images": 0, "refused": 0, "odd": []}},
        "get /datasets": {200: [birds]},
        "get /datasets/{dataset_id}": {200: birds},
        "get /datasets/{dataset_id}/images": {200: {"images": [bird], "next_cursor": None}},
        "post /datasets/{dataset_id}/images": {200: {"added": [bird], "odd": odd, "dataset": birds}},
        "post /explain": {202: queued, 200: done},
        "post /activations": {202: queued, 200: _ended(Status.SUCCEEDED, request=looked, results=[_ranked()])},
        "get /jobs": {200: {"jobs": [done.model_dump(mode="json", exclude={"results", "error"})], "next_cursor": None}},
        "get /jobs/{job_id}": {200: done},
        "get /jobs/{job_id}/results": {200: {"results": done.model_dump(mode="json")["results"], "next_cursor": None}},
        "post /jobs/{job_id}/cancel": {200: cancelled},
        "post /jobs/{job_id}/retry": {202: queued},
        "get /jobs/{job_id}/webhook": {200: {"url": "https://lab.example/kernelscope", **delivered}},
        "get /jobs/{job_id}/consistency": {200: {"final": True, **agreements}},
        "get /webhook-secret": {200: {"secret": SECRET, "previous": []}},
        "get /models": {200: [{**known, "layers": []}]},
        "get /models/{name}": {200: {**known, "layers": []}},
        "get /healthz": {200: {"status": "alive"}},
        "get /readyz": {200: {"status": "ready", "workers": [worker], "warnings": [], **version}},
    }


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, Job) else value


def _body(model: type[ExplainBody | ActivationsBody]) -> dict[str, Any]:
    kernels = {"kernels": [18]} if model is ExplainBody else {}
    form = {
        "image": {
            "type": "array",
            "minItems": 1,
            "maxItems": 16,
            "items": {"type": "string", "contentMediaType": "application/octet-stream"},
        },
        "layer": {"type": "string"},
        **({"kernels": {"type": "string", "examples": ["3,16", "top:4"]}} if model is ExplainBody else {}),
    }
    return {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": f"#/components/schemas/{model.__name__}"},
                "example": {"images": [{"sha256": IMAGE}], "model": "vgg16", "layer": "conv1_2", **kernels},
            },
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "description": "files as `image`, everything else as the JSON's names; lists with commas, or "
                    "a part for each value",
                    "required": list(form),
                    "properties": form,
                    "additionalProperties": {"type": "string"},
                }
            },
        },
    }


def _object(model: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    content = {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}, "example": example}
    return {"required": True, "content": {"application/json": content}}


def _files() -> dict[str, Any]:
    file = {"type": "string", "contentMediaType": "application/octet-stream"}
    form = {
        "type": "object",
        "required": ["image"],
        "properties": {"image": {"type": "array", "minItems": 1, "items": file}},
        "additionalProperties": False,
    }
    return {"required": True, "content": {"multipart/form-data": {"schema": form}}}


BODIES: dict[str, Callable[[], dict[str, Any]]] = {
    "post /explain": partial(_body, ExplainBody),
    "post /activations": partial(_body, ActivationsBody),
    "post /datasets": partial(_object, NewDataSet, {"name": "birds"}),
    **{
        name: partial(_object, model, example)
        for model, (name, example) in zip(reference.BODIES, reference.BODY_EXAMPLES.items(), strict=True)
    },
    "post /datasets/{dataset_id}/images": _files,
}


def _image_source(properties: dict[str, Any]) -> dict[str, Any]:
    """An image is given in one of two ways, and not in both."""
    forms = {"ImageBytes": "data", "ImageDigest": "sha256"}
    made: dict[str, Any] = {}
    members = {}
    for name, member in properties.items():
        (given,) = (option for option in member["anyOf"] if option["type"] != "null")
        members[name] = {**given, "description": member["description"]}
    for title, name in forms.items():
        made[title] = {
            "type": "object",
            "title": title,
            "required": [name],
            "properties": {name: members[name], "name": members["name"]},
            "additionalProperties": False,
        }
    made["ImageSource"] = {"oneOf": [{"$ref": f"#/components/schemas/{title}"} for title in forms]}
    return made


def _problems(kinds: tuple[type[KernelscopeError], ...]) -> dict[str, Any]:
    """A response for each status, with an example of each problem that has it."""
    answers: dict[str, Any] = {}
    for kind in kinds:
        detail = " ".join((kind.__doc__ or "").split())
        example = {"summary": kind.title, "value": kind(detail).problem().model_dump()}
        answer = answers.setdefault(str(kind.status), {"description": kind.title})
        if kind.title not in answer["description"]:
            answer["description"] += f"; {kind.title.lower()}"
        content = answer.setdefault("content", {}).setdefault(
            PROBLEM, {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}
        )
        content["examples"][kind.slug()] = example
        if kind.status in (429, 503):
            answer["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
    return answers


def _operation(name: str, operation: dict[str, Any], examples: dict[int, Any]) -> None:
    path = name.split(" ")[1]
    responses = operation["responses"]
    responses.pop("422", None)
    unavailable = (errors.StoreUnavailable,) if path == "/readyz" else ()
    responses.update(
        _problems((*ERRORS.get(name, ()), *((errors.InvalidRequest, *unavailable) if path in OPEN else EVERYWHERE)))
    )
    if path in OPEN:
        operation["security"] = []
    for status, example in examples.items():
        answer = responses.setdefault(str(status), {"description": "The job has ended, or was there before."})
        content = answer.setdefault("content", {}).setdefault("application/json", {})
        content.setdefault("schema", {"$ref": "#/components/schemas/Job"})
        content["example"] = _plain(example)


def document(app: FastAPI) -> dict[str, Any]:
    """The whole document."""
    found = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes, tags=app.openapi_tags
    )
    schemas = found["components"]["schemas"]
    models: tuple[type[BaseModel], ...] = (ExplainBody, ActivationsBody, NewDataSet, *reference.BODIES, Problem)
    for model in models:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    schemas.update(_image_source(schemas["ImageSource"]["properties"]))
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    found["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "an API key; `kernelscope keys add NAME` makes one"},
        "session": {
            "type": "apiKey",
            "in": "cookie",
            "name": "__Host-kernelscope",
            "description": "see `POST /session`; over plain HTTP `kernelscope-PORT`",
        },
    }
    found["security"] = [{"key": []}, {"session": []}, {}]
    examples = _examples()
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            name = f"{method} {path}"
            _operation(name, operation, examples.get(name, {}))
            if name in BODIES:
                operation["requestBody"] = BODIES[name]()
    found["components"]["schemas"] = dict(sorted(schemas.items()))
    return found


def describe(app: FastAPI) -> None:
    """Have the application tell this of itself."""

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            app.openapi_schema = document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
