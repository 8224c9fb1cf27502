"""Versions that share Redis and store: data of an earlier one, and a later one that runs beside this one."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from kernelscope.client import Client
from shared import workers
from shared.jobs import connect
from shared.schemas import Status
from tests.chaos.conftest import Plant, picture, until, whole
from tests.forms import FORM_1, load

pytestmark = pytest.mark.chaos

DUMPED, IMAGE = 1_795_000_000, "a5df3fde7b200c3fa2791144c7e05c5c2bced4c6ad863d3a4cf76c972c1712f9"
RETENTION = 2_592_000
LIVE = {"d" * 32: 1, "e" * 32: 20}  # items of what waited and ran when the version changed
LATER = ("tests.chaos.doubles", "later")


@contextmanager
def on(folder: Path, form: dict[str, Any] | None = None) -> Iterator[Plant]:
    """A plant with only Redis, loaded with this data, and a store."""
    plant = Plant(folder, KERNELSCOPE_ENGINE="dummy", KERNELSCOPE_LEASE_SECONDS="3")
    try:
        plant.start_redis()
        if form:
            with connect(plant.redis_url, patience=10) as redis:
                load(form, redis, folder / "store")
        yield plant
        plant.audit()
    finally:
        plant.close()


def as_of_now(sent: bytes) -> dict[str, Any]:
    """The dump of form 1 as if it had been made a minute ago, of a real image."""
    digest, begun = sha256(sent).hexdigest(), time.time() - 60
    text = FORM_1.read_text().replace(f"blobs/{IMAGE[:2]}/", f"blobs/{digest[:2]}/").replace(IMAGE, digest)
    for seconds in (0, 20, 600, RETENTION):
        text = text.replace(f"{DUMPED + seconds}.0", str(begun + seconds))
    text = text.replace(f'"{DUMPED}"', f'"{begun}"')
    form: dict[str, Any] = json.loads(text)
    del form["store"][f"blobs/{digest[:2]}/{digest}"]
    return form


def test_jobs_of_the_earlier_version_continue(tmp_path: Path) -> None:
    """Queued and running jobs are finished by workers of this version; ended jobs are unchanged."""
    sent = picture()
    with on(tmp_path, as_of_now(sent)) as plant:
        digest = sha256(sent).hexdigest()
        file = tmp_path / "store" / "blobs" / digest[:2] / digest
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(sent)
        plant.start_worker("first")  # workers come first
        plant.start_service()
        for job, items in zip(plant.wait(list(LIVE), 90), LIVE.values(), strict=True):
            assert job.status is Status.SUCCEEDED, job.error
            assert [result.index for result in job.results] == list(range(items))
            silent = {result.kernel for result in job.results if result.status == "failed"}
            assert silent == {9, 19} & set(range(items))
        with Client(plant.url) as client:
            assert {client.job(letter * 32).status for letter in "ac"} == {Status.SUCCEEDED, Status.CANCELLED}
            listed = {job.id[0] for job in client.jobs()}
            assert listed == {"a", "c", "d", "e"}  # b is another caller's
            new = client.explain([sent], model="vgg16", layer="conv1_1", kernels=[7], iterations=9)
            assert new.wait().status is Status.SUCCEEDED
            for name in (*LIVE, "a" * 32, new.id):
                client.job(name).delete()
        with connect(plant.redis_url, patience=10) as redis:
            until(lambda: not kept(redis, "a" * 32, *LIVE), 60)


def test_a_later_version_runs_beside(tmp_path: Path) -> None:
    """Its additions to requests, records and results are ignored: all jobs are listed, ended, reported and retried."""
    with on(tmp_path) as plant:
        plant.start("housekeeping", [sys.executable, "-m", "api.housekeeping"])
        for number, command in enumerate([(), LATER]):
            plant.start_worker(f"worker{number}", *command)
        jobs: list[str] = []
        written: set[str] = set()
        for command in ((), (*LATER, "api"), ()):
            plant.start_api(*command)
            with Client(plant.url) as client:
                jobs += [
                    client.explain([picture()], model="vgg_mini", layer="conv2_1", kernels=kernels, iterations=20).id
                    for kernels in ([1, 2], [9], list(range(10, 15)), [3, 9], [4])
                ]
                plant.wait(jobs, 60)
                with connect(plant.redis_url, patience=10) as redis:
                    written |= {text for key in redis.scan_iter("ks:job:*:results") for text in redis.hvals(key)}
                    written |= {redis.hget(f"ks:job:{job_id}", "request") or "" for job_id in jobs}
                for job_id in jobs:
                    job = client.job(job_id).wait()
                    assert job.status in (Status.SUCCEEDED, Status.FAILED)
                    kernels = {result.kernel for result in job.results}
                    assert {result.kernel for result in job.results if result.status == "failed"} == {9} & kernels
                    for result in (one for one in job.results if one.status == "succeeded"):
                        assert client.file(result.artifacts["panel.png"]).startswith(b"\x89PNG")
                assert {job.id for job in client.jobs()} == set(jobs)
                assert "vgg_mini" in {model.name for model in client.models()}
                retried = client.job(jobs[-2])
                retried.retry()
                assert retried.wait().status is Status.SUCCEEDED
            plant.kill("api")
        with connect(plant.redis_url, patience=10) as redis:
            assert redis.hkeys("ks:networks") == ["strange"]
            assert len(workers.living(redis)) == len(redis.smembers("ks:workers")) - 1 == 2
        assert {'"lens": "wide"' in text for text in written if "index" not in text} == {True, False}
        assert {'"lens": {"focus": 3}' in text for text in written if "index" in text} == {True, False}
        whole(plant.wait(jobs[:1], 1)[0], 2)
        with connect(plant.redis_url, patience=10) as redis:
            until(lambda: redis.zcard("ks:finished") == 0, 90)  # all is in the archive, by this version's housekeeping
        found = [plant.job(job_id) for job_id in jobs]
        assert len(found) == len(jobs) == 15


def kept(redis: Redis, *jobs: str) -> list[str]:
    """Keys of these."""
    return [key for job_id in jobs for key in redis.scan_iter(f"ks:*{job_id}*") if "gone" not in key]
