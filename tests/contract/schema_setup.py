"""The jobs, data sets and surveys behind the generated requests, and Schemathesis's configuration."""

from __future__ import annotations

import json
from base64 import b64encode, urlsafe_b64encode
from typing import Any

import httpx

from shared.errors import error_types
from shared.jobs import ARTIFACTS
from tests.chaos.conftest import picture
from tests.conftest import FULL
from tests.contract.conftest import Plant

JOBS = 24  # ended before it begins
REQUEST_SECONDS = 65  # a request may ask to wait for 60

# A schema cannot state whether bytes are an image, a layer exists, a cursor is valid, a job was deleted, or a range is
# within a file.
REFUSALS = {
    "POST /explain": [415, 422],
    "POST /activations": [415, 422],
    "GET /jobs": [422],
    "GET /jobs/{job_id}/events": [410, 422],
    "GET /jobs/{job_id}/artifacts/{item}/{name}": [410, 416],
    "POST /surveys": [422],
    "POST /surveys/{survey_id}/explanations": [422],
    "GET /surveys/{survey_id}/layers/{layer}/crops/{image}/{row}/{column}": [422],
    "GET /surveys/{survey_id}/layers/{layer}/pictures/{job}/{item}/{row}/{column}": [410, 422],
    "GET /kernels/{network}/{layer}": [422],
    "GET /kernels/{network}/{layer}/{kernel}": [422],
    "POST /datasets": [422],
    "POST /datasets/{dataset_id}/images": [422],
}

DELETED = (
    "GET /jobs/{job_id}",
    "GET /jobs/{job_id}/results",
    "DELETE /jobs/{job_id}",
    "POST /jobs/{job_id}/cancel",
    "GET /jobs/{job_id}/webhook",
    "GET /jobs/{job_id}/bundle.zip",
    "GET /jobs/{job_id}/consistency",
    "GET /jobs/{job_id}/contact_sheet.png",
    "GET /jobs/{job_id}/previews/{item}",
    "POST /jobs/{job_id}/retry",
)

RARE = (  # a successful response is not required
    *DELETED[-4:],  # of jobs on several images, with previews, or failed
    "POST /datasets/{dataset_id}/images",  # generated files are not images
    "GET /surveys/{survey_id}/layers/{layer}/pictures/{job}/{item}/{row}/{column}",  # few jobs have an X̂ there
)

TOLERANT = {"POST /datasets/{dataset_id}/images": [200]}  # a file that is not an image is listed; it is no error
ACCEPTED = ["2xx", "3xx", 401, 403, 404, 409, 429]

REJECTED = [
    400,
    401,
    403,
    404,
    405,
    406,
    409,
    410,
    415,
    422,
    428,
    429,
]  # 410: the job was deleted, whatever the request

EXAMPLES = 600 if FULL else 45  # of each operation and phase

SECONDS = 2_000 if FULL else 900  # on a slow machine

EVERY = (
    "POST /explain",
    "POST /activations",
    "GET /jobs",
    "GET /jobs/{job_id}",
    "GET /jobs/{job_id}/results",
    "POST /jobs/{job_id}/cancel",
    "DELETE /jobs/{job_id}",
    "GET /jobs/{job_id}/events",
    "GET /jobs/{job_id}/webhook",
    "GET /jobs/{job_id}/artifacts/{item}/{name}",
    "GET /jobs/{job_id}/bundle.zip",
    "POST /datasets",
    "GET /datasets",
    "GET /datasets/{dataset_id}",
    "DELETE /datasets/{dataset_id}",
    "GET /datasets/{dataset_id}/images",
    "POST /surveys",
    "GET /surveys",
    "GET /surveys/{survey_id}",
    "DELETE /surveys/{survey_id}",
    "GET /surveys/{survey_id}/kernels.csv",
    "POST /surveys/{survey_id}/explanations",
    "GET /surveys/{survey_id}/layers/{layer}/crops/{image}/{row}/{column}",
    "GET /kernels/{network}/{layer}",
    "GET /kernels/{network}/{layer}/{kernel}",
    "GET /models",
    "GET /models/{name}",
    "GET /webhook-secret",
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",
    "POST /session",
    "DELETE /session",
    "GET /problems/{slug}",
)

BOUND: dict[str, dict[str, str]] = {
    "POST /explain": {
        "body.images[*].data": "data",
        "body.images[*].sha256": "sha256",
        "body.model": "model",
        "body.layer": "layer",
        "body.kernels": "kernels",
    },
    "POST /activations": {
        "body.images[*].data": "data",
        "body.images[*].sha256": "sha256",
        "body.model": "model",
        "body.layer": "layer",
    },
    "GET /jobs": {"query.cursor": "cursor", "query.model": "model", "query.layer": "layer"},
    "GET /jobs/{job_id}/events": {"path.job_id": "job", "header.last-event-id": "event"},
    "GET /jobs/{job_id}/artifacts/{item}/{name}": {
        "path.job_id": "job",
        "path.item": "item",
        "path.name": "artifact",
        "header.range": "range",
        "header.if-none-match": "etag",
        "header.if-range": "etag",
    },
    "DELETE /jobs/{job_id}": {"path.job_id": "doomed"},
    "GET /datasets/{dataset_id}": {"path.dataset_id": "dataset"},
    "GET /datasets/{dataset_id}/images": {"path.dataset_id": "dataset"},
    "POST /datasets/{dataset_id}/images": {"path.dataset_id": "dataset"},
    "DELETE /datasets/{dataset_id}": {"path.dataset_id": "doomed_dataset"},
    "POST /surveys": {"body.dataset": "dataset", "body.model": "model", "body.layers[*]": "layer"},
    "GET /surveys/{survey_id}": {"path.survey_id": "survey"},
    "DELETE /surveys/{survey_id}": {"path.survey_id": "doomed_survey"},
    "GET /surveys/{survey_id}/kernels.csv": {"path.survey_id": "survey"},
    "POST /surveys/{survey_id}/explanations": {
        "path.survey_id": "survey",
        "body.layer": "layer",
        "body.kernels[*]": "kernel",
    },
    "GET /surveys/{survey_id}/layers/{layer}/crops/{image}/{row}/{column}": {
        "path.survey_id": "survey",
        "path.layer": "layer",
        "path.image": "place",
        "path.row": "place",
        "path.column": "place",
    },
    "GET /surveys/{survey_id}/layers/{layer}/pictures/{job}/{item}/{row}/{column}": {
        "path.survey_id": "survey",
        "path.layer": "layer",
        "path.job": "job",
        "path.item": "item",
        "path.row": "place",
        "path.column": "place",
    },
    "GET /kernels/{network}/{layer}": {"path.network": "model", "path.layer": "layer", "query.survey": "survey"},
    "GET /kernels/{network}/{layer}/{kernel}": {
        "path.network": "model",
        "path.layer": "layer",
        "path.kernel": "kernel",
        "query.survey": "survey",
    },
    "GET /models/{name}": {"path.name": "model"},
    "GET /problems/{slug}": {"path.slug": "slug"},
    **{name: {"path.job_id": "job"} for name in DELETED if not name.startswith("DELETE")},
    "POST /jobs/{job_id}/cancel": {"path.job_id": "busy"},
}


def configuration_of(plant: Plant) -> dict[str, Any]:
    """Real values besides generated ones, so that routes succeed; and the expected refusals."""
    jobs, sent = _jobs(plant, JOBS)
    doomed, _ = _jobs(plant, 2 * JOBS)
    done = httpx.get(f"{plant.url}/jobs/{jobs[0]}").json()
    image = httpx.get(f"{plant.url}{done['results'][0]['artifacts']['optimized.png']}")
    values = {
        "job": jobs,
        "doomed": doomed,
        "item": [0, 1],
        "artifact": list(ARTIFACTS),
        "dataset": _datasets(plant, 2),
        "doomed_dataset": _datasets(plant, JOBS),
        "survey": _surveys(plant, 1),
        "doomed_survey": _surveys(plant, JOBS),
        "kernel": [0, 1, 2],
        "place": [0, 1, 2],
        "model": ["vgg_mini"],
        "layer": ["conv2_1"],
        "kernels": ["top:2"],
        "data": [b64encode(sent).decode()],
        "sha256": [done["results"][0]["image"]],
        "slug": list(error_types()),
        "cursor": _cursors(plant),
        "range": ["bytes=0-9", "bytes=-9", "bytes=5-", "bytes=99999999-"],
        "etag": [image.headers["etag"], "*"],
        "event": ["0-0", "1-1", "9999999999999999999-9999999999999999999"],
        "busy": [plant.submit("3", iterations="100000", deadline_s=str(SECONDS)) for _ in range(2)] + jobs[:1],
    }
    return {
        "dictionaries": {name: {"values": entries} for name, entries in values.items()},
        "operations": [_operation(name) for name in (*EVERY, *RARE)],
    }


def _jobs(plant: Plant, count: int) -> tuple[list[str], bytes]:
    """Ended jobs: succeeded, failed (kernel 9 is silent), partly failed, ranked; and an image of theirs."""
    sent = picture()
    ids = []
    with httpx.Client(base_url=plant.url, timeout=60) as client:
        for number in range(count):
            route, fields = (
                ("/activations", {}) if number % 4 == 3 else ("/explain", {"kernels": ("3,4", "9", "3,9")[number % 4]})
            )
            form = {"model": "vgg_mini", "layer": "conv2_1", **fields}
            answer = client.post(route, files={"image": sent}, data=form, headers={"Prefer": "wait=30"})
            assert answer.status_code == 200, answer.text
            ids.append(answer.json()["id"])
    return ids, sent


def _datasets(plant: Plant, count: int) -> list[str]:
    """Data sets, each with an image."""
    ids = []
    with httpx.Client(base_url=plant.url, timeout=60) as client:
        for number in range(count):
            made = client.post("/datasets", json={"name": f"set {number}"}).raise_for_status().json()
            files = {"image": ("a.png", picture())}
            client.post(made["links"]["images"], files=files).raise_for_status()
            ids.append(made["id"])
    return ids


def _surveys(plant: Plant, count: int) -> list[str]:
    """Finished surveys of one image."""
    (dataset,) = _datasets(plant, 1)
    body = {"dataset": dataset, "model": "vgg_mini", "layers": ["conv2_1"]}
    with httpx.Client(base_url=plant.url, timeout=60) as client:
        answers = [client.post("/surveys", json=body, headers={"Prefer": "wait=30"}) for _ in range(count)]
    assert {answer.json()["status"] for answer in answers} == {"succeeded"}
    return [answer.json()["id"] for answer in answers]


def _cursors(plant: Plant) -> list[str]:
    """A valid cursor, and some invalid ones."""
    given = httpx.get(f"{plant.url}/jobs", params={"limit": 2}).json()["next_cursor"]
    made_up = (b"nan x", b"inf x", b"-inf x", b"1e999 x", b"1 ", b" ", b"1_0 x", "1 ü".encode())
    return [given, *(urlsafe_b64encode(text).decode().rstrip("=") for text in made_up)]


def _operation(name: str) -> dict[str, Any]:
    refusals = [*REFUSALS.get(name, []), *([410] if name in DELETED else [])]
    bound = {where: {"dictionary": what, "probability": 0.7} for where, what in BOUND.get(name, {}).items()}
    checks = {
        "positive_data_acceptance": {"expected-statuses": [*ACCEPTED, *refusals]},
        "negative_data_rejection": {"expected-statuses": [*REJECTED, *TOLERANT.get(name, [])]},
    }
    return {"include-name": name, "checks": checks, **({"parameters": bound} if bound else {})}


def toml_text(configuration: dict[str, Any]) -> str:
    """As TOML: tables of JSON values; all of these but objects are also valid TOML."""
    lines = []
    for name, dictionary in configuration["dictionaries"].items():
        lines += [f"[dictionaries.{name}]", f"values = {json.dumps(dictionary['values'])}"]
    for operation in configuration["operations"]:
        lines += ["[[operations]]", f"include-name = {json.dumps(operation['include-name'])}"]
        for name, check in operation["checks"].items():
            lines.append(f"checks.{name}.expected-statuses = {json.dumps(check['expected-statuses'])}")
        for where, what in operation.get("parameters", {}).items():
            binding = f'{{ dictionary = "{what["dictionary"]}", probability = {what["probability"]} }}'
            lines.append(f'parameters."{where}" = {binding}')
    return "\n".join(lines) + "\n"
