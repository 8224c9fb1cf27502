"""The main job, whole: an image over HTTP, the method on a real network, X̂ as a PNG with maps and metrics."""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from kernelscope.client import Client, Job
from kernelscope.stack import Stack
from shared.drawings import scene
from shared.errors import error_types
from shared.jobs import DRAWN_ARTIFACTS, STORED_ARTIFACTS
from shared.schemas import Status
from tests.conftest import png
from tests.recompute import VGG_BLOCKS, PlainVgg, numbers
from worker.networks.vgg_mini import WEIGHTS_FILE, VggMini

PICTURE = png(scene(5, 96).image)
LAYER = "conv3_2"


@pytest.fixture(scope="module")
def job(stack: Stack) -> Job:
    """Four kernels of `vgg_mini` explained on a drawn scene; progress was seen while it ran."""
    seen: list[Job] = []
    with Client(stack.url) as client:
        submitted = client.explain([PICTURE], model="vgg_mini", layer=LAYER, kernels="top:4")
        job = submitted.wait(on_change=seen.append)
    assert job.status is Status.SUCCEEDED
    running = [each.progress for each in seen if each.progress.iteration]
    assert running, "no progress was seen"
    assert all(progress.budget == 1000 and progress.loss for progress in running)
    return job


def test_the_job_says_what_ran(job: Job) -> None:
    """Which network and weights, on what, how long."""
    assert job.progress.total == job.progress.completed == 4
    assert job.started_at is not None
    assert job.finished_at is not None
    assert job.created_at <= job.started_at <= job.finished_at < job.expires_at
    for rank, result in enumerate(job.results):
        assert result.rank == rank
        assert result.weights is not None
        assert result.weights.source == "vgg_mini.safetensors"
        assert len(result.weights.sha256) == 64
        assert result.device == "cpu"
        assert result.stopped in ("converged", "budget")
        assert result.iterations
        assert result.seconds


def test_the_worker_s_log_says_what_ran(stack: Stack, job: Job) -> None:
    """From the configured level; Celery has one of its own."""
    lines = (stack.settings.data_dir / "logs" / "worker.log").read_text().splitlines()
    assert [line for line in lines if f"{job.id}:0: started, attempt 1" in line and " INFO " in line]


def test_the_explanation_is_one(job: Job) -> None:
    """The kernel's map is kept, the others are silenced, the loss is far below the start and the blank picture."""
    for result in job.results:
        assert result.metrics is not None
        assert result.metrics.ssim is not None
        assert result.losses is not None
        assert result.loss_start is not None
        assert result.loss_blank is not None
        assert result.metrics.ssim >= 0.9
        assert result.losses.total <= 0.8 * min(result.loss_start, result.loss_blank)
        assert result.metrics.leakage < 0.75
        assert result.metrics_float is not None


def test_the_metrics_are_those_of_the_delivered_png(job: Job, client: Client) -> None:
    """Recomputed from the downloaded file by other means: equal to 1e-3."""
    network = PlainVgg(WEIGHTS_FILE, VGG_BLOCKS["vgg_mini"], LAYER, VggMini.MEAN, VggMini.STD)
    for result in job.results:
        assert result.kernel is not None
        assert result.metrics is not None
        assert result.losses is not None
        delivered = client.file(result.artifacts["optimized.png"])
        reported = {**result.metrics.model_dump(), **result.losses.model_dump()}
        for name, value in numbers(network, PICTURE, delivered, VggMini.INPUT_SIZE, result.kernel).items():
            assert reported[name] == pytest.approx(value, abs=1e-3, rel=1e-3), name


def test_every_artifact_can_be_fetched(job: Job, client: Client) -> None:
    """Stored and drawn ones, each what its name says; drawn twice, the same bytes."""
    for result in job.results[:2]:
        assert set(result.artifacts) == {*STORED_ARTIFACTS, *DRAWN_ARTIFACTS}
        files = {name: client.file(path) for name, path in result.artifacts.items()}
        assert Image.open(BytesIO(files["optimized.png"])).size == (96, 96)
        x = np.load(BytesIO(files["optimized.npy"]))
        assert (x.shape, x.dtype) == ((3, 96, 96), np.float32)
        rounded = np.asarray(Image.open(BytesIO(files["optimized.png"]))).transpose(2, 0, 1)
        assert np.abs((x * 0.25 + 0.5) * 255 - rounded).max() <= 0.51
        maps = np.load(BytesIO(files["maps.npz"]))
        assert maps["before"].shape == maps["after"].shape == (24, 24)
        assert maps["others_before"].shape == (2, 24, 24)
        history = json.loads(files["history.json"])
        assert history["columns"] == ["iteration", "preservation", "suppression", "regularization", "total"]
        assert history["rows"][0][0] == 1
        for name in DRAWN_ARTIFACTS:
            assert Image.open(BytesIO(files[name])).format == "PNG"
            assert client.file(result.artifacts[name]) == files[name]


def test_artifacts_are_immutable(job: Job, stack: Stack) -> None:
    """A strong ETag, and 304 for who has it."""
    url = stack.url + job.results[0].artifacts["optimized.png"]
    first = httpx.get(url)
    assert first.headers["content-type"] == "image/png"
    assert "immutable" in first.headers["cache-control"]
    again = httpx.get(url, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_a_silent_kernel_fails_alone(stack: Stack, client: Client) -> None:
    """The other kernels of the job are explained; the silent one says what it is and what to do."""
    grey = png(Image.new("RGB", (96, 96), (128, 128, 128)))
    maps = PlainVgg(WEIGHTS_FILE, VGG_BLOCKS["vgg_mini"], "conv2_1", VggMini.MEAN, VggMini.STD)
    mean = maps.maps(np.full((96, 96, 3), 128.0)).mean(axis=(1, 2))
    silent, active = int(mean.argmin()), int(mean.argmax())
    assert mean[silent] == 0
    submitted = client.explain([grey], model="vgg_mini", layer="conv2_1", kernels=f"{silent},{active}")
    job = submitted.wait()
    assert job.status is Status.SUCCEEDED
    assert job.failed_items == 1
    failed, succeeded = job.results
    assert failed.error is not None
    assert failed.error.type == error_types()["silent-kernel"].type_uri()
    assert f"kernel {silent} of conv2_1 is silent" in failed.error.detail
    assert failed.artifacts == {}
    assert succeeded.status == "succeeded"
    answer = httpx.get(f"{stack.url}/jobs/{job.id}/artifacts/0/panel.png")
    assert answer.status_code == 404
    assert "failed" in answer.json()["detail"]


def test_a_job_of_silent_kernels_only_is_failed(client: Client) -> None:
    """Its own error says why."""
    grey = png(Image.new("RGB", (96, 96), (128, 128, 128)))
    maps = PlainVgg(WEIGHTS_FILE, VGG_BLOCKS["vgg_mini"], "conv2_1", VggMini.MEAN, VggMini.STD)
    silent = int(maps.maps(np.full((96, 96, 3), 128.0)).mean(axis=(1, 2)).argmin())
    job = client.explain([grey], model="vgg_mini", layer="conv2_1", kernels=str(silent)).wait()
    assert job.status is Status.FAILED
    assert job.error is not None
    assert "silent" in job.error.detail


def test_weights_alpha_and_beta_make_different_pictures(client: Client) -> None:
    """β = 0 leaves the picture full, β = 2 empties it."""
    submitted = client.explain(
        [PICTURE], model="vgg_mini", layer="conv2_2", kernels="top:1", beta=[0, 2], effort="quick"
    )
    none, much = submitted.wait().results
    assert none.metrics is not None
    assert much.metrics is not None
    assert (none.beta, much.beta) == (0, 2)
    assert much.metrics.sparsity > none.metrics.sparsity + 0.1


def test_the_reference_solver_runs_too(client: Client) -> None:
    """With the requested iterations."""
    own: dict[str, Any] = {"model": "vgg_mini", "layer": "conv1_1", "kernels": "top:1"}
    (result,) = client.explain([PICTURE], **own, solver="reference", iterations=50).wait().results
    assert result.iterations == 50
    assert result.losses_float is not None
    assert result.loss_start is not None
    assert result.losses_float.total < result.loss_start


def test_top_n_skips_silent_kernels(client: Client) -> None:
    """Of 32 wanted on a grey picture, those that are active; the total is known once they are found."""
    grey = png(Image.new("RGB", (96, 96), (128, 128, 128)))
    submitted = client.explain([grey], model="vgg_mini", layer="conv2_1", kernels="top:32", iterations=5)
    assert submitted.progress.total is None
    job = submitted.wait()
    assert job.progress.total is not None
    assert 0 < job.progress.total < 32
    assert job.progress.completed == job.progress.total == len(job.results)
    assert all(result.status == "succeeded" for result in job.results)
