"""The backup that docs/operations.md describes: Redis's append-only directory and the store, copied under load."""

from __future__ import annotations

import shutil
from pathlib import Path
from threading import Event, Thread

import httpx
import pytest
from redis import Redis

from shared.jobs import connect
from shared.jobs.repair import Repair
from tests.chaos.conftest import Plant, running, until, whole

pytestmark = pytest.mark.chaos


def test_a_backup_under_load_is_complete(plant: Plant, tmp_path: Path) -> None:
    """Ended jobs are unchanged, with their pictures; one that was running is finished on the copy."""
    plant.start_worker("worker")
    ended = [plant.submit("1,2") for _ in range(3)]
    before = plant.wait(ended, 60)
    enough = Event()
    load = Thread(target=_load, args=(plant, enough))
    load.start()
    running_then = plant.submit("1,2", layer="conv3_1", effort="standard", methods="guided_backprop,suppression")
    until(lambda: plant.job(running_then).progress.completed, 60)
    other = tmp_path / "other"
    with Redis.from_url(plant.redis_url, decode_responses=True) as redis:
        redis.config_set("auto-aof-rewrite-percentage", 0)
        until(lambda: redis.info("persistence")["aof_rewrite_in_progress"] == 0, 10)
        shutil.copytree(tmp_path / "appendonlydir", other / "appendonlydir")
        redis.config_set("auto-aof-rewrite-percentage", 100)
    assert not plant.job(running_then).status.terminal
    shutil.copytree(tmp_path / "store", other / "store", ignore=shutil.ignore_patterns("*#*"))
    enough.set()
    load.join()
    plant.close()
    with running(other, "worker") as restored:
        assert [restored.job(job_id) for job_id in ended] == before
        whole(restored.wait([running_then], 120)[0], 4)
        for job in before:
            path = job.results[0].artifacts["panel.png"]
            assert httpx.get(restored.url + path, timeout=30).content.startswith(b"\x89PNG")


def _load(plant: Plant, enough: Event) -> None:
    while not enough.wait(1):
        plant.submit("1")


def test_only_redis_or_only_the_store_is_restored(plant: Plant, tmp_path: Path) -> None:
    """With an older Redis, stored jobs are listed again; with an older store, the loss of files is reported."""
    plant.start_worker("worker")
    earlier = plant.submit()
    _archived(plant, earlier)
    shutil.copytree(tmp_path / "appendonlydir", tmp_path / "backup" / "appendonlydir")
    shutil.copytree(tmp_path / "store", tmp_path / "backup" / "store")
    later = plant.submit()
    _archived(plant, later)
    with connect(plant.redis_url, patience=10) as redis:
        records = plant.records(redis)
        for _ in range(2):  # a minute passes
            Repair(redis, records.store, records.archive).round()
    plant.close()
    old_redis, old_store = tmp_path / "old-redis", tmp_path / "old-store"
    for folder, redis_from, store_from in ((old_redis, "backup", "."), (old_store, ".", "backup")):
        shutil.copytree(tmp_path / redis_from / "appendonlydir", folder / "appendonlydir")
        shutil.copytree(tmp_path / store_from / "store", folder / "store", ignore=shutil.ignore_patterns("*#*"))
    with running(old_redis, "worker") as restored:
        until(lambda: _listed(restored) == {earlier, later}, 60)
        for job_id in (earlier, later, restored.submit()):
            whole(restored.wait([job_id], 60)[0], 1)
    with running(old_store, "worker") as restored:
        until(lambda: _listed(restored) == {earlier}, 60)
        for job_id in (earlier, restored.submit()):
            whole(restored.wait([job_id], 60)[0], 1)
        assert httpx.get(f"{restored.url}/jobs/{later}").status_code == 410
        assert "1 finished jobs are lost with their files" in (old_store / "housekeeping.log").read_text()


def _archived(plant: Plant, job_id: str) -> None:
    with connect(plant.redis_url, patience=10) as redis:
        until(lambda: plant.job(job_id).status.terminal and not redis.exists(f"ks:job:{job_id}"), 90)


def _listed(plant: Plant) -> set[str]:
    return {job["id"] for job in httpx.get(f"{plant.url}/jobs").json()["jobs"]}
