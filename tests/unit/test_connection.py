"""Clients of a Redis that another takes the place of, and what the queue does with one that refuses."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest
from kombu.connection import Connection
from kombu.entity import Queue
from redis import Redis
from redis.exceptions import AuthenticationError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.connection import REASONS, connect, connect_async, redis_errors, refusal
from shared.errors import StoreUnavailable
from shared.queue import announce, make_celery
from tests.conftest import own_redis, refusing


class Name:
    """An address that leads to one Redis, and later to another; connections that there are stay where they are."""

    def __init__(self, target: int) -> None:
        self.target = target
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._listening.close()

    def _run(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self.target))
            for one, other in ((near, far), (far, near)):
                Thread(target=_pass, args=(one, other), daemon=True).start()


def _pass(one: socket.socket, other: socket.socket) -> None:
    try:
        while data := one.recv(65536):
            other.sendall(data)
    except OSError:
        pass
    for each in (one, other):
        each.close()


def port(url: str) -> int:
    """Of a URL of the tests' Redis."""
    return int(url.rpartition(":")[2].partition("/")[0])


@contextmanager
def failover(folder: Path) -> Iterator[tuple[str, Name, Redis, Redis]]:
    """The URL of a name, and the two that it leads to: first the old master, then the new one."""
    for each in ("old", "new"):
        (folder / each).mkdir()
    with (
        own_redis(folder / "old") as first,
        own_redis(folder / "new") as second,
        connect(first) as old,
        connect(second) as new,
    ):
        name = Name(port(first))
        try:
            yield first.replace(f":{port(first)}/", f":{name.port}/"), name, old, new
        finally:
            name.close()


def demote(name: Name, old: Redis, new: Redis) -> None:
    """The old master becomes a replica that has lost the link to its master, and the name leads to the new one."""
    old.replicaof("127.0.0.1", "1")
    name.target = port(f":{new.connection_pool.connection_kwargs['port']}/")


def test_a_write_finds_the_new_master(tmp_path: Path) -> None:
    """The first one, by itself, in a command, a script or a transaction: READONLY drops the connection."""
    with failover(tmp_path) as (url, name, old, new):
        clients = [connect(url, persistent=persistent) for persistent in (False, True, False, True)]
        for client in clients:
            client.set("before", "")
        demote(name, old, new)
        with redis_errors():
            clients[0].set("command", "")
            clients[1].eval("redis.call('SET', KEYS[1], '')", 1, "script")
            for client, key in zip(clients[2:], ("transaction", "another"), strict=True):
                client.pipeline().set(key, "").execute()
        assert new.exists("command", "script", "transaction", "another") == 4
        assert not new.exists("before")
        for client in clients:
            client.close()


def test_a_reader_on_an_event_loop_finds_it_too(tmp_path: Path) -> None:
    """Where it writes: rate limits, who watches."""

    async def go(url: str, name: Name, old: Redis, new: Redis) -> None:
        client = connect_async(url)
        await client.set("before", "")
        demote(name, old, new)
        with redis_errors():
            await client.set("after", "")
            await client.pipeline().set("then", "").execute()
        await client.aclose()

    with failover(tmp_path) as (url, name, old, new):
        asyncio.run(go(url, name, old, new))
        assert new.exists("after", "then") == 2


def test_messages_go_to_the_new_master(tmp_path: Path) -> None:
    """By the connection of the queue, which was open to the old one."""
    with failover(tmp_path) as (url, name, old, new):
        celery = make_celery(url)
        announce(celery, "job:0", "interactive")
        assert old.llen("interactive") == 1
        demote(name, old, new)
        announce(celery, "job:1", "interactive")
        assert new.llen("interactive") == 1
        celery.close()


def test_a_message_that_cannot_be_acknowledged_leaves_the_worker_running(redis_url: str, redis: Redis) -> None:
    """It is logged, as where Redis is away; else its place in the worker would be lost for good."""
    celery = make_celery(redis_url)
    announce(celery, "job:0", "interactive")
    taken = []
    connection: Connection
    with celery.connection_for_read() as connection:
        queue = Queue("interactive", routing_key="interactive")
        with connection.Consumer([queue], callbacks=[lambda _, message: taken.append(message)]):
            connection.drain_events(timeout=5)
        (message,) = taken
        with refusing(redis):
            message.ack_log_error(logging.getLogger("test"), connection.connection_errors)
        assert not message.acknowledged
    celery.close()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (AuthenticationError("Authentication required."), "NOAUTH"),
        (AuthenticationError("HELLO must be called with the client already authenticated, otherwise"), "NOAUTH"),
        (AuthenticationError("invalid username-password pair or user is disabled."), "WRONGPASS"),
        (RedisConnectionError("max number of clients reached"), "maxclients"),
        (RedisConnectionError("Error 1: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"), "certificate"),
        (ResponseError("Error running script: @user_script: 1: -READONLY You can't write"), "READONLY"),
        (ResponseError("MISCONF Redis is configured to save RDB snapshots"), "MISCONF"),
    ],
)
def test_errors_of_redis_are_explained(error: Exception, code: str) -> None:
    """Whichever class redis-py makes of it, and whichever version of Redis says it."""
    assert refusal(error) == code
    with pytest.raises(StoreUnavailable) as reported, redis_errors():
        raise error
    assert REASONS[code] in reported.value.detail
    assert reported.value.headers["Retry-After"]


def test_what_is_no_state_of_redis_has_no_code() -> None:
    """A connection that was refused; a command that is wrong."""
    assert refusal(RedisConnectionError("Error 111 connecting to 127.0.0.1:1. Connection refused.")) is None
    assert refusal(ResponseError("WRONGTYPE Operation against a key")) is None
