"""Jobs for a network that workers cannot load: they wait for a while, then they fail and say why."""

from __future__ import annotations

import pytest
from redis import Redis

from shared.clock import STOPPED, now
from shared.jobs import Transitions
from shared.jobs.transitions import UNLOADABLE, UNLOADABLE_SECONDS
from shared.schemas import ExplainRequest, Status, plan
from shared.workers import NetworkState, WorkerState
from tests.conftest import records_of

NO_DOWNLOAD = NetworkState(available=False, reason="no weights for vgg19: none in the folder")
TEMPORARY = NetworkState(available=False, reason="no weights for vgg19: the download failed", failure="temporary")
FINAL = TEMPORARY.model_copy(update={"failure": "final"})
HAS_IT = NetworkState(available=True, reason="vgg19.pth in the weights folder", layers=["conv5_1"])


def workers(*states: NetworkState) -> list[WorkerState]:
    """A worker for each state of VGG-19."""
    return [
        WorkerState(id=str(number), device="cpu", started_at=0.0, ready=True, networks={"vgg19": state})
        for number, state in enumerate(states)
    ]


def submit(transitions: Transitions, name: str, **fields: object) -> None:
    """A job of two slices."""
    asked = {"images": ["0" * 64], "model": "vgg19", "layer": "conv5_1", "kernels": list(range(20)), **fields}
    request = ExplainRequest.model_validate(asked)
    transitions.submit(name, request, plan(request, 20_000), 2e9)


def failed_after(redis: Redis, seconds: float, *states: NetworkState) -> list[str]:
    """The slices that a round of housekeeping fails this long after the round before; each round by a new process."""
    redis.set(STOPPED, now(redis) + seconds)
    return Transitions(redis).fail_unloadable(workers(*states))


@pytest.mark.parametrize(
    "states",
    [[], [NO_DOWNLOAD], [TEMPORARY], [FINAL, TEMPORARY], [FINAL, HAS_IT]],
    ids=["no worker", "no download", "paused", "another tries", "another has it"],
)
def test_a_job_waits_while_a_worker_may_have_its_network(redis: Redis, states: list[NetworkState]) -> None:
    """Nothing fails while another worker has it or will try again, or where nobody has tried."""
    transitions = Transitions(redis)
    submit(transitions, "j")
    for _ in range(100):
        assert failed_after(redis, 2, *states) == []
    assert transitions.queued() == ["j:0", "j:1"]


def test_a_job_whose_network_cannot_be_loaded_fails_and_says_why(redis: Redis) -> None:
    """All of its items, and those of other jobs for it, also by rank; jobs for other networks still wait."""
    transitions, records = Transitions(redis), records_of(redis)
    submit(transitions, "j")
    submit(transitions, "ranks", kernels="top:2")
    submit(transitions, "another", model="vgg16")
    submit(transitions, "suspected")
    claim = transitions.claim("suspected:0")
    assert claim
    redis.hset("ks:slice:suspected:0", "strikes", 1)
    transitions.release(claim)
    assert failed_after(redis, 0, FINAL, NO_DOWNLOAD) == []
    failed = failed_after(redis, 60, FINAL, NO_DOWNLOAD)
    assert sorted(failed) == ["j:0", "j:1", "ranks:0", "suspected:0", "suspected:1"]
    assert transitions.queued() == ["another:0", "another:1"]
    for name, items in (("j", 20), ("ranks", 2)):
        job = records.whole(name)
        assert (job.status, job.failed_items) == (Status.FAILED, items)
        for result in job.results:
            assert result.error
            assert result.error.type.endswith("/problems/model-unavailable")
            assert result.error.detail == "vgg19 cannot be explained: no weights for vgg19: the download failed"


@pytest.mark.parametrize(
    ("state", "expected"),
    [(TEMPORARY, "vgg19, which a worker is trying to load again"), (FINAL, "a worker that can load vgg19")],
)
def test_a_job_says_what_it_waits_for_and_why(redis: Redis, state: NetworkState, expected: str) -> None:
    """The reason is that of the failed attempts."""
    transitions = Transitions(redis)
    submit(transitions, "j")
    transitions.note_unmet_needs(workers(NO_DOWNLOAD, state))
    assert records_of(redis).job("j").waiting_for == f"{expected}: no weights for vgg19: the download failed"


def test_jobs_outlive_the_restart_of_the_only_worker_that_has_their_network(redis: Redis) -> None:
    """It comes back before the minute is over; the next minute begins when it leaves again."""
    submit(Transitions(redis), "j")
    assert failed_after(redis, 0, FINAL, HAS_IT) == []
    for _ in range(2):
        for _ in range(29):
            assert failed_after(redis, 2, FINAL) == []
        assert failed_after(redis, 2, FINAL, HAS_IT) == []
    assert failed_after(redis, 2, FINAL) == []
    assert failed_after(redis, UNLOADABLE_SECONDS - 1, FINAL) == []
    assert failed_after(redis, 1, FINAL) == ["j:0", "j:1"]
    assert failed_after(redis, 2, FINAL) == []
    assert not redis.exists(UNLOADABLE)


def test_a_further_attempt_does_not_begin_the_minute_anew(redis: Redis) -> None:
    """With many workers, one is always trying; jobs fail between two attempts."""
    submit(Transitions(redis), "j")
    for _ in range(15):
        assert failed_after(redis, 2, FINAL, FINAL) == []
        assert failed_after(redis, 2, TEMPORARY, FINAL) == []
    assert failed_after(redis, 2, TEMPORARY, FINAL) == []
    assert failed_after(redis, 2, FINAL, FINAL) == ["j:0", "j:1"]


def test_a_pause_of_housekeeping_is_not_counted(redis: Redis) -> None:
    """A worker may have been there meanwhile: the times run out."""
    submit(Transitions(redis), "j")
    assert failed_after(redis, 0, FINAL) == []
    assert 0 < redis.ttl(UNLOADABLE) <= UNLOADABLE_SECONDS
    redis.delete(UNLOADABLE)  # they have run out
    assert failed_after(redis, UNLOADABLE_SECONDS + 1, FINAL) == []
    assert failed_after(redis, UNLOADABLE_SECONDS, FINAL) == ["j:0", "j:1"]
