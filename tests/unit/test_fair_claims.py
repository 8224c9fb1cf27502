"""Which slice a worker gets: callers take turns, and a worker gets slices that it can run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from redis import Redis

from shared.jobs import Caller, Claim, Transitions
from shared.schemas import ExplainRequest, plan
from shared.workers import NetworkState, WorkerState
from tests.conftest import Clock, records_of


def submit(transitions: Transitions, name: str, owner: str, kernels: int = 1, **fields: object) -> None:
    """Submit a job of this caller."""
    asked = {"images": ["0" * 64], "layer": "conv3_3", "kernels": list(range(kernels)), **fields}
    request = ExplainRequest.model_validate(asked)
    transitions.submit(name, request, plan(request, 20_000), 2e9, caller=Caller(owner))


def taken(transitions: Transitions, runs: Callable[[str], bool] = lambda _: True, queue: str = "interactive") -> str:
    """The slice that a worker gets; None if there is none for it."""
    claim = transitions.next(queue, "worker", runs).claim  # type: ignore[arg-type]
    return claim.slice_id if claim else ""


def test_a_thousand_slices_of_one_key_delay_another_key_s_job_by_one(transitions: Transitions, clock: Clock) -> None:
    """The caller that was served longest ago is next, whatever the others have waiting."""
    for number in range(1000):
        submit(transitions, f"many{number}", "many")
        clock.now += 0.001
    assert [taken(transitions) for _ in range(3)] == ["many0:0", "many1:0", "many2:0"]
    submit(transitions, "one", "one")
    assert "one:0" in [taken(transitions), taken(transitions)]


def test_big_jobs_of_two_keys_share_their_queue(transitions: Transitions, clock: Clock) -> None:
    """Slice by slice, each caller's oldest first."""
    for name in ("a1", "a2", "b1"):
        submit(transitions, name, name[0], kernels=48)
        clock.now += 1
    found = [taken(transitions, queue="bulk") for _ in range(9)]
    assert [name[0] for name in found] == list("ababab" + "aaa")
    assert [name for name in found if name[0] == "a"] == [f"a{job}:{part}" for job in (1, 2) for part in range(3)]


def test_who_comes_back_has_no_more_than_a_turn(transitions: Transitions) -> None:
    """A caller that submits a job after each claim does not starve those with many waiting slices."""
    for number in range(4):
        submit(transitions, f"many{number}", "many")
    order = []
    for number in range(6):
        submit(transitions, f"quick{number}", "quick")
        order.append(taken(transitions)[0])
    assert "".join(order) in {"mqmqmq", "qmqmqm"}


def test_slices_that_no_worker_can_run_delay_no_others(transitions: Transitions, clock: Clock) -> None:
    """It blocks neither other callers nor its own."""
    for number in range(50):
        submit(transitions, f"lost{number}", "a", model="vgg19", layer="conv5_1")
    clock.now += 1
    submit(transitions, "mine", "a")
    has_vgg16 = {"vgg16 conv3_3"}.__contains__
    assert taken(transitions, has_vgg16) == "mine:0"
    last = transitions.next("interactive", "worker", has_vgg16)
    assert (last.claim, last.waiting, last.unannounced) == (None, 50, 50)
    assert taken(transitions).startswith("lost")


def test_messages_in_the_broker_count(transitions: Transitions, redis: Redis) -> None:
    """So that a worker knows whether there are too few messages."""
    for number in range(4):
        submit(transitions, f"j{number}", "a")
    redis.rpush("interactive", "message", "message")
    found = transitions.next("interactive", "worker")
    assert (found.waiting, found.unannounced) == (3, 1)


def test_a_claim_whose_answer_was_lost_is_given_again(
    transitions: Transitions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client submits twice: one slice, not two."""
    for number in range(2):
        submit(transitions, f"j{number}", "a")
    monkeypatch.setattr("shared.jobs.waiting.secrets.token_hex", lambda _: "token")
    first, second = (transitions.next("interactive", "worker").claim for _ in range(2))
    assert first == second
    assert len(transitions.queued()) == 1
    assert first
    transitions.release(first)  # and by then it is somebody else's
    monkeypatch.setattr("shared.jobs.waiting.secrets.token_hex", lambda _: "another")
    assert transitions.claim(first.slice_id, "another worker")
    monkeypatch.setattr("shared.jobs.waiting.secrets.token_hex", lambda _: "token")
    assert transitions.next("interactive", "worker").claim is None


def as_of_an_earlier_version(redis: Redis, name: str) -> None:
    """A queued job of version 0.1: its items are in the slice, and it is in no bucket."""
    items = '[{"index":0,"image":0,"kernel":0,"rank":null,"method":"suppression","alpha":1.0,"beta":1.0}]'
    redis.hset(f"ks:slice:{name}:0", "items", items)
    redis.hdel(f"ks:slice:{name}:0", "bucket")
    redis.hdel(f"ks:job:{name}", "needs")
    redis.delete(*redis.keys("ks:waiting:*"), *redis.keys("ks:turns:*"), "ks:buckets:interactive")


def test_what_an_earlier_version_has_queued_is_found_by_its_message(transitions: Transitions, redis: Redis) -> None:
    """Its items remain as they were written."""
    submit(transitions, "old", "a")
    as_of_an_earlier_version(redis, "old")
    assert taken(transitions) == ""
    claim = transitions.next("interactive", "worker", {"vgg16 conv3_3"}.__contains__, "old:0").claim
    assert claim
    assert [item.kernel for item in claim.items] == [0]


def test_what_an_earlier_version_has_taken_is_not_given_twice(transitions: Transitions, redis: Redis) -> None:
    """Its claim leaves the slice where it waited."""
    submit(transitions, "taken", "a")
    submit(transitions, "left", "a")
    redis.hset("ks:slice:taken:0", mapping={"status": "running", "token": "theirs"})
    redis.zrem("ks:queued:interactive", "taken:0")
    assert [taken(transitions), taken(transitions)] == ["left:0", ""]
    assert redis.keys("ks:waiting:*") == redis.keys("ks:turns:*") == redis.keys("ks:buckets:*") == []
    redis.hset("ks:slice:taken:0", mapping={"status": "queued", "token": ""})  # and gives it back
    redis.zadd("ks:queued:interactive", {"taken:0": 0})
    claim = transitions.next("interactive", "worker", announced="taken:0").claim
    assert claim
    assert claim.slice_id == "taken:0"
    assert redis.zcard("ks:queued:interactive") == 0


def test_a_job_says_what_it_waits_for(transitions: Transitions, redis: Redis) -> None:
    """A network or layer that no worker has, or any worker; None once there is one."""
    submit(transitions, "j", "a", model="vgg19", layer="conv5_1")
    records = records_of(redis)

    def reported(*workers: WorkerState) -> str | None:
        transitions.note_unmet_needs(workers)
        return records.job("j").waiting_for

    assert records.job("j").waiting_for is None
    assert reported() == "a worker: none is connected"
    assert reported(worker("conv1_1")) == "a worker with vgg19 conv5_1: none of the connected ones has it"
    assert reported(worker("conv1_1"), worker("conv5_1")) is None
    assert redis.ttl("ks:lacking") < 0
    claim = transitions.claim("j:0")
    assert isinstance(claim, Claim)
    assert reported() is None  # it runs


def worker(layer: str) -> WorkerState:
    """A worker whose weights of VGG-19 cover a layer."""
    networks = {"vgg19": NetworkState(available=True, reason="", layers=[layer])}
    return WorkerState(id=layer, device="cpu", started_at=0.0, ready=True, networks=networks)
