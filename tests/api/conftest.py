"""The API on a real socket with the tests' Redis, and fixtures for a worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from redis import Redis

from api.__main__ import Server
from api.app import create_app
from kernelscope.stack import free_port
from shared import workers
from shared.catalogue import networks
from shared.jobs import Polling, Records, Transitions, connect
from shared.jobs.claims import QUEUES
from shared.settings import Settings
from shared.store import BlobStore
from shared.workers import NetworkState, WorkerState
from worker.engine.dummy import DummyDevice
from worker.engine.engine import Engine
from worker.jobs.leases import LeaseRenewer
from worker.jobs.runner import SliceRunner

COVERED = ["conv1_1", "conv1_2", "conv2_1", "conv2_2"]


@contextmanager
def serving(settings: Settings, app: FastAPI | None = None) -> Iterator[httpx.Client]:
    """The API in a thread, and a client of it."""
    port = free_port()
    server = Server(
        uvicorn.Config(
            app or create_app(settings),
            port=port,
            log_level="error",
            timeout_graceful_shutdown=2,
            proxy_headers=False,
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow test machine must not look like an unavailable Redis."""
    monkeypatch.setattr("api.services.REDIS_TIMEOUT", 5.0)


@pytest.fixture
def client(settings: Settings, redis: Redis) -> Iterator[httpx.Client]:
    """A client of an API with the test's settings."""
    with serving(settings) as client:
        yield client


@pytest.fixture
def worker(redis: Redis) -> WorkerState:
    """A worker with VGG-16 up to conv2_2, all of vgg_mini, and no other weights."""
    states = {name: NetworkState(available=False, reason=f"no weights for {name}") for name in networks()}
    states["vgg16"] = NetworkState(
        available=True, reason="in the folder", source="vgg16-part.safetensors", layers=COVERED
    )
    mini = [layer.name for layer in networks()["vgg_mini"].layers]
    states["vgg_mini"] = NetworkState(available=True, reason="bundled", source="vgg_mini.safetensors", layers=mini)
    state = WorkerState(
        id="w1", device="cpu", started_at=time.time(), ready=True, networks=states, version="0.1.0 (abc)"
    )
    workers.publish(redis, state)
    return state


class InlineWorker:
    """A worker without a network, Celery or a process: `work` runs what is queued."""

    def __init__(self, settings: Settings, redis: Redis) -> None:
        self.transitions = Transitions(redis)
        self.engine = Engine(DummyDevice())
        self.runner = SliceRunner(
            engine=self.engine,
            leases=LeaseRenewer(self.transitions, self.engine, on_hang=lambda: None),
            records=Records(redis, BlobStore(settings.store)),
            transitions=self.transitions,
            store=BlobStore(settings.store),
            worker="inline_worker",
            max_pixels=10**8,
            announce=lambda *_: None,
        )

    def work(self) -> None:
        """Run everything that is queued."""
        for queue in QUEUES:
            for _ in range(len(self.transitions.queued())):
                self.runner.run(queue)

    def close(self) -> None:
        """Stop."""
        self.runner.leases.close()
        self.engine.close()


def polling_of(settings: Settings) -> Polling:
    """Asynchronous access to the job record."""
    url = settings.redis_url.get_secret_value()
    return Polling(url, Records(connect(url), BlobStore(settings.store)))


@pytest.fixture
def inline_worker(settings: Settings, redis: Redis) -> Iterator[InlineWorker]:
    """A worker that is run by the test."""
    inline_worker = InlineWorker(settings, redis)
    yield inline_worker
    inline_worker.close()


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a survey have several parts of few images."""
    monkeypatch.setattr("shared.surveys.store.PART_IMAGES", 4)


@dataclass
class Receiver:
    """A server that receives webhooks and responds with the statuses that the test gives."""

    answers: list[int] = field(default_factory=list)
    calls: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver on a loopback address."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.calls.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(receiver.answers.pop(0) if receiver.answers else 204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield receiver
        server.shutdown()
