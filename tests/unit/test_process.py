"""A worker process, without Celery."""

from __future__ import annotations

import tempfile
import time
from threading import Event

import pytest
from redis import Redis

from shared.alive import alive
from shared.settings import Settings
from shared.workers import NetworkState, living
from worker.engine.dummy import DummyDevice
from worker.process import WorkerProcess


def test_the_heartbeat_and_the_other_networks_outlive_any_error(
    settings: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing weights folder, a network that cannot be built: logged, and the next heartbeat is sent."""
    process = WorkerProcess(settings.model_copy(update={"engine": "dummy"}), lambda *_: None)
    broken, loaded = Event(), list[str]()

    def states(_: DummyDevice) -> dict[str, NetworkState]:
        if not broken.is_set():
            broken.set()
            raise OSError("stale file handle")
        return {}

    def preload(_: DummyDevice, model: str) -> None:
        loaded.append(model)
        if model == "vgg16":
            raise AttributeError("a tensor that is none")

    monkeypatch.setattr(DummyDevice, "states", states)
    monkeypatch.setattr(DummyDevice, "preload", preload)
    process.settings = process.settings.model_copy(update={"preload": ("vgg16", "vgg_mini")})
    monkeypatch.setattr(tempfile, "tempdir", str(settings.data_dir))
    process.start()
    assert loaded == ["vgg16", "vgg_mini"]
    assert broken.wait(5)

    end = time.monotonic() + 10
    while not living(redis) and time.monotonic() < end:
        time.sleep(0.05)
    assert [worker.id for worker in living(redis)] == [process.id]
    assert alive("worker", 60)
    process.stopping.set()
    process.runner.leases.close()
    process.engine.close()
