"""More than one machine: two with a worker, an API and a disk each, a third with Redis and the S3 store.

Each is a network namespace with an address of its own; pulling its cable makes every packet vanish without a word, as a
broken switch does.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from kernelscope.client import Client
from kernelscope.client.events import ResultEvent
from shared.jobs import connect
from shared.store import BlobStore
from tests.chaos.conftest import Plant, picture, until, whole
from tests.chaos.s3 import S3
from tests.conftest import FULL

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and iproute2"),
]

ROUNDS = 10 if FULL else 1
NUMBER = os.getpid() % 250


class Host:
    """A machine.

    Args:
        bridge: the network that its cable goes to.
        name: its namespace's.
        place: the last byte of its address.
    """

    def __init__(self, bridge: str, name: str, place: int) -> None:
        self.name = name
        self.address = f"10.213.{NUMBER}.{place}"
        self.inside = ["ip", "netns", "exec", f"{bridge}-{name}"]
        self._bridge, self._namespace, self._cable = bridge, f"{bridge}-{name}", f"{bridge}v{place}"

    def __enter__(self) -> Self:
        """Set it up."""
        _ip("netns", "add", self._namespace)
        _ip("link", "add", self._cable, "type", "veth", "peer", "name", "eth0", "netns", self._namespace)
        _ip("link", "set", self._cable, "master", self._bridge, "up")
        _ip("-n", self._namespace, "address", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", self._namespace, "link", "set", device, "up")
        return self

    def __exit__(self, *_: object) -> None:
        """Take it away."""
        _ip("link", "delete", self._cable)  # a namespace goes later than the command that deletes it
        _ip("netns", "delete", self._namespace)

    def cut(self) -> None:
        """Pull its cable."""
        _ip("link", "set", self._cable, "down")

    def join(self) -> None:
        """Plug it in again."""
        _ip("link", "set", self._cable, "up")


class Site:
    """The three machines and what runs there."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        bridge = f"ks{NUMBER}"
        _ip("link", "add", bridge, "type", "bridge")
        stack.callback(_ip, "link", "delete", bridge)
        _ip("address", "add", f"10.213.{NUMBER}.254/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        common, *self.hosts = (
            stack.enter_context(Host(bridge, name, place)) for place, name in enumerate(("common", "a", "b"), 1)
        )
        self.s3 = S3(folder / "s3", common.address, common.inside)
        stack.callback(self.s3.close)
        access = {"KERNELSCOPE_HOST": "0.0.0.0", "KERNELSCOPE_ACCESS": "open"}  # noqa: S104 - of the namespace
        self.plant = Plant(folder, common.address, **self.s3.environment, **access)
        stack.callback(self.plant.close)
        self.plant.start_redis(common.inside)
        for host in self.hosts:
            own = {"KERNELSCOPE_DATA_DIR": str(folder / host.name), "KERNELSCOPE_PORT": str(self.plant.api_port)}
            for program in ("api", "api.housekeeping", "worker"):
                name = f"{program}-{host.name}"
                self.plant.start(name, [*host.inside, sys.executable, "-m", program], own)
                self.plant.supervised.add(name)
        for host in self.hosts:
            until(partial(self.complete, host), 120)

    def url(self, host: Host) -> str:
        """Of its API."""
        return f"http://{host.address}:{self.plant.api_port}"

    def ready(self, host: Host) -> bool:
        """Whether its API is ready."""
        try:
            return httpx.get(f"{self.url(host)}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def complete(self, host: Host) -> bool:
        """Whether its API and its worker are ready."""
        self.plant.url = self.url(host)
        return self.ready(host) and self.plant.worker_ready(f"worker-{host.name}")

    def submit(self, host: Host) -> str:
        """Submit a job to this machine's API; returns its id."""
        with Client(self.url(host)) as client:
            own: dict[str, Any] = {"model": "vgg_mini", "layer": "conv3_1", "effort": "standard"}
            return client.explain([picture()], kernels="1,2,3,4", **own).id

    def works(self, host: Host) -> bool:
        """Whether its worker has claimed a slice."""
        suffix = f"-{self.plant.processes[f'worker-{host.name}'].pid}"
        with connect(self.plant.redis_url, patience=10) as redis:
            held = redis.zrange("ks:leases", 0, -1)
            return any((redis.hget(f"ks:slice:{one}", "worker") or "").endswith(suffix) for one in held)

    def shown(self, host: Host, job_id: str) -> list[int]:
        """The results in the event stream of its API, from the start of the job to its end."""
        with Client(self.url(host)) as client:
            return [event.result.index for event in client.job(job_id).events() if isinstance(event, ResultEvent)]

    def picture(self, host: Host, job_id: str) -> bytes:
        """X̂ of a job's first result, from its API."""
        with Client(self.url(host)) as client:
            path = client.job(job_id).results[0].artifacts["optimized.png"]
        return httpx.get(self.url(host) + path, timeout=30).raise_for_status().content


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A site that accepts jobs."""
    with ExitStack() as stack:
        site = Site(tmp_path, stack)
        for name, value in site.s3.environment.items():
            monkeypatch.setenv(name, value)
        site.s3.wait(BlobStore(site.s3.environment["KERNELSCOPE_STORE_URL"]))
        yield site


def test_a_machine_is_disconnected_and_returns(site: Site, record_property: Callable[[str, object], None]) -> None:
    """The other one takes over its work; when it is back, it works again; no result is lost or reported twice."""
    moments = random.Random(0)
    finished: list[float] = []
    back: list[float] = []
    for number in range(ROUNDS):
        victim, other = site.hosts[number % 2], site.hosts[1 - number % 2]
        jobs = [site.submit(host) for host in (victim, other) * 3]
        until(partial(site.works, victim), 60)
        time.sleep(moments.uniform(0, 1))
        victim.cut()
        begin = time.monotonic()
        jobs.append(site.submit(other))
        ended = site.plant.wait(jobs, 180)
        finished.append(round(time.monotonic() - begin, 1))
        assert not site.ready(victim)
        for job in ended:
            whole(job, 4)
        assert max(job.attempt for job in ended) == 2
        victim.join()
        back.append(round(until(partial(site.complete, victim), 120), 1))
        for job_id in jobs:
            for host in site.hosts:
                assert sorted(site.shown(host, job_id)) == [0, 1, 2, 3]
            assert site.picture(victim, job_id) == site.picture(other, job_id)
        again = site.submit(victim)
        whole(site.plant.wait([again], 60)[0], 4)
    record_property("rounds", ROUNDS)
    record_property("done_after_the_cut_seconds", finished)
    record_property("back_after_seconds", back)
    with connect(site.plant.redis_url) as redis:
        assert redis.zcard("ks:leases") == 0


def test_a_short_disconnection_changes_nothing(site: Site) -> None:
    """Five seconds: no other worker takes over, and the work is not restarted."""
    victim, other = site.hosts
    jobs = [site.submit(other) for _ in range(4)]
    until(partial(site.works, victim), 60)
    victim.cut()
    time.sleep(5)
    victim.join()
    for job in site.plant.wait(jobs, 120):
        whole(job, 4)
        assert job.attempt == 1


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
