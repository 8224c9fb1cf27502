"""The Python client against a real server, and the examples of docs/client.md."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kernelscope import AsyncClient
from kernelscope.client import Client, JobFailed, NotFound, ProgressEvent, Result, ResultEvent, WaitTimeout
from kernelscope.stack import Stack
from shared.drawings import scene
from shared.schemas import Status
from tests.conftest import png

ROOT = Path(__file__).parents[2]
EXAMPLE = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)
MEASURED = re.compile(r"\d\.\d\d+")
EXAMPLES = EXAMPLE.findall((ROOT / "docs" / "client.md").read_text())
PICTURE = scene(11, 96).image
MINI: dict[str, Any] = {"model": "vgg_mini", "layer": "conv2_1"}


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_of_docs_client_md_prints_its_output(stack: Stack, tmp_path: Path, number: int) -> None:
    """In a folder with a photo.jpg, the server's URL in the environment; measured numbers may differ."""
    code, output = EXAMPLES[number]
    PICTURE.save(tmp_path / "photo.jpg")
    file = tmp_path / "example.py"
    file.write_text(code.replace("http://127.0.0.1:8000", stack.url))
    environment = {**os.environ, "KERNELSCOPE_URL": stack.url}
    command = [sys.executable, "-W", "error", str(file)]
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert ran.stderr == ""
    assert MEASURED.sub("#", ran.stdout.strip()) == MEASURED.sub("#", output.strip())


def test_every_form_of_an_image_is_the_same_image(client: Client, tmp_path: Path) -> None:
    """A path, bytes, a Pillow image, an array."""
    path = tmp_path / "one.png"
    PICTURE.save(path)
    forms: list[Any] = [path, str(path), png(PICTURE), PICTURE, np.asarray(PICTURE)]
    job = client.explain(forms, kernels=[3], methods="lrp", **MINI).wait().check()
    assert len({result.metrics.ssim for result in job.results if result.metrics}) == 1
    with pytest.raises(TypeError, match="channels come first"):
        client.explain(np.zeros((3, 64, 64)), kernels=1, **MINI)


def test_a_result_has_its_pictures_and_arrays(client: Client, tmp_path: Path) -> None:
    """As the docstrings say; downloaded once; saved by layer, kernel and method."""
    job = client.explain(PICTURE, kernels="top:1", methods=["suppression", "lrp"], effort="quick", **MINI).wait()
    ours, lrp = job.check().results
    assert isinstance(ours, Result)
    assert ours.optimized.size == ours.original.size == ours.contrast.size == (96, 96)
    assert ours.optimized_array.shape == np.asarray(ours).shape == (3, 96, 96)
    assert ours.maps["before"].shape == (48, 48)
    assert ours.history["columns"][0] == "iteration"
    assert ours.panel.width > 500
    assert job.explanations == job.results
    assert ours.optimized_array.dtype == np.float32
    assert lrp.file("optimized.png") is lrp.file("optimized.png")
    with pytest.raises(KeyError):
        ours.file("nothing.png")
    names = {path.name for path in job.save(tmp_path / "saved", ["optimized.png"])}
    kernel = ours.kernel
    assert names == {
        f"conv2_1-kernel{kernel}-suppression-optimized.png",
        f"conv2_1-kernel{kernel}-lrp-optimized.png",
        "job.json",
    }
    with Image.open(tmp_path / "saved" / f"conv2_1-kernel{kernel}-lrp-optimized.png") as picture:
        assert picture.size == (96, 96)
    assert job.bundle(tmp_path / "all.zip").stat().st_size > 10_000


def test_a_notebook_shows_pictures_and_escapes_texts(client: Client) -> None:
    """X̂ is a data URI."""
    job = client.explain(PICTURE, kernels="top:1", effort="quick", **MINI)
    assert "<img" not in job._repr_html_() or job.results
    job.wait()
    assert "data:image/png;base64," in job._repr_html_()
    assert "data:image/png;base64," in job.results[0]._repr_html_()
    broken = job.results[0].model_copy(update={"method": "<script>", "artifacts": {}})
    assert "<script>" not in broken._repr_html_()


def test_waiting_has_an_end_and_a_job_can_be_cancelled_and_removed(client: Client) -> None:
    """The job continues after the timeout; cancelled, it has failed; deleted, it is not found."""
    job = client.explain(PICTURE, kernels=[1, 2, 3], iterations=100_000, **MINI)
    with pytest.raises(WaitTimeout, match="continues"):
        job.wait(timeout=1)
    assert any(isinstance(event, ProgressEvent) for event, _ in zip(job.events(), range(4), strict=False))
    assert job.cancel().status is Status.CANCELLED
    with pytest.raises(JobFailed, match="cancelled"):
        job.check()
    assert job.id in [one.id for one in client.jobs(status="cancelled", model="vgg_mini")]
    job.delete()
    with pytest.raises(NotFound):
        job.refresh()


def test_the_same_key_is_the_same_job(client: Client) -> None:
    """A program that was interrupted can repeat its request."""
    first, second = (
        client.explain(PICTURE, kernels=[1], methods="lrp", idempotency_key="mine", **MINI) for _ in range(2)
    )
    assert first.id == second.id
    assert client.explain(PICTURE, kernels=[1], methods="lrp", **MINI).id != first.id


def test_the_asynchronous_client_does_the_same(stack: Stack, tmp_path: Path) -> None:
    """Explain, events, wait with progress, files, bundle, lists, cancel, delete."""

    async def story() -> None:
        async with AsyncClient(stack.url) as client:
            assert "vgg_mini" in [model.name for model in await client.models()]
            assert (await client.model("vgg_mini")).available
            job = await client.explain(PICTURE, kernels="top:1", effort="quick", **MINI)
            results = [event.result async for event in job.events() if isinstance(event, ResultEvent)]
            (own,) = (await job.wait()).check().results
            assert results == [own]
            assert (await own.optimized()).size == (await own.contrast()).size == (96, 96)
            assert (await own.optimized_array()).shape == (3, 96, 96)
            assert (await own.maps())["after"].shape == (48, 48)
            assert (await own.history())["rows"]
            assert "data:image/png" in own._repr_html_()
            assert len(await job.save(tmp_path)) == 5
            assert (await job.bundle(tmp_path / "all.zip")).stat().st_size > 10_000
            ranked = await client.activations(PICTURE, **MINI)
            assert (await ranked.wait()).results[0].ranking
            assert job.id in [one.id async for one in client.jobs()]
            long = await client.explain(PICTURE, kernels=[1], iterations=100_000, **MINI)
            assert (await long.cancel()).status is Status.CANCELLED
            await long.delete()
            with pytest.raises(NotFound):
                await long.refresh()

    asyncio.run(story())


def test_progress_is_followed_by_events(client: Client) -> None:
    """`on_change` is called while the job runs, with a fraction that never decreases, and at the end."""
    seen: list[tuple[Status, float]] = []
    job = client.explain(PICTURE, kernels="top:3", solver="reference", iterations=300, **MINI)
    job.wait(on_change=lambda now: seen.append((now.status, now.progress.fraction))).check()
    fractions = [fraction for _, fraction in seen]
    assert fractions == sorted(fractions)
    assert seen[-1] == (Status.SUCCEEDED, 1.0)
    assert any(0 < fraction < 1 for fraction in fractions)
