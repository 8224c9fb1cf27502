"""An S3 store, served by a real process: bytes come back as they went; an outage loses nothing and fails nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from kernelscope.client import Client, ServerError
from shared.errors import StoreUnavailable
from shared.schemas import Status
from shared.store import BlobStore
from tests.chaos.conftest import picture, running, until, whole
from tests.chaos.s3 import S3
from tests.conftest import FULL

pytestmark = pytest.mark.chaos

OUTAGE_SECONDS = 60 if FULL else 25  # longer than a lease


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3]:
    """A server of the test's own."""
    server = S3(tmp_path / "s3")
    yield server
    server.close()


@pytest.fixture
def store(s3: S3, monkeypatch: pytest.MonkeyPatch) -> BlobStore:
    """A store there."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    store = BlobStore(s3.environment["KERNELSCOPE_STORE_URL"], patience=2)
    s3.wait(store)
    return store


def test_bytes_come_back_as_they_went(s3: S3, store: BlobStore) -> None:
    """None, one, and 20 MB; another program reads the same; removed, they are gone."""
    for data in (b"", b"x", os.urandom(20_000_000)):
        digest = store.put(data)
        assert store.get(digest) == data
        assert s3.other_view(digest) == data
        store.remove(digest)
        store.remove(digest)
        assert not store.has(digest)
        assert store.get(digest) is None


def test_a_store_that_is_away_is_found_out_soon(s3: S3, store: BlobStore) -> None:
    """Whether it says nothing or is not there; our error, not the library's."""
    digest = store.put(b"x")
    s3.stop()
    for action in (lambda: store.has(digest), lambda: store.get(digest), lambda: store.put(b"y")):
        begin = time.monotonic()
        with pytest.raises(StoreUnavailable):
            action()
        assert time.monotonic() - begin < 6
    s3.go_on()
    until(lambda: store.get(digest) == b"x", 10)
    s3.close()
    begin = time.monotonic()
    with pytest.raises(StoreUnavailable):
        store.has(digest)
    assert time.monotonic() - begin < 2


def test_an_outage_loses_nothing_and_fails_nothing(
    s3: S3, store: BlobStore, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """60 s (25 in a reduced run) in the middle of work: jobs wait, none is tried twice, the API says 503 meanwhile."""
    with running(tmp_path, "worker", **s3.environment) as plant:
        jobs = [plant.submit("1,2,3", effort="standard") for _ in range(4)]
        until(lambda: any(plant.job(job).progress.completed for job in jobs), 60)
        s3.stop()
        down = time.monotonic()
        until(lambda: plant.ready() == 503, 10)
        with Client(plant.url, patience=0, timeout=30) as client, pytest.raises(ServerError, match="object store"):
            client.explain([picture()], layer="conv1_1", kernels="1", model="vgg_mini")
        time.sleep(max(0.0, OUTAGE_SECONDS - (time.monotonic() - down)))
        s3.go_on()
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
