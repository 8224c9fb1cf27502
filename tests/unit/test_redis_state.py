"""A Redis that responds with errors, and one that may evict keys."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from shared import alive
from shared.connection import redis_errors
from shared.errors import StoreUnavailable
from shared.jobs import connect
from shared.redis_state import Memory, check
from tests.conftest import own_redis, refusing

FULL = {"used_memory": 95, "maxmemory": 100}


def refused(redis: Redis, code: str) -> None:
    """A write, alone, in a script and in a transaction, raises StoreUnavailable with Redis's code."""
    program = "return redis.call('SET', KEYS[1], '')"
    writes: list[Callable[[], object]] = [
        lambda: redis.set("a", ""),
        lambda: redis.eval(program, 1, "a"),
        lambda: redis.pipeline().set("a", "").execute(),
    ]
    for write in writes:
        with pytest.raises(StoreUnavailable, match=code), redis_errors():
            write()


def test_a_redis_without_its_replicas(redis: Redis) -> None:
    """As after a failover; reading works, and so does everything afterwards."""
    with refusing(redis):
        refused(redis, "NOREPLICAS")
        assert redis.get("a") is None
        with pytest.raises(StoreUnavailable, match="NOREPLICAS"):
            check(redis)
    assert check(redis) == []


def test_a_redis_that_became_a_replica_and_one_that_is_full(tmp_path: Path) -> None:
    """READONLY, OOM; a full Redis can be read, and readiness reports it."""
    with own_redis(tmp_path) as url, connect(url) as redis:
        redis.config_set("maxmemory", 1)
        refused(redis, "OOM")
        assert "no more jobs are accepted" in check(redis)[0]
        redis.config_set("maxmemory", 0)
        redis.replicaof("127.0.0.1", "1")
        refused(redis, "READONLY")


def test_a_redis_whose_disk_was_removed(tmp_path: Path) -> None:
    """MISCONF: it could not save, and rejects every write."""
    home = tmp_path / "redis"
    home.mkdir()
    with own_redis(home, "--save", "3600 1") as url, connect(url) as redis:
        redis.set("a", "")
        shutil.rmtree(home)
        redis.bgsave()
        end = time.monotonic() + 30
        while redis.info("persistence")["rdb_last_bgsave_status"] == "ok" and time.monotonic() < end:
            time.sleep(0.05)
        refused(redis, "MISCONF")


def test_a_command_that_is_wrong_stays_a_bug(redis: Redis) -> None:
    """Its error is not translated."""
    redis.set("a", "")
    with pytest.raises(ResponseError, match="WRONGTYPE"), redis_errors():
        redis.lpush("a", "OOM")


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random"])
def test_a_redis_that_may_remove_jobs_takes_none(policy: str) -> None:
    """However empty it is; the message has the right policy."""
    with pytest.raises(StoreUnavailable, match=f"{policy}.*noeviction"):
        Memory.of({**FULL, "used_memory": 1, "maxmemory_policy": policy}).check()


def test_evicted_keys_are_reported(tmp_path: Path) -> None:
    """Until Redis's counter is reset, whatever its policy is now."""
    with own_redis(tmp_path, "--maxmemory", "3mb", "--maxmemory-policy", "allkeys-lru") as url, connect(url) as redis:
        for number in range(400):
            redis.set(f"key:{number}", "x" * 10_000)
        redis.config_set("maxmemory-policy", "noeviction")
        redis.config_set("maxmemory", "100mb")
        evicted = redis.info("stats")["evicted_keys"]
        assert evicted > 0
        (reported,) = check(redis)
        assert reported.startswith(f"{evicted} keys were evicted")
        redis.config_resetstat()
        assert check(redis) == []


def test_warnings_about_memory() -> None:
    """A policy that evicts expiring keys; a Redis that is nearly full; no warning without a limit."""
    first, second = Memory.of({**FULL, "maxmemory_policy": "volatile-lru"}).check()
    assert "volatile-lru" in first
    assert "95%" in second
    assert Memory.of({**FULL, "used_memory": 50, "maxmemory_policy": "noeviction"}).check() == []
    unlimited = Memory.of(
        {"used_memory": 5, "maxmemory": 0, "total_system_memory": 10, "maxmemory_policy": "allkeys-lru"}
    )
    assert unlimited.check() == []
    assert unlimited.ratio == 0.5
    assert Memory.of({"used_memory": 5}).ratio == 0


def test_liveness_of_a_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """For some seconds after its last round; not before its first."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert not alive.alive("housekeeping", 300)
    alive.beat("housekeeping")
    assert alive.alive("housekeeping", 300)
    (file,) = tmp_path.iterdir()
    os.utime(file, (time.time() - 400, time.time() - 400))
    assert not alive.alive("housekeeping", 300)
    tmp_path.chmod(0o500)
    alive.beat("housekeeping")
    tmp_path.chmod(0o700)
    alive.stop("housekeeping")
    alive.stop("housekeeping")
    assert list(tmp_path.iterdir()) == []
