"""`retry` runs the failed items of an ended job again, and nothing else."""

from __future__ import annotations

from itertools import pairwise

import pytest
from redis import Redis

from shared.errors import JobNotFound, NothingToRetry, QuotaExceeded, SilentKernel
from shared.jobs import Caller, Transitions
from shared.schemas import ExplainRequest, ItemResult, Status, plan
from shared.webhooks import Webhooks
from tests.conftest import Clock, records_of

BLOBS = {"optimized.png": "f" * 64}
HOOK = "https://lab.example/hook"


def submit(transitions: Transitions, kernels: object = None, **fields: object) -> None:
    """Submit a job, of 20 kernels in two slices by default."""
    wanted = list(range(20)) if kernels is None else kernels
    request = ExplainRequest.model_validate({"images": ["0" * 64], "layer": "conv1_1", "kernels": wanted, **fields})
    transitions.submit("j", request, plan(request, 100), 2e9)


def run(transitions: Transitions, slice_id: str, *, failing: tuple[int, ...] = (), skipped: int = 0) -> list[int]:
    """Finish a slice: these items fail, the last ranks have no kernel. Returns what was run, by index."""
    claim = transitions.claim(slice_id)
    assert claim
    assert claim.attempt == 1
    items = claim.items[: len(claim.items) - skipped]
    if isinstance(claim.request.kernels, str):
        transitions.resolve(claim, claim.items[len(items) :])
    for item in items:
        result = ItemResult.of(item, claim.request, item.index)
        error = SilentKernel("silent")
        transitions.commit(
            claim, result.failed(error) if item.index in failing else result, {"optimized.png": "f" * 64}
        )
    transitions.finish(claim)
    return [item.index for item in items]


def test_only_what_has_failed_is_run_again(transitions: Transitions, redis: Redis) -> None:
    """Counts, status, times and events are those of an unfinished job."""
    records = records_of(redis)
    submit(transitions)
    run(transitions, "j:0", failing=(3, 5))
    run(transitions, "j:1")
    kept = {result.index: result for result in records.whole("j").results if result.index not in {3, 5}}
    assert transitions.retry("j") == [("j:0", "bulk")]
    job = records.whole("j")
    assert (job.status, job.attempt, job.failed_items, job.started_at, job.finished_at) == ("queued", 0, 0, None, None)
    assert (job.progress.completed, job.progress.total, len(job.results)) == (18, 20, 18)
    assert run(transitions, "j:0", failing=(5,)) == [3, 5]
    job = records.whole("j")
    assert (job.status, job.failed_items, job.progress.completed) == (Status.SUCCEEDED, 1, 20)
    assert {result.index: result for result in job.results if result.index in kept} == kept
    assert [result.index for result in job.results] == list(range(20))
    assert transitions.retry("j") == [("j:0", "bulk")]
    assert run(transitions, "j:0") == [5]
    states = [entry.split()[1] for entry in redis.lrange("ks:job:j:log", 0, -1) if entry.startswith("status")]
    assert states == ["queued", "running", "succeeded"] * 3
    assert redis.scard("ks:open:") == redis.zcard("ks:leases") == 0


def test_what_cannot_be_retried_is_refused(transitions: Transitions) -> None:
    """With the reason."""
    with pytest.raises(JobNotFound):
        transitions.retry("nobody")
    submit(transitions, [1, 2])
    with pytest.raises(NothingToRetry, match="still queued"):
        transitions.retry("j")
    run(transitions, "j:0")
    with pytest.raises(NothingToRetry, match="job j has no failed items"):
        transitions.retry("j")


def test_a_cancelled_job_is_not_retried(transitions: Transitions) -> None:
    """It was cancelled on purpose."""
    submit(transitions)
    run(transitions, "j:0", failing=(3,))
    transitions.cancel("j")
    with pytest.raises(NothingToRetry, match="was cancelled"):
        transitions.retry("j")


def test_a_retry_takes_room_in_the_queue(transitions: Transitions) -> None:
    """Like a new job."""
    submit(transitions)
    run(transitions, "j:0", failing=(3,))
    run(transitions, "j:1", failing=(17,))
    with pytest.raises(QuotaExceeded):
        transitions.retry("j", Caller(max_open=1))
    assert records_of(transitions.redis).job("j").status is Status.SUCCEEDED
    assert transitions.retry("j", Caller(max_open=2)) == [("j:0", "bulk"), ("j:1", "bulk")]


def test_ranks_are_resolved_again(transitions: Transitions, redis: Redis) -> None:
    """An item that failed before it had a kernel may turn out to have none."""
    submit(transitions, "top:5")
    claim = transitions.claim("j:0")
    assert claim
    transitions.fail(claim, SilentKernel("the image is gone"))
    assert transitions.retry("j") == [("j:0", "interactive")]
    assert records_of(redis).job("j").progress.total is None
    assert run(transitions, "j:0", skipped=2) == [0, 1, 2]
    job = records_of(redis).whole("j")
    assert (job.status, job.progress.total, job.progress.completed) == (Status.SUCCEEDED, 3, 3)


def test_attempts_strikes_and_deadline_are_reset(transitions: Transitions, redis: Redis, clock: Clock) -> None:
    """After three failed attempts there are three new ones."""
    submit(transitions, [1], deadline_s=100)
    for _ in range(3):
        assert transitions.claim("j:0", "worker")
        clock.now += 30
        transitions.expire_leases(3)
    assert records_of(redis).job("j").status is Status.FAILED
    clock.now += 1000
    assert transitions.retry("j") == [("j:0", "interactive")]
    found = transitions.next("interactive", "worker").claim
    assert found
    assert (found.attempt, found.suspected, found.seconds_left) == (1, False, 100)
    assert redis.zscore("ks:deadlines", "j:0") == clock.now + 100


def test_the_new_end_has_its_own_webhook(transitions: Transitions, redis: Redis, clock: Clock) -> None:
    """The new end has a different message id; an undelivered message of the first end is discarded."""
    hooks = Webhooks(redis, lambda: clock.now)
    submit(transitions, [1], webhook_url=HOOK)
    ids = []
    for _ in range(3):
        run(transitions, "j:0", failing=(0,))
        (message,) = hooks.take(9)
        ids.append(message.id)
        transitions.retry("j")
        assert hooks.take(9) == []
        assert hooks.delivery("j").state == "waiting"
    assert all(one != other for one, other in pairwise(ids))
    assert ids[0] == "job_j"


def test_a_retry_can_be_repeated_after_a_lost_response(
    transitions: Transitions, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis made it, the connection broke, and the client repeats the call."""
    submit(transitions, [1])
    run(transitions, "j:0", failing=(0,))
    script = transitions._scripts["retry"]

    def twice(**arguments: object) -> object:
        script(**arguments)
        return script(**arguments)

    monkeypatch.setitem(transitions._scripts, "retry", twice)
    assert transitions.retry("j") == [("j:0", "interactive")]
    assert records_of(redis).job("j").progress.completed == 0
