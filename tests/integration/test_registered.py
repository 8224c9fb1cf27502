"""A registered network while the stack runs: explained by client and command line, and removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from kernelscope.client import Client, ServerError
from kernelscope.stack import Stack
from shared.drawings import scene
from shared.schemas import Method, Status
from tests.conftest import png
from tests.integration.conftest import ROOT
from worker.networks.vgg_mini import WEIGHTS_FILE, VggMini

PICTURE, OTHER = (png(scene(number, 96).image) for number in (5, 6))
ASKED: dict[str, Any] = {"layer": "conv2_2", "kernels": "top:2", "effort": "quick"}
SECONDS = 60.0


def until_available(client: Client, name: str = "birds", *, available: bool) -> None:
    """Wait for the workers' next heartbeat."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if any(one.name == name and one.available is available for one in client.models()):
            return
        time.sleep(0.2)
    raise AssertionError([(one.name, one.reason) for one in client.models()])


def test_a_twin_is_explained_as_the_original(stack: Stack, client: Client, tmp_path: Path) -> None:
    """It was trained on BGR pixels from 0 to 255, so X̂ is the same, kernel by kernel; then it is removed."""
    folder = stack.settings.weights
    folder.mkdir(exist_ok=True)
    state = load_file(WEIGHTS_FILE)
    state["features.0.weight"] = state["features.0.weight"].flip(1).contiguous()
    save_file(state, folder / "birds.safetensors")
    mean, std = ([255 * one for one in reversed(numbers)] for numbers in (VggMini.MEAN, VggMini.STD))
    (folder / "networks.toml").write_text(
        f'[birds]\narch = "vgg_mini"\nweights = "birds.safetensors"\nrange = "0-255"\norder = "bgr"\n'
        f'mean = {mean}\nstd = {std}\ntitle = "Birds"\n'
    )
    try:
        until_available(client, available=True)
        job, original = (
            client.explain([PICTURE, OTHER], model=model, **ASKED).wait() for model in ("birds", "vgg_mini")
        )
        assert job.status is Status.SUCCEEDED
        for mine, theirs in zip(job.results, original.results, strict=True):
            assert mine.kernel == theirs.kernel
            assert not mine.reused
            assert mine.weights
            assert (mine.weights.source, mine.weights.architecture) == ("birds.safetensors", "vgg_mini")
            assert str(mine.weights.preprocessing).startswith("BGR from 0 to 255, mean 127.5")
            assert mine.losses
            assert theirs.losses
            assert mine.losses.total == pytest.approx(theirs.losses.total, rel=0.05)
        command = [sys.executable, "-m", "kernelscope", "explain", "photo.png", "-m", "birds", "-l", "conv2_2", "-k"]
        (tmp_path / "photo.png").write_bytes(PICTURE)
        ran = subprocess.run(
            [*command, str(job.results[0].kernel), "--effort", "quick", "--url", stack.url],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "PATH": "", "COLUMNS": "300"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert "birds: birds.safetensors, input normalised: BGR from 0 to 255" in ran.stdout
    finally:
        (folder / "networks.toml").unlink()
    until_available(client, available=False)
    with pytest.raises(ServerError, match="no connected worker has it"):
        client.explain([PICTURE], model="birds", **ASKED)
    assert client.file(job.results[0].artifacts["sweep.png"]).startswith(b"\x89PNG")
    assert json.loads(client.file(f"/jobs/{job.id}/consistency"))["final"]


def test_one_in_the_object_store(stack: Stack, client: Client, tmp_path: Path) -> None:
    """By the command on a running stack; a second one with other weights; then both are removed."""
    folder = str(stack.settings.data_dir)
    state = load_file(WEIGHTS_FILE)
    for name in ("first", "second"):
        save_file(state, tmp_path / f"{name}.safetensors")
        models(
            "add", name, "--arch", "vgg_mini", "--weights", f"{name}.safetensors", "--data-dir", folder, cwd=tmp_path
        )
        state["features.0.bias"] = state["features.0.bias"] + 0.1
    for name in ("first", "second"):
        until_available(client, name, available=True)
    jobs = [client.explain([PICTURE], model=name, **ASKED).wait() for name in ("first", "second")]
    assert [job.status for job in jobs] == [Status.SUCCEEDED] * 2
    save_file(state, tmp_path / "second.safetensors")  # another for the same name: what has loaded it starts anew
    models(
        "add",
        "second",
        "--arch",
        "vgg_mini",
        "--weights",
        "second.safetensors",
        "--replace",
        "--data-dir",
        folder,
        cwd=tmp_path,
    )
    deadline = time.monotonic() + 90
    while not any(child.dead for child in stack.children):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    stack.watch()
    until_available(client, "second", available=True)
    last = client.explain([PICTURE], model="second", **ASKED).wait()
    assert last.status is Status.SUCCEEDED
    assert last.results[0].weights != jobs[1].results[0].weights
    used = [job.results[0].weights for job in jobs]
    assert [one.source for one in used if one] == ["first.safetensors", "second.safetensors"]
    assert used[0] != used[1]
    assert used[0]
    assert used[0].preprocessing
    assert used[0].preprocessing.assumed  # the file that was saved here says nothing
    for name in ("first", "second"):
        assert "has been removed" in models("remove", name, "--data-dir", folder, cwd=tmp_path)
        until_available(client, name, available=False)
    assert list((stack.settings.data_dir / "store" / "networks").rglob("*.*")) == []


def test_one_that_sees_grey(stack: Stack, client: Client, tmp_path: Path) -> None:
    """16-bit grey and non-square: registered by the command, explained, and every file fetched."""
    folder = str(stack.settings.data_dir)
    state = load_file(WEIGHTS_FILE)
    state["features.0.weight"] = state["features.0.weight"].sum(1, keepdim=True)
    save_file(state, tmp_path / "xray.safetensors")
    options = ("--mean", "0.5", "--std", "0.25", "--channels", "1", "--size", "96x128", "--resize", "crop")
    files = ("--weights", "xray.safetensors", "--data-dir", folder)
    reported = models("add", "xray", "--arch", "vgg_mini", *files, *options, cwd=tmp_path)
    assert "fed GREY from 0 to 1, mean 0.5, std 0.25, the centre of the image" in reported
    until_available(client, "xray", available=True)
    model = client.model("xray")
    assert (model.input_size, model.channels) == ((96, 128), 1)
    grey = np.asarray(scene(5, 256).image.convert("L")).astype(np.uint16) * 257
    image = png(Image.fromarray(grey))
    ranked = client.activations(image, model="xray", layer="conv2_2").wait()
    methods: list[Method] = ["evidence", "lrp"]
    job = client.explain([image, OTHER], model="xray", layer="conv2_2", kernels="top:1", methods=methods).wait()
    assert [one.status for one in (ranked, job)] == [Status.SUCCEEDED] * 2
    for result in (*ranked.results, *job.results):
        for name, url in result.artifacts.items():
            data = client.file(url)
            assert not name.endswith(".png") or min(Image.open(BytesIO(data)).size) >= 56, name
    made = Image.open(BytesIO(client.file(job.results[0].artifacts["optimized.png"])))
    assert (made.mode, made.size) == ("L", (128, 96))
    assert Image.open(BytesIO(client.file(f"/jobs/{job.id}/contact_sheet.png"))).mode == "RGB"
    models("remove", "xray", "--data-dir", folder, cwd=tmp_path)
    until_available(client, "xray", available=False)


def models(*arguments: str, cwd: Path) -> str:
    """The output of `kernelscope models`."""
    command = [sys.executable, "-m", "kernelscope", "models", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=True).stdout
