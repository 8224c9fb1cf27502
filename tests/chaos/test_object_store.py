"""An S3 store, served by a real process: bytes come back as they went; an outage loses nothing and fails nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from botocore.exceptions import BotoCoreError, ClientError

from kernelscope.client import Client, ServerError
from kernelscope.stack import free_port
from shared.errors import StoreUnavailable
from shared.schemas import Status
from shared.store import BlobStore
from tests.chaos.conftest import FULL, Plant, picture, until, whole

pytestmark = pytest.mark.chaos

BUCKET = "kernelscope"
OUTAGE_SECONDS = 60 if FULL else 25  # longer than a lease


class S3:
    """moto's server, which speaks S3, as a process; stopped, it takes connections and says nothing."""

    def __init__(self) -> None:
        self.port = free_port()
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "KERNELSCOPE_STORE_URL": f"s3://{BUCKET}/lab",
        }
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(self._bucket_made, 30)

    def _bucket_made(self) -> bool:
        try:
            self.boto().create_bucket(Bucket=BUCKET)
        except (BotoCoreError, ClientError):
            return False
        return True

    def boto(self) -> Any:
        """Another program's view of it."""
        return boto3.client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            aws_access_key_id="key",
            aws_secret_access_key="secret",  # noqa: S106 - of a server that takes any
            region_name="us-east-1",
        )

    def signal(self, number: int) -> None:
        """To the process."""
        self.process.send_signal(number)

    def close(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()


@pytest.fixture
def s3() -> Iterator[S3]:
    """A server of the test's own."""
    server = S3()
    yield server
    server.close()


@pytest.fixture
def store(s3: S3, monkeypatch: pytest.MonkeyPatch) -> BlobStore:
    """A store there."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return BlobStore(s3.environment["KERNELSCOPE_STORE_URL"], patience=2)


def test_bytes_come_back_as_they_went(s3: S3, store: BlobStore) -> None:
    """None, one, and 20 MB; another program reads the same; removed, they are gone."""
    for data in (b"", b"x", os.urandom(20_000_000)):
        digest = store.put(data)
        assert store.get(digest) == data
        seen = s3.boto().get_object(Bucket=BUCKET, Key=f"lab/blobs/{digest[:2]}/{digest}")["Body"].read()
        assert seen == data
        store.remove(digest)
        store.remove(digest)
        assert not store.has(digest)
        assert store.get(digest) is None


def test_a_store_that_is_away_is_found_out_soon(s3: S3, store: BlobStore) -> None:
    """Whether it says nothing or is not there; our error, not the library's."""
    digest = store.put(b"x")
    s3.signal(signal.SIGSTOP)
    for action in (lambda: store.has(digest), lambda: store.get(digest), lambda: store.put(b"y")):
        begin = time.monotonic()
        with pytest.raises(StoreUnavailable):
            action()
        assert time.monotonic() - begin < 6
    s3.signal(signal.SIGCONT)
    until(lambda: store.get(digest) == b"x", 10)
    s3.close()
    begin = time.monotonic()
    with pytest.raises(StoreUnavailable):
        store.has(digest)
    assert time.monotonic() - begin < 2


def test_an_outage_loses_nothing_and_fails_nothing(
    s3: S3, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """60 s (25 in a reduced run) in the middle of work: jobs wait, none is tried twice, the API says 503 meanwhile."""
    folder = tmp_path / "plant"
    folder.mkdir()
    plant = Plant(folder, **s3.environment)
    try:
        plant.start_redis()
        plant.start_service()
        plant.start_worker("worker")
        jobs = [plant.submit("1,2,3", effort="standard") for _ in range(4)]
        until(lambda: any(plant.job(job).progress.completed for job in jobs), 60)
        s3.signal(signal.SIGSTOP)
        down = time.monotonic()
        until(lambda: plant.ready() == 503, 10)
        with Client(plant.url, patience=0, timeout=30) as client, pytest.raises(ServerError, match="object store"):
            client.explain([picture()], layer="conv1_1", kernels="1", model="vgg_mini")
        time.sleep(max(0.0, OUTAGE_SECONDS - (time.monotonic() - down)))
        s3.signal(signal.SIGCONT)
        up = time.monotonic()
        until(lambda: plant.ready() == 200, 20)
        ended = plant.wait(jobs, 120)
        record_property("outage_seconds", round(up - down))
        record_property("done_after_seconds", round(time.monotonic() - up, 1))
        for job in ended:
            whole(job, 3)
            assert job.status is Status.SUCCEEDED
            assert job.attempt == 1
            for result in job.results:
                assert httpx.get(plant.url + result.artifacts["panel.png"], timeout=30).content.startswith(b"\x89PNG")
    finally:
        plant.close()
