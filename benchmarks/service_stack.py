"""The processes of `benchmarks.service`: a private stack, and a second API whose jobs no worker runs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks.random_weights import vgg16_file
from kernelscope.stack import Child, Stack, free_port
from shared import workers
from shared.jobs import connect
from shared.settings import Settings


def weights_folder(otherwise: Path) -> Path:
    """The folder of the environment, else one with random VGG-16 weights."""
    for name in ("KERNELSCOPE_WEIGHTS_DIR", "KERNELSCOPE_TEST_WEIGHTS"):
        if folder := os.environ.get(name):
            return Path(folder)
    vgg16_file(otherwise)
    return otherwise


@contextmanager
def stack_of(folder: Path, weights: Path) -> Iterator[Stack]:
    """A private stack in this folder."""
    settings = Settings(_env_file=None).model_copy(
        update={
            "data_dir": folder,
            "store_url": "",
            "weights_dir": weights,
            "download_weights": False,
            "preload": ("vgg_mini",),
            "host": "127.0.0.1",
            "port": free_port(),
        }
    )
    with Stack(settings, lambda line: print(line, file=sys.stderr)).running() as stack:
        yield stack


def unserved(stack: Stack, folder: Path) -> str:
    """Start a second API with housekeeping and its own Redis database, whose jobs no worker runs. Returns its address.

    The workers' states are copied to that database, so that the API validates requests against them.
    """
    port, url = str(free_port()), stack.environment["KERNELSCOPE_REDIS_URL"]
    other = f"{url.removesuffix('/0')}/1"
    here, there = connect(url), connect(other)
    for state in workers.living(here):
        workers.publish(there, state)
        there.persist(f"ks:worker:{state.id}")
    environment = {**stack.environment, "KERNELSCOPE_REDIS_URL": other, "KERNELSCOPE_PORT": port}
    for child in [child for child in stack.children if child.name in ("api", "housekeeping")]:
        second = Child(f"second-{child.name}", child.command, environment, folder / "logs" / f"second-{child.name}.log")
        second.start()
        stack.children.append(second)
    address = f"http://127.0.0.1:{port}"
    _until(lambda: _answers(address), "the second API")
    return address


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/readyz").is_success
    except httpx.TransportError:
        return False


def _until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} was not ready within {seconds:.0f} s")
        time.sleep(0.1)
