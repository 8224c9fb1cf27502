"""Reading event streams in tests."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from httpx import Client

from api.jobs import feeds, responses


@dataclass
class Event:
    """An event as a client receives it."""

    id: str
    kind: str
    data: dict[str, Any]


@contextmanager
def reading(client: Client, path: str, last: str | None = None) -> Iterator[Iterator[Event]]:
    """A job's events, as they arrive."""
    headers = {"Last-Event-ID": last} if last else {}
    with client.stream("GET", path, headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        yield parsed(answer.iter_lines())


def parsed(lines: Iterator[str]) -> Iterator[Event]:
    """The events in the lines of a stream."""
    fields: dict[str, str] = {}
    for line in lines:
        if line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value
        elif not line and fields:
            yield Event(fields.get("id", ""), fields["event"], json.loads(fields["data"]))
            fields = {}


@contextmanager
def later(seconds: float, action: Callable[[], object]) -> Iterator[None]:
    """Run an action after a delay, while the context continues; wait for it at the end."""
    thread = threading.Timer(seconds, action)
    thread.start()
    yield
    thread.join()


@contextmanager
def hurried(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.2) -> Iterator[None]:
    """Shorten the intervals of 15 s."""
    monkeypatch.setattr(feeds, "KEEPALIVE_SECONDS", seconds)
    monkeypatch.setattr(responses, "KEEPALIVE_SECONDS", seconds)
    monkeypatch.setattr(responses, "RECHECK_SECONDS", seconds)
    yield
