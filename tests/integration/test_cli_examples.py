"""Every example of every help text runs."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

from kernelscope.cli import app
from kernelscope.client import Client
from kernelscope.stack import Stack, free_port
from shared.datasets import DataSets
from shared.store import BlobStore
from tests.conftest import png
from tests.integration.cli import COMMAND, run, until_said
from worker.networks.vgg_mini import WEIGHTS_FILE

OWN_PROCESS = ("up", "demo")  # whose examples start a stack of their own, and take a while
AGENTS = "mcp"  # whose example talks to a program: tests/integration/test_mcp.py


def examples() -> Iterator[str]:
    """Every example of every command's help."""
    group = typer.main.get_group(app)
    groups = ("keys", "models", "datasets", "surveys")
    inner = [command for name in groups for command in group.commands[name].commands.values()]  # type: ignore[attr-defined]
    for command in [*group.commands.values(), *inner]:
        found = re.findall(r"Example: (kernelscope .*)", command.callback.__doc__ or "") if command.callback else []
        assert found or command.name in groups, f"{command.name} has no example"
        yield from found


def in_turn() -> Iterator[Any]:
    """Those that end by themselves; the slow ones need a survey."""
    for line in examples():
        if (name := line.split()[1]) not in (*OWN_PROCESS, AGENTS):
            yield pytest.param(line, marks=[pytest.mark.slow] if name in ("surveys", "export") else [])


@pytest.mark.parametrize("example", list(in_turn()))
def test_every_example_of_the_help_runs(folder: Path, stack: Stack, example: str) -> None:
    """Against a server that the environment names; a job's id is that of a job that runs."""
    with Client(stack.url) as client:
        if (verb := example.split()[1]) in ("get", "wait", "save", "delete"):
            job = client.explain(
                folder / "photo.jpg", layer="conv2_1", model="vgg_mini", kernels=3, methods="lrp"
            ).wait()
            example = example.replace("0123456789abcdef0123456789abcdef", job.id)
        if verb == "cancel":
            fields = {"layer": "conv3_1", "model": "vgg_mini", "kernels": "1,2", "iterations": 100_000}
            job = client.explain(folder / "photo.jpg", **fields)  # type: ignore[arg-type]
            example = example.replace("0123456789abcdef0123456789abcdef", job.id)
        if verb == "retry":  # of a grey picture, on which some kernels are silent
            grey = png(Image.new("RGB", (96, 96), (128, 128, 128)))
            job = client.explain(grey, layer="conv2_1", model="vgg_mini", kernels=range(32), methods="lrp").wait()
            assert job.failed_items
            example = example.replace("0123456789abcdef0123456789abcdef", job.id)
        if "keys revoke" in example or "keys secret" in example:
            assert run(folder, "keys", "add", "lab").returncode == 0
        example = of_a_data_set(client, stack, of_a_survey(client, stack, folder, example))
        if "birds" in example:
            shutil.copy(WEIGHTS_FILE, folder / "birds.safetensors")
        if "models remove" in example:
            added = ("--arch", "vgg_mini", "--weights", "birds.safetensors")
            assert run(folder, "models", "add", "birds", *added).returncode == 0
        arguments = [file for word in shlex.split(example)[1:] for file in expanded(folder, word)]
        ran = run(folder, *arguments, KERNELSCOPE_URL=stack.url if "doctor" not in arguments else "")
        assert "Traceback" not in ran.stderr
        assert ran.returncode == 0 or ("doctor" in arguments and ran.returncode == 1), ran.stderr
        assert ran.stdout
        if "--json" in arguments:
            json.loads(ran.stdout)
        if verb == "cancel":
            assert client.job(job.id).status == "cancelled"
    if verb == "save" or (verb == "explain" and "--detach" not in arguments):
        assert list(folder.rglob("*-panel.png"))


def expanded(folder: Path, word: str) -> list[str]:
    """As a shell does it."""
    return [str(file.relative_to(folder)) for file in folder.glob(word)] if "*" in word else [word]


def of_a_data_set(client: Client, stack: Stack, example: str) -> str:
    """With the id of one, and the server's data folder where an operator's rights are needed."""
    if "datasets delete" in example or "datasets publish" in example:
        example = example.replace("0123456789abcdef0123456789abcdef", client.create_dataset("photos").id)
    return f"{example} --data-dir {shlex.quote(str(stack.settings.data_dir))}" if "publish" in example else example


def of_a_survey(client: Client, stack: Stack, folder: Path, example: str) -> str:
    """With a survey of the data set that it names, and its id; one that is published is of public images."""
    if example.split()[1] not in ("surveys", "export"):
        return example
    birds = next((one for one in client.datasets() if one.name == "birds"), None) or client.create_dataset("birds")
    client.add_images(birds.id, {"photo.jpg": (folder / "photo.jpg").read_bytes()})
    job = client.survey(birds.id, model="vgg_mini", layers=["conv2_2"]).wait().check()
    if "publish" in example:
        DataSets(BlobStore(stack.settings.store), 100).publish(birds.id)
    return example.replace("0123456789abcdef0123456789abcdef", job.id)


@pytest.mark.slow
@pytest.mark.parametrize("example", [line for line in examples() if line.split()[1] in OWN_PROCESS])
def test_the_examples_that_start_something_run(folder: Path, example: str) -> None:
    """`up` until Ctrl-C, on a port that is free here; `demo` to its end."""
    arguments = shlex.split(example.replace("8080", str(free_port())).replace("/tmp/figures", "figures"))[1:]
    environment = {**os.environ, "KERNELSCOPE_DATA_DIR": str(folder / "data"), "KERNELSCOPE_DOWNLOAD_WEIGHTS": "false"}
    with (folder / "said.txt").open("w") as said:
        process = subprocess.Popen([*COMMAND, *arguments], cwd=folder, env=environment, stdout=said, stderr=said)
        if "up" in arguments:
            until_said(folder / "said.txt", "listens on")
            process.send_signal(signal.SIGINT)
        assert process.wait(240) == 0
