"""Two checkpoints of one architecture, registered on a stack that runs, with an S3 store and two workers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from kernelscope.client import Client, Job, ServerError
from shared.drawings import scene
from tests.chaos.conftest import ROOT, Plant, until
from tests.chaos.s3 import planted
from worker.networks.vgg_mini import WEIGHTS_FILE

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

PICTURE = scene(5, 96).image


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plant]:
    """Redis, a SeaweedFS, API and housekeeping, and two workers, which are started again when they end."""
    with planted(tmp_path, monkeypatch, "first", "second") as plant:
        yield plant


def command(plant: Plant, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m worker.networks.register`, as an operator runs it."""
    environment = {**os.environ, **plant.environment, "PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-m", "worker.networks.register", *arguments]
    return subprocess.run(call, cwd=plant.folder, env=environment, capture_output=True, text=True, check=False)


def added(plant: Plant, name: str, file: str) -> str:
    """The command's output after adding a network, or the reason why it could not."""
    ran = command(plant, "add", name, "--arch", "vgg_mini", "--weights", file)
    return ran.stdout if ran.returncode == 0 else f"refused: {ran.stderr}"


def explained(client: Client, model: str) -> Job:
    """Explain one kernel of the network."""
    job = client.explain([PICTURE], model=model, layer="conv2_2", kernels=[5, 3], iterations=30).wait()
    assert job.status == "succeeded", job.results
    return job


def test_two_checkpoints_side_by_side(plant: Plant) -> None:
    """Each worker has both, and one that joins later; one panel shows both; a removed one is removed everywhere."""
    state = load_file(WEIGHTS_FILE)
    for name in ("epoch1", "epoch2"):
        save_file(state, plant.folder / f"{name}.safetensors")
        state["features.0.bias"] = state["features.0.bias"] + 0.2
        assert "workers have it within seconds" in added(plant, name, f"{name}.safetensors")
    with Client(plant.url) as client:
        for name in ("epoch1", "epoch2"):
            until(lambda: available(client, name), 60)  # noqa: B023
        one, other = (explained(client, name) for name in ("epoch1", "epoch2"))
        assert one.results[0].weights != other.results[0].weights
        path = f"/jobs/{one.id}/artifacts/0/panel.png"
        alone, both = (picture(client, path + query) for query in ("", f"?beside={other.id}"))
        assert both.width == alone.width
        assert both.height > 1.8 * alone.height
        (plant.folder / "panel.png").write_bytes(client.file(f"{path}?beside={other.id}"))
        for wrong, words in (
            (f"/jobs/{one.id}/artifacts/0/optimized.png?beside={other.id}", "panel.png"),
            (f"{path}?beside={'0' * 32}", "0" * 32),
            (f"{path}?beside=x", "32 hexadecimal digits"),
        ):
            with pytest.raises(ServerError, match=words):
                client.file(wrong)
        plant.start_worker("third")
        for name in ("first", "second"):
            plant.supervised.discard(name)
            plant.kill(name)
        until(lambda: available(client, "epoch2"), 60)
        late = explained(client, "epoch2")  # by the worker that has joined later
        assert late.results[0].weights == other.results[0].weights
        assert late.results[0].losses == other.results[0].losses
        assert command(plant, "remove", "epoch1").returncode == 0
        until(lambda: not available(client, "epoch1"), 60)
        with pytest.raises(ServerError, match="no connected worker has it any more"):
            explained(client, "epoch1")
        for name in ("third", "redis", "housekeeping", "api"):  # all of the machine but the store
            plant.kill(name)
        plant.start_redis()
        plant.start_service()
        until(lambda: not available(client, "epoch2"), 60)  # no worker is there
        plant.start_worker("fourth")
        until(lambda: available(client, "epoch2"), 60)
        assert not available(client, "epoch1")
        assert explained(client, "epoch2").results[0].losses == other.results[0].losses
        assert picture(client, f"{path}?beside={other.id}").size == both.size  # what was explained stays


def test_invalid_checkpoints_are_rejected_with_the_reason(plant: Plant) -> None:
    """NaN, another shape, half a file, ten gigabytes; and nothing is in the store afterwards."""
    state = load_file(WEIGHTS_FILE)
    folder = plant.folder
    save_file({**state, "features.0.bias": state["features.0.bias"] * torch.nan}, folder / "nan.safetensors")
    save_file({**state, "features.0.bias": torch.zeros(5)}, folder / "shape.safetensors")
    whole = WEIGHTS_FILE.read_bytes()
    (folder / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    with (folder / "large.safetensors").open("wb") as file:
        file.truncate(10 * 2**30)
    for name, words in (
        ("nan", "features.0.bias holds NaN or infinity"),
        ("shape", "features.0.bias is 5, not 16"),
        ("half", "damaged"),
        ("large", "GB"),
    ):
        reported = added(plant, name, f"{name}.safetensors")
        assert reported.startswith("refused: ")
        assert words in reported, reported
    with Client(plant.url) as client:
        names = {model.name for model in client.models()}
    assert not names & {"nan", "shape", "half", "large"}


def available(client: Client, name: str) -> bool:
    """Whether the network is available."""
    return any(model.name == name and model.available for model in client.models())


def picture(client: Client, path: str) -> Image.Image:
    """A file, as a picture."""
    return Image.open(BytesIO(client.file(path)))
