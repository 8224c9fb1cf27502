"""Machines whose clocks are wrong: nothing but Redis's clock counts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from redis import Redis

from shared.jobs import Claim, Retention, Transitions
from shared.schemas import ExplainRequest, ItemResult, Status, plan
from tests.conftest import records_of

HOUR = 3600.0


@contextmanager
def off_by(seconds: float) -> Iterator[None]:
    """This machine's clock is wrong."""
    right = time.time
    with patch("time.time", lambda: right() + seconds):
        yield


def submit(transitions: Transitions, name: str, deadline_s: float | None = None) -> None:
    """A job of one kernel."""
    fields = {"images": ["0" * 64], "layer": "conv1_1", "kernels": [1], "deadline_s": deadline_s}
    request = ExplainRequest.model_validate(fields)
    transitions.submit(name, request, plan(request, 1), 1000)


def claimed(transitions: Transitions, name: str) -> Claim:
    """Its slice."""
    claim = transitions.claim(f"{name}:0")
    assert claim
    return claim


def test_machines_an_hour_apart_agree(redis: Redis) -> None:
    """A worker an hour behind, housekeeping an hour ahead: no lease lapses, no deadline passes, nothing expires."""
    one, other = Transitions(redis, lease_seconds=20), Transitions(redis, lease_seconds=20)
    with off_by(-HOUR):
        submit(one, "j")
        submit(one, "waiting", deadline_s=600)
        claim = claimed(one, "j")
        one.renew(claim, {})
    with off_by(HOUR):
        assert other.expire_leases(3) == []
        assert other.fail_overdue() == []
        assert other.unsent(["j:0", "waiting:0"], 15) == []
        assert Retention(other, records_of(redis)).expire() == 0
        assert 595 < (claimed(other, "waiting").seconds_left or 0) <= 600
    with off_by(-HOUR):
        one.commit(claim, ItemResult.of(claim.items[0], claim.request, 1), {}, "print")
        one.finish(claim)
    job = records_of(redis).whole("j")
    assert (job.status, job.attempt) == (Status.SUCCEEDED, 1)
    assert job.started_at
    assert job.finished_at
    assert job.created_at <= job.started_at <= job.finished_at
    assert abs(job.finished_at.timestamp() - time.time()) < 60
    assert 86_390 < redis.ttl("ks:same:print") <= 86_400
    with off_by(HOUR):
        assert other.wait_for(1) == one.wait_for(1) != 60  # what was done is seen by both
