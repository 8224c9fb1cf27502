"""A client that a generator of others makes from `openapi.json` does the main job."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.conftest import Plant, running
from tests.conftest import noise, png

pytestmark = [pytest.mark.slow, pytest.mark.contract]

ROOT = Path(__file__).parents[2]

# Written against the generated names only.
PROGRAM = """
import base64, sys
from kernelscope_client import Client
from kernelscope_client.api.explain import explain
from kernelscope_client.api.jobs import get_artifact
from kernelscope_client.api.jobs import get_job
from kernelscope_client.models import ExplainBody, ImageBytes, Job, Problem

url, picture = sys.argv[1], open(sys.argv[2], "rb").read()
source = ImageBytes(data=base64.b64encode(picture).decode())
with Client(base_url=url) as client:
    body = ExplainBody(images=[source], layer="conv2_2", kernels=[3], model="vgg_mini")
    job = explain.sync(client=client, body=body)
    assert isinstance(job, Job), job
    job = get_job.sync(job.id, client=client, prefer="wait=60")
    assert isinstance(job, Job), job
    (result,) = job.results
    name = result.artifacts["optimized.png"].rsplit("/", 1)[-1]
    answer = get_artifact.sync_detailed(job.id, result.index, name, client=client)
    wrong = explain.sync(client=client, body=ExplainBody(images=[source], layer="conv9_9", kernels=[3]))
    assert isinstance(wrong, Problem), wrong
    print(job.status, result.metrics.ssim > 0.9, answer.parsed.payload.read()[1:4].decode(), wrong.type_)
"""


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    """A running service with a real worker."""
    with running(tmp_path, "worker") as plant:
        yield plant


def test_a_generated_client_submits_waits_and_downloads(plant: Plant, tmp_path: Path) -> None:
    """And an error is an object, too."""
    config = tmp_path / "config.yml"
    config.write_text("package_name_override: kernelscope_client\npost_hooks: []\n")
    package = tmp_path / "generated"
    tool = Path(sys.executable).parent / "openapi-python-client"
    command = [str(tool), "generate", "--path", str(ROOT / "openapi.json"), "--config", str(config), "--meta", "none"]
    made = subprocess.run(
        [*command, "--output-path", str(package / "kernelscope_client")], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr
    assert "WARNING" not in made.stdout, made.stdout
    image, program = tmp_path / "image.png", tmp_path / "program.py"
    image.write_bytes(png(noise()))
    program.write_text(PROGRAM)
    ran = subprocess.run(
        [sys.executable, program, plant.url, image],
        env={**os.environ, "PYTHONPATH": str(package)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() == "succeeded True PNG /problems/unknown-layer"
