"""`POST /explain`: accepted requests, refused requests, and the texts of refusals."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from httpx import Client, Response
from redis import Redis

from shared.settings import Settings
from shared.workers import WorkerState
from tests.api.conftest import serving
from tests.conftest import noise, png

MINI = {"model": "vgg_mini", "layer": "conv2_2", "kernels": "3,16"}


def post(
    client: Client,
    image: bytes | None = None,
    headers: dict[str, str] | None = None,
    path: str = "/explain",
    **fields: str,
) -> Response:
    """Send a multipart request."""
    data = png(noise()) if image is None else image
    return client.post(path, files={"image": ("x", data)}, data={**MINI, **fields}, headers=headers)


def post_json(client: Client, **fields: Any) -> Response:
    """Send a JSON request; it may contain NaN, as Python's json writes it."""
    body = {
        "images": [{"data": base64.b64encode(png(noise())).decode(), "name": "x"}],
        "model": "vgg_mini",
        "layer": "conv2_2",
        "kernels": [3, 16],
        **fields,
    }
    return client.post("/explain", content=json.dumps(body), headers={"Content-Type": "application/json"})


def refused(response: Response, status: int, slug: str, *words: str) -> dict[str, Any]:
    """Check that a response is a problem of this type whose detail contains these words."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["type"].endswith(f"/problems/{slug}")
    assert problem["status"] == status
    assert problem["title"]
    for word in words:
        assert word in problem["detail"], problem["detail"]
    return problem


def test_a_form_creates_a_job(client: Client) -> None:
    """202, a Location, and the job: queued, first in the queue, with the normalised request."""
    image = png(noise())
    answer = post(client, image, layer="relu2_2")
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/jobs/{job['id']}"
    assert job["status"] == "queued"
    assert job["queue_position"] == 1
    assert job["request"] == {
        "images": [hashlib.sha256(image).hexdigest()],
        "names": ["x"],
        "model": "vgg_mini",
        "layer": "conv2_2",
        "kernels": [3, 16],
        "methods": ["suppression"],
        "rule": "zplus",
        "scaling": "max",
        "alpha": [1.0],
        "beta": [1.0],
        "solver": "fast",
        "effort": "standard",
        "iterations": None,
        "target_ssim": None,
        "max_preservation": None,
        "gamma": None,
        "max_invention": None,
        "only_remove": False,
        "deadline_s": None,
        "webhook_url": None,
    }
    assert job["progress"] == {
        "completed": 0,
        "total": 2,
        "failed": 0,
        "iteration": None,
        "budget": None,
        "loss": None,
        "fraction": 0.0,
        "seconds_left": None,
    }
    assert job["created_at"].endswith("Z")
    polled = client.get(answer.headers["location"])
    assert polled.json() == job
    assert polled.headers["retry-after"] == "1"


def test_json_and_forms_are_equivalent(client: Client) -> None:
    """Both are normalised to the same request; torchvision's node name is accepted for a layer."""
    image = png(noise())
    form = post(client, image, alpha="0.5,1", beta="0", kernels="top:3", effort="quick", layer="features.8")
    body = post_json(client, alpha=[0.5, 1], beta=0, kernels="top:3", effort="quick", layer="conv2_2")
    assert form.status_code == body.status_code == 202
    assert form.json()["request"] == body.json()["request"]
    assert form.json()["progress"]["total"] is None  # "top:3" is resolved by the worker


def test_items_are_the_product_of_images_kernels_and_weights(client: Client) -> None:
    """One item for each image × kernel × α × β."""
    files = [("image", (f"{seed}.png", png(noise(seed=seed)))) for seed in range(3)]
    answer = client.post("/explain", files=files, data={**MINI, "alpha": "0,1", "beta": "0.5,1,2"})
    assert answer.json()["progress"]["total"] == 3 * 2 * 2 * 3


def test_an_image_sent_before_can_be_given_by_its_hash(client: Client) -> None:
    """Its bytes are sent once."""
    digest = hashlib.sha256(png(noise())).hexdigest()
    refused(post_json(client, images=[{"sha256": digest}]), 422, "unknown-image", digest, "send its bytes")
    assert post_json(client).status_code == 202
    assert post_json(client, images=[{"sha256": digest}]).status_code == 202


@pytest.mark.parametrize(
    ("fields", "gamma", "most"),
    [
        ({}, None, None),
        ({"methods": ["evidence", "suppression"]}, None, None),
        ({"methods": "evidence", "gamma": 2.5}, 2.5, None),
        ({"methods": "evidence", "gamma": 0}, 0, None),
        ({"methods": "evidence", "max_invention": 0.2}, None, 0.2),
        ({"methods": "evidence", "solver": "reference"}, None, None),
    ],
)
def test_evidence_has_a_weight_or_a_bound(
    client: Client, fields: dict[str, Any], gamma: float | None, most: float | None
) -> None:
    """The job has the requested one."""
    asked = post_json(client, **fields).json()["request"]
    assert (asked["gamma"], asked["max_invention"]) == (gamma, most)


@pytest.mark.parametrize(
    ("fields", "slug", "words"),
    [
        ({"model": "resnet50"}, "unknown-model", ["resnet50", "vgg16", "vgg_mini"]),
        ({"layer": "conv6_1"}, "unknown-layer", ["conv6_1", "vgg_mini", "conv2_2 (features.8)"]),
        ({"layer": "features.77"}, "unknown-layer", ["features.77", "features.8"]),
        ({"kernels": [3, 32]}, "unknown-kernel", ["32", "0 to 31"]),
        ({"kernels": []}, "invalid-request", ["kernels", "top:N"]),
        ({"kernels": [1.5]}, "invalid-request", ["kernels", "zero-based"]),
        ({"kernels": [-1]}, "invalid-request", ["kernels", "zero-based"]),
        ({"kernels": "top:0"}, "invalid-request", ["top:0", "top:N"]),
        ({"kernels": "best"}, "invalid-request", ["best", "top:N"]),
        ({"methods": ["magic"]}, "invalid-request", ["methods", "suppression", "evidence"]),
        ({"alpha": -1}, "invalid-request", ["alpha", "greater than or equal to 0"]),
        ({"beta": "much"}, "invalid-request", ["beta", "finite number", "much"]),
        ({"alpha": []}, "invalid-request", ["alpha"]),
        ({"solver": "adam"}, "invalid-request", ["solver", "'fast' or 'reference'", "adam"]),
        ({"effort": "max"}, "invalid-request", ["effort", "'quick', 'standard' or 'thorough'"]),
        ({"iterations": 0}, "invalid-request", ["iterations", "greater than or equal to 1"]),
        ({"target_ssim": 1.5}, "invalid-request", ["target_ssim", "less than 1"]),
        ({"max_preservation": 0}, "invalid-request", ["max_preservation", "greater than 0"]),
        ({"target_ssim": 0.9, "solver": "reference"}, "invalid-request", ["target_ssim", "reference", "fast"]),
        ({"max_invention": 0.1, "methods": "evidence", "solver": "reference"}, "invalid-request", ["max_invention"]),
        ({"gamma": 1}, "invalid-request", ["gamma", 'method "evidence"', "not among the methods"]),
        ({"max_invention": 0.1, "methods": ["lrp"]}, "invalid-request", ["max_invention", 'method "evidence"']),
        ({"methods": "evidence", "gamma": 1, "max_invention": 0.1}, "invalid-request", ["not both"]),
        ({"methods": "evidence", "gamma": -1}, "invalid-request", ["gamma", "greater than or equal to 0"]),
        ({"methods": "evidence", "max_invention": 0}, "invalid-request", ["max_invention", "greater than 0"]),
        ({"colour": "red"}, "invalid-request", ["colour", "no such field", "layer", "kernels"]),
        ({"images": []}, "invalid-request", ["images", "at least 1"]),
        ({"images": [{}]}, "invalid-request", ["images.0", "data", "sha256"]),
        ({"images": [{"data": "%%%"}]}, "invalid-request", ["images.0.data", "base64"]),
        ({"images": [{"sha256": "abc"}]}, "invalid-request", ["images.0.sha256"]),
        ({"kernels": "top:32", "alpha": list(range(1, 65)), "beta": [1, 2]}, "invalid-request", ["4096", "2048"]),
    ],
)
def test_invalid_values(client: Client, fields: dict[str, Any], slug: str, words: list[str]) -> None:
    """Each error says what is wrong and what is expected."""
    refused(post_json(client, **fields), 422, slug, *words)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite(client: Client, value: float) -> None:
    """NaN and infinities, which Python's json writes and reads; also as form fields."""
    refused(post_json(client, alpha=value), 422, "invalid-request", "finite")
    refused(post(client, alpha=str(value)), 422, "invalid-request", "alpha", "finite")


def test_several_errors_are_returned_at_once(client: Client) -> None:
    """A list of fields, for programs."""
    problem = refused(post_json(client, alpha=-1, beta=-1, solver="x"), 422, "invalid-request")
    assert {error["field"] for error in problem["errors"]} == {"alpha.0", "beta.0", "solver"}


def test_missing_fields_are_named(client: Client) -> None:
    """The layer and the kernels have no default."""
    answer = client.post("/explain", files={"image": ("x", png(noise()))}, data={})
    refused(answer, 422, "invalid-request", "layer: Field required", "kernels: Field required")


def test_unreadable_bodies(client: Client) -> None:
    """Not JSON, not an object, nested too deeply, not a form, no file, another type."""
    send = {"Content-Type": "application/json"}
    refused(client.post("/explain", content=b"{", headers=send), 400, "malformed-body", "not JSON")
    refused(client.post("/explain", content=b"[1]", headers=send), 422, "invalid-request", "object")
    refused(client.post("/explain", content=b"\xff\xfe", headers=send), 400, "malformed-body")
    refused(client.post("/explain", content=b"[" * 200_000, headers=send), 400, "malformed-body", "nested")
    form = {"Content-Type": "multipart/form-data"}
    refused(client.post("/explain", content=b"x", headers=form), 400, "malformed-body", "boundary")
    refused(client.post("/explain", content=b"x"), 415, "unsupported-content-type", "application/json")
    refused(client.post("/explain", files={"picture": b"x"}, data=MINI), 422, "invalid-request", "'image'")
    empty = client.post("/explain", files={"other": ("", b"")}, data=MINI)
    refused(empty, 422, "invalid-request")


def test_a_body_over_the_limit_is_refused(settings: Settings, redis: Redis) -> None:
    """By its announced length, or while it is streamed without one."""
    with serving(settings.model_copy(update={"max_body_mb": 1})) as client:
        refused(post(client, b"x" * 1_100_000), 413, "body-too-large", "1 MB")
        chunks = (b"x" * 100_000 for _ in range(20))
        streamed = client.post("/explain", content=chunks, headers={"Content-Type": "application/json"})
        refused(streamed, 413, "body-too-large", "1 MB")


def test_a_layer_that_the_weights_do_not_cover(client: Client, worker: WorkerState) -> None:
    """The API learns it from the workers' heartbeats, and lists the covered layers."""
    answer = post(client, model="vgg16", layer="conv3_3")
    refused(answer, 422, "layer-not-covered", "conv3_3", "vgg16-part.safetensors", "conv1_1, conv1_2, conv2_1, conv2_2")
    assert post(client, model="vgg16", layer="conv2_2").status_code == 202


def test_a_model_without_weights(client: Client, worker: WorkerState) -> None:
    """Refused with the worker's reason."""
    refused(post(client, model="alexnet", layer="conv2"), 422, "model-unavailable", "no weights for alexnet")


def test_without_a_worker_jobs_are_accepted(client: Client) -> None:
    """Workers may scale from zero."""
    assert post(client, model="alexnet", layer="conv2").status_code == 202


def test_nothing_of_a_refused_request_is_stored(client: Client, redis: Redis) -> None:
    """Neither a record nor a reference to an image."""
    post(client, layer="conv9_9")
    post(client, b"no image")
    post_json(client, alpha=-1)
    assert redis.keys("ks:*") == []


def test_a_request_repeated_with_its_key_is_one_job(client: Client, redis: Redis) -> None:
    """The second response is 200 with the same job; another request with the key is refused."""
    first = post(client, headers={"Idempotency-Key": "mine"})
    assert first.status_code == 202
    assert "idempotent-replayed" not in first.headers
    again = post(client, headers={"Idempotency-Key": "mine"})
    assert again.status_code == 200
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    assert redis.llen("interactive") == 1
    refused(
        post(client, headers={"Idempotency-Key": "mine"}, kernels="4"), 422, "idempotency-conflict", "use a new key"
    )
    assert post(client, headers={"Idempotency-Key": "other"}).status_code == 202
    refused(post(client, headers={"Idempotency-Key": "x" * 256}), 422, "invalid-request", "idempotency-key")


def test_cancelling(client: Client) -> None:
    """A cancelled queued job never starts; an ended job is 409; an unknown one is 404."""
    job_id = post(client).json()["id"]
    cancelled = client.post(f"/jobs/{job_id}/cancel")
    assert cancelled.status_code == 200
    assert cancelled.json()["status"] == "cancelled"
    assert [result["status"] for result in cancelled.json()["results"]] == ["cancelled", "cancelled"]
    refused(client.post(f"/jobs/{job_id}/cancel"), 409, "job-ended", "already cancelled")
    refused(client.post("/jobs/nobody/cancel"), 404, "job-not-found", "nobody")
