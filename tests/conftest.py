"""What several tests need: a private Redis, settings that touch nothing of the machine, pictures."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import SecretStr
from redis import Redis
from redis.exceptions import RedisError

from kernelscope.stack import free_port, redis_server
from shared.jobs import connect
from shared.settings import Settings

FULL = bool(os.environ.get("KERNELSCOPE_FULL_COUNTS"))  # as `make soak` asks; else reduced counts
PASSWORD = "private-to-the-tests"

# A shell that starts the tests in the background has them ignore Ctrl-C, and their children with them.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis of the tests' own, on a free port, with a password."""
    home = tmp_path_factory.mktemp("redis")
    port = free_port()
    options = ["--bind", "127.0.0.1", "--port", str(port), "--requirepass", PASSWORD, "--save", "", "--dir", str(home)]
    with subprocess.Popen([redis_server(), *options], stdout=subprocess.DEVNULL) as process:
        url = f"redis://:{PASSWORD}@127.0.0.1:{port}/0"
        _wait_for(url)
        yield url
        process.terminate()


def _wait_for(url: str) -> None:
    client = Redis.from_url(url)
    for _ in range(100):
        try:
            client.ping()
        except RedisError:
            time.sleep(0.05)
        else:
            client.close()
            return
    raise TimeoutError(url)


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    """A client of an empty database."""
    client = connect(redis_url)
    client.flushdb()
    yield client
    client.close()


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> Settings:
    """Settings that touch nothing but the test's own folder and Redis."""
    return Settings(
        _env_file=None,
        redis_url=SecretStr(redis_url),
        data_dir=tmp_path,
        store_url="",
        weights_dir=tmp_path / "weights",
        download_weights=False,
        preload=("vgg_mini",),
    )


def png(image: Image.Image, **options: object) -> bytes:
    """The bytes of a PNG."""
    return encoded(image, "PNG", **options)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    """The bytes of an image in some format."""
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    """A picture on which no kernel is silent."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
