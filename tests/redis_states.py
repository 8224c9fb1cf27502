"""Puts Redis into states in which it responds with errors, and back."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from kernelscope.stack import redis_server

NOWHERE = "127.0.0.1", "1"
WRITES, ALL = "writes", "all"  # which commands fail


class Operator(Redis):  # type: ignore[misc]  # redis-py's types are not read
    """A client that keeps its connection when those of others are closed."""

    @classmethod
    def of(cls, url: str) -> Operator:
        """A connected client."""
        own = {"socket_timeout": 120, "retry": Retry(NoBackoff(), 0), "decode_responses": True}
        redis: Operator = cls.from_url(url, single_connection_client=True, **own)
        redis.ping()
        return redis

    @contextmanager
    def beside(self, *command: object) -> Iterator[None]:
        """In this context, another connection waits for this command."""
        with Redis(connection_pool=self.connection_pool) as other:
            thread = Thread(target=_ignoring, args=(lambda: other.execute_command(*command),))
            thread.start()
            time.sleep(0.5)
            try:
                yield
            finally:
                thread.join()


@contextmanager
def _configured(redis: Operator, **options: object) -> Iterator[None]:
    before = {name.replace("_", "-"): value for name, value in options.items()}
    old = {name: redis.config_get(name)[name] for name in before}
    for name, value in before.items():
        redis.config_set(name, value)
    try:
        yield
    finally:
        for name, value in old.items():
            redis.config_set(name, value)


@contextmanager
def _noreplicas(redis: Operator) -> Iterator[None]:
    with _configured(redis, min_replicas_to_write=1):
        yield


@contextmanager
def _oom(redis: Operator) -> Iterator[None]:
    with _configured(redis, maxmemory=1):
        yield


@contextmanager
def _misconf(redis: Operator) -> Iterator[None]:
    """It cannot save: a folder has the name of its file."""
    inside = Path(redis.config_get("dir")["dir"]) / redis.config_get("dbfilename")["dbfilename"] / "inside"
    inside.parent.unlink(missing_ok=True)
    inside.mkdir(parents=True)
    with _configured(redis, save="3600 100000"):
        redis.bgsave()
        _until(lambda: redis.info("persistence")["rdb_last_bgsave_status"] == "err")
        yield
        inside.rmdir()
        inside.parent.rmdir()
        redis.bgsave()
        _until(lambda: redis.info("persistence")["rdb_last_bgsave_status"] == "ok")


@contextmanager
def _readonly(redis: Operator) -> Iterator[None]:
    redis.replicaof(*NOWHERE)
    try:
        yield
    finally:
        redis.replicaof("NO", "ONE")


@contextmanager
def _masterdown(redis: Operator) -> Iterator[None]:
    with _configured(redis, replica_serve_stale_data="no"), _readonly(redis):
        yield


@contextmanager
def _busy(redis: Operator) -> Iterator[None]:
    """An endless script is running."""
    with _configured(redis, lua_time_limit=10), redis.beside("EVAL", "while true do end", 0):
        try:
            yield
        finally:
            redis.script_kill()


@contextmanager
def _loading(redis: Operator) -> Iterator[None]:
    """It reloads its file slowly, without loss of data."""
    filler = {f"filler:{number}": os.urandom(4000).hex() for number in range(800)}
    redis.mset(filler)
    slowly = _configured(redis, key_load_delay=50_000, loading_process_events_interval_bytes=1024)
    with slowly, redis.beside("DEBUG", "RELOAD"):
        try:
            yield
        finally:
            redis.config_set("key-load-delay", 0)
    redis.delete(*filler)


@contextmanager
def _wrongpass(redis: Operator) -> Iterator[None]:
    with _configured(redis, requirepass="another"):
        redis.client_kill_filter(_type="normal", skipme=True)
        yield


@contextmanager
def _maxclients(redis: Operator) -> Iterator[None]:
    with _configured(redis, maxclients=1):
        redis.client_kill_filter(_type="normal", skipme=True)
        redis.client_kill_filter(_type="pubsub", skipme=True)
        yield


State = Callable[[Operator], AbstractContextManager[None]]
STATES: Mapping[str, tuple[State, str]] = {
    "NOREPLICAS": (_noreplicas, WRITES),
    "MISCONF": (_misconf, WRITES),
    "OOM": (_oom, WRITES),
    "READONLY": (_readonly, WRITES),
    "MASTERDOWN": (_masterdown, ALL),
    "BUSY": (_busy, ALL),
    "LOADING": (_loading, ALL),
    "WRONGPASS": (_wrongpass, ALL),
    "maxclients": (_maxclients, ALL),
}


def options() -> list[str]:
    """Options with which tests start a redis-server."""
    said = subprocess.run([redis_server(), "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"v=(\d+)", said)
    return ["--enable-debug-command", "local"] if version and int(version[1]) >= 7 else []


def _ignoring(call: Callable[[], Any]) -> None:
    with suppress(RedisError):
        call()


def _until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timeout"
        time.sleep(0.05)
