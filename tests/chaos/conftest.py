"""A plant, an installation to break: processes of Redis with an append-only file, workers, API and housekeeping."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any
from unittest.mock import patch

import httpx
import numpy as np
import pytest
from PIL import Image
from redis import Redis
from redis.exceptions import RedisError

from kernelscope.client import Client
from kernelscope.stack import free_port, redis_server
from shared import workers
from shared.drawings import scene
from shared.jobs import Records, Retention, Transitions, connect, retention
from shared.schemas import Status, WholeJob
from shared.store import SHARDS, BlobStore
from tests.chaos.audit import WITHOUT_RECORD, faults
from tests.conftest import noise, png

ROOT = Path(__file__).parents[2]
PASSWORD = "private-to-the-tests"
AUDIT_SECONDS = 30.0  # that a plant has to bring to its end what it was doing
WALK_AFTER = 5.0  # when nothing else is being done any more


class Plant:
    """Processes by name; those that are supervised are started again when they die.

    Args:
        folder: of their files.
        host: the address that Redis and API listen on.
        environment: more of it, for all of them.
    """

    def __init__(self, folder: Path, host: str = "127.0.0.1", **environment: str) -> None:
        self.folder = folder
        self.host = host
        self.redis_port, self.api_port = free_port(), free_port()
        self.redis_url = f"redis://:{PASSWORD}@{host}:{self.redis_port}/0"
        self.url = f"http://{host}:{self.api_port}"
        self.environment = {
            "KERNELSCOPE_REDIS_URL": self.redis_url,
            "KERNELSCOPE_DATA_DIR": str(folder),
            "KERNELSCOPE_STORE_URL": (folder / "store").as_uri(),
            "KERNELSCOPE_WEIGHTS_DIR": str(folder / "weights"),
            "KERNELSCOPE_DOWNLOAD_WEIGHTS": "false",
            "KERNELSCOPE_PRELOAD": "vgg_mini",
            "OMP_NUM_THREADS": "1",  # two workers on two cores
            **environment,
        }
        self.commands: dict[str, tuple[Sequence[str], Mapping[str, str]]] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.supervised: set[str] = set()
        self._closing = Event()
        self._supervisor = Thread(target=self._supervise, daemon=True)
        self._supervisor.start()

    def start_redis(self, inside: Sequence[str] = (), options: Sequence[str] = (), *, wait: bool = True) -> None:
        """Start Redis on its existing data, optionally inside another command and with more options."""
        own = ["--bind", self.host, "--port", str(self.redis_port), "--requirepass", PASSWORD, "--save", ""]
        durable = ["--dir", str(self.folder), "--appendonly", "yes", "--appendfsync", "always"]
        self.start("redis", [*inside, redis_server(), *own, *durable, *options])
        if wait:
            until(self.redis_answers, 30)

    def start_service(self) -> None:
        """Start API and housekeeping, and wait until they are ready."""
        self.start("housekeeping", [sys.executable, "-m", "api.housekeeping"])
        self.start_api()

    def start_api(self, *command: str) -> None:
        """Start the API, optionally by another command, and wait until it is ready."""
        own = [sys.executable, "-m", *(command or ("api",))]
        self.start("api", own, {"KERNELSCOPE_PORT": str(self.api_port)})
        until(lambda: self.ready() == 200, 30)

    def start_worker(self, name: str, *command: str, supervised: bool = False, **environment: str) -> None:
        """Start a worker, and wait until it is ready for jobs."""
        self.start(name, [sys.executable, "-m", *(command or ("worker",))], environment)
        if supervised:
            self.supervised.add(name)
        until(lambda: self.worker_ready(name), 90)

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Start a process; its output is in `NAME.log`."""
        self.commands[name] = command, environment or {}
        with (self.folder / f"{name}.log").open("ab") as log:
            own = {**os.environ, **self.environment, **(environment or {})}
            self.processes[name] = subprocess.Popen(command, cwd=ROOT, env=own, stdout=log, stderr=log)

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal, kill −9 by default; after a kill −9, wait for the end."""
        self.processes[name].send_signal(number)
        if number == signal.SIGKILL:
            self.processes[name].wait()

    def ready(self) -> int:
        """The status of `/readyz`; 0 without a response."""
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code
        except httpx.TransportError:
            return 0

    def worker_ready(self, name: str) -> bool:
        """Whether this worker is ready."""
        suffix = f"-{self.processes[name].pid}"
        with connect(self.redis_url, patience=10) as redis:  # the API tells strangers no names
            return any(worker.ready and worker.id.endswith(suffix) for worker in workers.living(redis))

    def submit(self, kernels: str = "1", **fields: str) -> str:
        """Submit a job on a new picture; returns its id."""
        own: dict[str, Any] = {"model": "vgg_mini", "layer": "conv2_1", "effort": "quick", **fields}
        with Client(self.url) as client:
            return client.explain([picture()], kernels=kernels, **own).id

    def job(self, job_id: str) -> WholeJob:
        """The job as stored."""
        with connect(self.redis_url, patience=10) as redis:
            return self.records(redis).whole(job_id)

    def records(self, redis: Redis) -> Records:
        """Read access to jobs."""
        return Records(redis, BlobStore(self.environment["KERNELSCOPE_STORE_URL"]))

    def wait(self, job_ids: Sequence[str], seconds: float) -> list[WholeJob]:
        """Wait until all jobs have ended; returns them."""
        with connect(self.redis_url, persistent=True) as redis:
            records = self.records(redis)
            jobs: dict[str, WholeJob] = {}
            deadline = time.monotonic() + seconds
            while len(jobs) < len(job_ids):
                jobs.update(
                    (job.id, job) for job in map(records.whole, set(job_ids) - set(jobs)) if job.status.terminal
                )
                assert time.monotonic() < deadline, f"{len(job_ids) - len(jobs)} jobs of {len(job_ids)} are not done"
                time.sleep(0.1)
        return [jobs[job_id] for job_id in job_ids]

    def audit(self) -> None:
        """Wait for pending work, then check that nothing is lost, duplicated or left over."""
        store = self.environment["KERNELSCOPE_STORE_URL"]
        if not store.startswith("file:") or not self.redis_answers():
            return
        with connect(self.redis_url, persistent=True) as redis:
            begin = time.monotonic()
            while found := faults(redis, BlobStore(store)):
                assert time.monotonic() < begin + AUDIT_SECONDS, found
                if time.monotonic() > begin + WALK_AFTER and all(WITHOUT_RECORD in one for one in found):
                    self._walk(redis)
                time.sleep(0.5)

    def _walk(self, redis: Redis) -> None:
        """The walk through the store, as if a day had passed: it finds what was stored for a job that never was.

        A process leaves such files that was killed over a submission, or could not tell Redis that they are late.
        """
        with patch.object(retention, "ORPHAN_AFTER", 0.0):
            for shard in SHARDS:
                Retention(Transitions(redis), self.records(redis)).remove_orphans(shard)

    def close(self) -> None:
        """Kill everything."""
        self._closing.set()
        self._supervisor.join()
        for process in self.processes.values():
            process.kill()
            process.wait()

    def redis_answers(self) -> bool:
        """Whether Redis responds."""
        try:
            with Redis.from_url(self.redis_url) as redis:
                return bool(redis.ping())
        except RedisError:
            return False

    def _supervise(self) -> None:
        while not self._closing.wait(0.2):
            for name in list(self.supervised):
                if self.processes[name].poll() is not None:
                    self.start(name, *self.commands[name])


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    """A plant with Redis, API and housekeeping; the test starts the workers that it wants."""
    with running(tmp_path) as plant:
        yield plant


@contextmanager
def running(folder: Path, *workers: str, **environment: str) -> Iterator[Plant]:
    """As `plant`, with workers and an environment."""
    folder.mkdir(exist_ok=True)
    plant = Plant(folder, **environment)
    try:
        plant.start_redis()
        plant.start_service()
        for worker in workers:
            plant.start_worker(worker)
        yield plant
        plant.audit()
    finally:
        plant.close()


def picture() -> bytes:
    """A new picture on which the kernels of `vgg_mini` are active."""
    seed = int.from_bytes(os.urandom(4))
    pixels = np.asarray(scene(seed, 96).image, dtype=np.int16) + np.asarray(noise(96, 96, seed)) // 16
    return png(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))


def until(condition: Callable[[], object], seconds: float) -> float:
    """Wait for a condition; returns the seconds it took."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds, f"it did not happen in {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - begin


def whole(job: WholeJob, items: int) -> None:
    """Checks that the job has succeeded, with one result for each item."""
    assert job.status is Status.SUCCEEDED, job.error
    assert [result.index for result in job.results] == list(range(items))
    assert all(result.status == "succeeded" for result in job.results), job.results
    assert job.progress.completed == items
