"""Fixtures of several files: an engine, the job record, jobs that are run or ended by hand, a weights folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from redis import Redis

from shared.jobs import Records, Transitions
from shared.store import BlobStore
from tests.conftest import Clock
from tests.unit.ended_jobs import Desk

if TYPE_CHECKING:  # they import torch
    from tests.unit.job_bench import JobBench
    from worker.engine.device import TorchDevice
    from worker.engine.engine import Engine


@pytest.fixture(scope="module")
def device() -> TorchDevice:
    """The CPU, with `vgg_mini` only."""
    from tests.unit.weights_files import networks
    from worker.engine.device import TorchDevice

    return TorchDevice(networks(Path("/nonexistent")))


@pytest.fixture(scope="module")
def engine(device: TorchDevice) -> Iterator[Engine]:
    """An engine on that device."""
    from worker.engine.engine import Engine

    engine = Engine(device)
    yield engine
    engine.close()


@pytest.fixture
def transitions(redis: Redis, clock: Clock) -> Transitions:
    """Transitions with a stopped clock."""
    assert clock.now
    return Transitions(redis)


@pytest.fixture
def records(redis: Redis, tmp_path: Path) -> Records:
    """Read access to jobs."""
    return Records(redis, BlobStore(tmp_path.as_uri()))


@pytest.fixture
def bench(redis: Redis, tmp_path: Path) -> JobBench:
    """A bench with the test's Redis and store."""
    from tests.unit.job_bench import JobBench

    return JobBench(redis, BlobStore(tmp_path.as_uri()), tmp_path)


@pytest.fixture
def desk(redis: Redis, tmp_path: Path) -> Desk:
    """A record and a store of the test's own."""
    return Desk(redis, tmp_path)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Torch's cache, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def folder(tmp_path: Path, cache: Path) -> Path:
    """The weights folder, empty, beside torch's empty cache."""
    path = tmp_path / "weights"
    path.mkdir()
    return path
