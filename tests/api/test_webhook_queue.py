"""The queue of webhooks: turns of callers, slow receivers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from redis import Redis

from api.jobs.deliveries import WebhookSender
from shared.webhooks import DUE, HOST_SHARE, MESSAGES, OWNER_SHARE, Webhooks


def left(redis: Redis, count: int, owner: str, url: str, since: float = 0.0) -> None:
    """Add messages of jobs that ended this many seconds ago."""
    for number in range(count):
        job_id, at = f"{owner}-{urlsplit(url).hostname}-{number}", time.time() - since
        message = {"url": url, "owner": owner, "status": "succeeded", "at": str(at)}
        redis.hset(MESSAGES, job_id, json.dumps(message))
        redis.zadd(DUE, {job_id: at})


class SlowReceivers:
    """Replaces the network: hosts named `slow…` respond when the test ends."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.end = threading.Event()

    def __call__(self, url: str, *_: object, **__: object) -> int:
        """The status of a response."""
        self.called.append(url)
        if "slow" in url:
            self.end.wait(30)
        return 204


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowReceivers]:
    """Receivers by host name."""
    receivers = SlowReceivers()
    monkeypatch.setattr("api.jobs.deliveries.post", receivers)
    yield receivers
    receivers.end.set()


def test_a_slow_receiver_does_not_delay_other_callers(redis: Redis, slow: SlowReceivers) -> None:
    """A thousand messages of one caller have been due for days; another caller's is sent at once."""
    left(redis, 1000, "ada", "http://slow.example/", since=100_000)
    left(redis, 100, "bob", "http://quick.example/", since=10)
    sender = WebhookSender(Webhooks(redis), private=True)
    begin = time.monotonic()
    while slow.called.count("http://quick.example/") < 100:
        sender.round()
        time.sleep(0.05)
        assert time.monotonic() - begin < 5
    assert slow.called.count("http://slow.example/") == HOST_SHARE
    slow.end.set()
    sender.close(30)


def test_callers_are_served_in_turn(redis: Redis) -> None:
    """The caller with the fewest running attempts is next, and none uses all threads."""
    for number in range(4):
        left(redis, 50, "ada", f"http://a{number}.example/", since=500)
    left(redis, 2, "bob", "http://b.example/")
    webhooks = Webhooks(redis)
    first = webhooks.take(4)
    assert sorted(each.owner for each in first) == ["ada", "ada", "bob", "bob"]
    more = webhooks.take(12, first)
    assert [each.owner for each in more] == ["ada"] * (OWNER_SHARE - 2)
    assert webhooks.take(4, [*first, *more]) == []


def test_a_slow_receiver_does_not_delay_others_of_its_caller(redis: Redis, slow: SlowReceivers) -> None:
    """Without keys, all jobs belong to one caller."""
    left(redis, 1000, "", "http://slow.example/", since=1000)
    left(redis, 1, "", "http://quick.example/")
    sender = WebhookSender(Webhooks(redis), private=True)
    begin = time.monotonic()
    while "http://quick.example/" not in slow.called:
        sender.round()
        time.sleep(0.05)
        assert time.monotonic() - begin < 5
    slow.end.set()
    sender.close(30)


def test_a_free_thread_sends_the_next_message(redis: Redis, slow: SlowReceivers) -> None:
    """So one round a second does not limit the rate to sixteen webhooks a second."""
    left(redis, 100, "", "http://quick.example/")
    sender = WebhookSender(Webhooks(redis), private=True)
    sender.round()
    begin = time.monotonic()
    while len(slow.called) < 100:
        time.sleep(0.01)
        assert time.monotonic() - begin < 5
    sender.close(30)
    assert not redis.exists(DUE, MESSAGES)
