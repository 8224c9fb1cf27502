"""The job record: every transition, and that a worker without a lease can make none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis

from shared.errors import IdempotencyConflict, JobEnded, JobNotFound, SilentKernel
from shared.jobs import Claim, LostLease, Records, Retention, Submitted, Transitions
from shared.schemas import ExplainRequest, ItemResult, Status, plan
from shared.store import BlobStore
from tests.conftest import Clock

LEASE = 20.0


@pytest.fixture
def transitions(redis: Redis, clock: Clock) -> Transitions:
    """Transitions with a stopped clock."""
    assert clock.now
    return Transitions(redis, LEASE)


@pytest.fixture
def records(redis: Redis, tmp_path: Path) -> Records:
    """Read access to jobs."""
    return Records(redis, BlobStore(tmp_path.as_uri()))


def submit(transitions: Transitions, job_id: str = "j", kernels: object = None, lifetime: float = 1e6) -> list[str]:
    """Submit a job, of 20 kernels (two slices) by default; returns its slices."""
    wanted = list(range(20)) if kernels is None else kernels
    fields = {"images": ["0" * 64], "layer": "conv1_1", "kernels": wanted}
    request = ExplainRequest.model_validate(fields)
    announced = transitions.submit(job_id, request, plan(request, 10_000), lifetime)
    return [slice_id for slice_id, _ in announced.slices]


def claimed(transitions: Transitions, slice_id: str) -> Claim:
    """A claim that must succeed."""
    claim = transitions.claim(slice_id)
    assert claim is not None
    return claim


def suspected(transitions: Transitions, slice_id: str) -> bool:
    """Whether the claim of a queued slice is marked as suspected."""
    claim = claimed(transitions, slice_id)
    transitions.release(claim)
    return claim.suspected


def done(claim: Claim, number: int) -> ItemResult:
    """A result of the claim's item of that number."""
    item = claim.items[number]
    return ItemResult.of(item, claim.request, item.kernel if item.kernel is not None else item.rank)


def complete(transitions: Transitions, claim: Claim) -> None:
    """Commit every item and finish."""
    for number in range(len(claim.items)):
        transitions.commit(claim, done(claim, number), {})
    transitions.finish(claim)


def test_a_job_from_submit_to_success(transitions: Transitions, records: Records, clock: Clock) -> None:
    """queued, running with its first slice, succeeded with its last; the times are kept."""
    first, second = submit(transitions)
    assert records.whole("j").status is Status.QUEUED
    clock.now += 5
    complete(transitions, claimed(transitions, first))
    job = records.whole("j")
    assert job.status is Status.RUNNING
    assert job.queue_position is None
    assert (job.progress.completed, job.progress.total) == (16, 20)
    clock.now += 5
    complete(transitions, claimed(transitions, second))
    job = records.whole("j")
    assert job.status is Status.SUCCEEDED
    assert [result.index for result in job.results] == list(range(20))
    assert job.started_at is not None
    assert job.finished_at is not None
    assert (job.finished_at - job.started_at).total_seconds() == 5
    assert job.attempt == 1
    assert job.error is None


def test_small_jobs_and_big_ones_have_queues_of_their_own(transitions: Transitions) -> None:
    """Up to 16 items are interactive."""
    fields = {"images": ["0" * 64], "layer": "conv1_1"}
    for count, queue in ((16, "interactive"), (17, "bulk")):
        request = ExplainRequest.model_validate({**fields, "kernels": list(range(count))})
        announced = transitions.submit(f"j{count}", request, plan(request, 100), 2e9)
        assert {name for _, name in announced.slices} == {queue}


def test_the_queue_position_counts_slices_ahead(transitions: Transitions, records: Records, clock: Clock) -> None:
    """1 is next; when the first is claimed, the others move up."""
    for name in ("a", "b", "c"):
        submit(transitions, name, kernels=[1])
        clock.now += 1
    assert [records.whole(name).queue_position for name in ("a", "b", "c")] == [1, 2, 3]
    claimed(transitions, "a:0")
    assert [records.whole(name).queue_position for name in ("a", "b", "c")] == [None, 1, 2]


def test_a_slice_is_claimed_once(transitions: Transitions) -> None:
    """A duplicate message claims nothing, nor does one for an unknown slice."""
    first, _ = submit(transitions)
    claimed(transitions, first)
    assert transitions.claim(first) is None
    assert transitions.claim("nowhere:0") is None


def test_progress_is_seen_and_holds_the_lease(transitions: Transitions, records: Records, clock: Clock) -> None:
    """Each heartbeat extends the lease by its full length."""
    (slice_id,) = submit(transitions, kernels=[1, 2])
    claim = claimed(transitions, slice_id)
    for iteration in range(5):
        clock.now += LEASE - 1
        transitions.renew(claim, {"iteration": iteration, "budget": 10, "loss": 0.5})
        assert transitions.expire_leases(3) == []
    progress = records.whole("j").progress
    assert (progress.iteration, progress.budget, progress.loss) == (4, 10, 0.5)
    complete(transitions, claim)
    assert records.whole("j").progress.iteration is None


def test_a_lapsed_slice_is_queued_again_without_its_finished_items(
    transitions: Transitions, records: Records, clock: Clock
) -> None:
    """Only the item in progress is lost with a worker, not finished ones."""
    (slice_id,) = submit(transitions, kernels=[1, 2, 3])
    dead = claimed(transitions, slice_id)
    transitions.commit(dead, done(dead, 0), {})
    clock.now += LEASE + 1
    assert transitions.expire_leases(3) == [slice_id]
    again = claimed(transitions, slice_id)
    assert [item.kernel for item in again.items] == [2, 3]
    assert again.attempt == 2
    complete(transitions, again)
    assert records.whole("j").attempt == 2
    assert [result.kernel for result in records.whole("j").results] == [1, 2, 3]


def test_a_worker_without_its_lease_cannot_write(transitions: Transitions, records: Records, clock: Clock) -> None:
    """Every transition of a running slice requires the token of its claim."""
    (slice_id,) = submit(transitions, kernels=[1, 2])
    late = claimed(transitions, slice_id)
    clock.now += LEASE + 1
    transitions.expire_leases(3)
    with pytest.raises(LostLease):
        transitions.release(late)
    holder = claimed(transitions, slice_id)
    before = records.whole("j")
    attempts: list[Callable[[], None]] = [
        lambda: transitions.renew(late, {"iteration": 1}),
        lambda: transitions.resolve(late, []),
        lambda: transitions.commit(late, done(late, 0), {}),
        lambda: transitions.finish(late),
        lambda: transitions.release(late),
        lambda: transitions.fail(late, SilentKernel("x")),
    ]
    for attempt in attempts:
        with pytest.raises(LostLease):
            attempt()
    assert records.whole("j") == before
    complete(transitions, holder)
    with pytest.raises(LostLease):
        transitions.commit(holder, done(holder, 0), {})


def test_an_item_is_committed_once(transitions: Transitions, records: Records) -> None:
    """The first result stays."""
    (slice_id,) = submit(transitions, kernels=[1, 2])
    claim = claimed(transitions, slice_id)
    transitions.commit(claim, done(claim, 0).model_copy(update={"seconds": 1.0}), {})
    transitions.commit(claim, done(claim, 0).model_copy(update={"seconds": 2.0}), {})
    job = records.whole("j")
    assert [result.seconds for result in job.results] == [1.0]
    assert job.progress.completed == 1


def test_a_released_slice_does_not_count_as_an_attempt(transitions: Transitions, records: Records) -> None:
    """A worker may be stopped any number of times."""
    (slice_id,) = submit(transitions, kernels=[1, 2])
    for _ in range(5):
        claim = claimed(transitions, slice_id)
        assert claim.attempt == 1
        transitions.release(claim)
    assert transitions.queued() == [slice_id]
    assert records.whole("j").status is Status.RUNNING


def test_a_slice_that_always_kills_its_worker_fails(transitions: Transitions, records: Records, clock: Clock) -> None:
    """There is no endless loop; finished items stay, and a newly finished item resets the count."""
    (slice_id,) = submit(transitions, kernels=[1, 2])
    assert not suspected(transitions, slice_id)
    claimed(transitions, slice_id)
    clock.now += LEASE + 1
    assert transitions.expire_leases(3) == [slice_id]
    assert suspected(transitions, slice_id)
    second = claimed(transitions, slice_id)
    transitions.commit(second, done(second, 0), {})
    for _ in range(2):
        clock.now += LEASE + 1
        assert transitions.expire_leases(3) == [slice_id]
        claimed(transitions, slice_id)
    clock.now += LEASE + 1
    assert transitions.expire_leases(3) == []
    job = records.whole("j")
    assert job.status is Status.SUCCEEDED  # one item did succeed
    assert job.failed_items == 1
    assert job.attempt == 4
    assert job.results[1].error is not None
    assert job.results[1].error.type == "/problems/attempts-exhausted"
    assert "4 times" in job.results[1].error.detail


def test_the_only_suspect_is_blamed_for_a_crash(transitions: Transitions, clock: Clock) -> None:
    """If exactly one of the slices was suspected before; the others are not blamed."""
    (suspect,), (other,) = submit(transitions, "j1", kernels=[1]), submit(transitions, "j2", kernels=[1])
    for slice_id in (suspect,) * 2:
        transitions.claim(slice_id, "first")
        clock.now += 30
        transitions.expire_leases(3)
    assert suspected(transitions, suspect)
    for slice_id in (suspect, other):
        transitions.claim(slice_id, "second")
    clock.now += 30
    assert transitions.expire_leases(3) == [other]
    assert transitions.redis.hget("ks:job:j1", "status") == "failed"
    assert transitions.redis.hmget(f"ks:slice:{other}", "strikes", "company") == ["0", "1"]


def test_slices_of_a_crashed_worker_are_suspected_but_not_failed(transitions: Transitions, clock: Clock) -> None:
    """Slices of one worker whose leases expire together are not blamed; those of other workers do not count."""
    first, second = submit(transitions)
    (alone,) = submit(transitions, "k", kernels=[1])
    for death in range(4):
        assert suspected(transitions, first) == (death >= 2)
        assert transitions.claim(first, "worker") is not None
        clock.now += 0.5  # the last renewal of the first, and the claim of the second
        assert transitions.claim(second, "worker") is not None
        clock.now += LEASE - 0.1
        assert sorted(transitions.expire_leases(3)) == [first, second]  # one has still a moment; its worker is dead
    assert transitions.claim(alone, "another") is not None
    assert transitions.claim(first, "worker") is not None
    clock.now += LEASE + 1
    assert sorted(transitions.expire_leases(3)) == [first, alone]
    assert suspected(transitions, alone)


def test_a_cancelled_job_ends_at_once(transitions: Transitions, records: Records, clock: Clock) -> None:
    """Finished items stay, the rest is cancelled, its worker loses the lease, and nothing is queued."""
    first, second = submit(transitions)
    claim = claimed(transitions, first)
    transitions.commit(claim, done(claim, 0), {})
    clock.now += 1
    transitions.cancel("j")
    job = records.whole("j")
    assert job.status is Status.CANCELLED
    assert job.finished_at is not None
    assert [result.status for result in job.results] == ["succeeded"] + ["cancelled"] * 19
    assert (job.results[1].kernel, job.progress.completed, job.error) == (1, 1, None)
    with pytest.raises(LostLease):
        transitions.renew(claim, {})
    assert transitions.claim(second) is None
    assert transitions.queued() == []
    with pytest.raises(JobEnded, match="already cancelled"):
        transitions.cancel("j")
    with pytest.raises(JobNotFound):
        transitions.cancel("nobody")


def test_a_finished_job_cannot_be_cancelled(transitions: Transitions) -> None:
    """The error says how it ended."""
    (slice_id,) = submit(transitions, kernels=[1])
    complete(transitions, claimed(transitions, slice_id))
    with pytest.raises(JobEnded, match="already succeeded"):
        transitions.cancel("j")


def test_ranks_without_a_kernel_have_no_result_even_in_a_cancelled_job(
    transitions: Transitions, records: Records
) -> None:
    """They have been skipped."""
    (slice_id,) = submit(transitions, kernels="top:5")
    claim = claimed(transitions, slice_id)
    transitions.resolve(claim, claim.items[3:])
    transitions.cancel("j")
    assert [result.rank for result in records.whole("j").results] == [0, 1, 2]


def test_a_job_on_which_no_kernel_is_active_says_so(transitions: Transitions, records: Records) -> None:
    """Every rank is skipped, so there is no item with an error."""
    (slice_id,) = submit(transitions, kernels="top:2")
    claim = claimed(transitions, slice_id)
    transitions.resolve(claim, claim.items)
    transitions.finish(claim)
    job = records.whole("j")
    assert job.status is Status.FAILED
    assert job.error is not None
    assert job.error.type == "/problems/silent-kernel"


def test_a_key_names_one_request(transitions: Transitions, records: Records) -> None:
    """The same request and key return the same job; another request is rejected; without a key every job is new."""
    request = ExplainRequest.model_validate({"images": ["0" * 64], "layer": "conv1_1", "kernels": [1]})
    other = request.model_copy(update={"kernels": [2]})

    def submitted(name: str, asked: ExplainRequest, key: str | None) -> Submitted:
        return transitions.submit(name, asked, plan(asked, 10), 100, key)

    assert not submitted("a", request, "key").replayed
    again = submitted("b", request, "key")
    assert (again.job_id, again.slices, again.replayed) == ("a", [], True)
    with pytest.raises(IdempotencyConflict):
        submitted("c", other, "key")
    assert submitted("d", request, "another key").job_id == "d"
    assert submitted("e", request, None).job_id == "e"
    assert transitions.queued() == ["a:0", "d:0", "e:0"]


def test_a_transition_can_be_repeated_after_a_lost_response(
    transitions: Transitions, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis made it, the connection broke, and the client retries."""
    monkeypatch.setattr("shared.jobs.transitions.secrets.token_hex", lambda _: "token")
    (slice_id,) = submit(transitions, kernels=[1])
    assert submit(transitions, kernels=[1]) == [slice_id]  # announced again, which is harmless
    claim = claimed(transitions, slice_id)
    assert claimed(transitions, slice_id) == claim
    for _ in range(2):
        transitions.release(claim)
    assert transitions.queued() == [slice_id]
    claim = claimed(transitions, slice_id)
    assert claim.attempt == 1
    transitions.commit(claim, done(claim, 0), {})
    for _ in range(2):
        transitions.finish(claim)
    assert records.whole("j").status is Status.SUCCEEDED


def test_queued_slices_fail_after_their_deadline(transitions: Transitions, records: Records, clock: Clock) -> None:
    """Running slices are handled by their workers, which know the deadline."""
    fields = {"images": ["0" * 64], "layer": "conv1_1", "kernels": [1], "deadline_s": 10}
    request = ExplainRequest.model_validate(fields)
    for name in ("waiting", "running"):
        transitions.submit(name, request, plan(request, 100), 1000)
    claim = claimed(transitions, "running:0")
    assert claim.seconds_left == 10
    assert transitions.fail_overdue() == []
    clock.now += 11
    assert transitions.fail_overdue() == ["waiting:0"]
    job = records.whole("waiting")
    assert job.status is Status.FAILED
    assert job.error is not None
    assert job.error.type == "/problems/deadline-passed"
    assert records.whole("running").status is Status.RUNNING


def test_results_are_reused_while_their_job_exists(transitions: Transitions, records: Records, clock: Clock) -> None:
    """By its fingerprint; failures are not cached."""
    (slice_id,) = submit(transitions, kernels=[1], lifetime=10)
    claim = claimed(transitions, slice_id)
    assert records.same("print") is None
    transitions.commit(claim, done(claim, 0), {"optimized.png": "f" * 64}, "print")
    found = records.same("print")
    assert found is not None
    assert (found[0], found[1].kernel) == ("j", 1)
    assert found[2] == {"optimized.png": "f" * 64}
    clock.now += 11
    Retention(transitions, records).expire()
    assert records.same("print") is None


def test_a_job_without_a_success_is_failed(transitions: Transitions, records: Records) -> None:
    """Its error is that of its items, and says how many they are."""
    (slice_id,) = submit(transitions, kernels=[1, 2])
    transitions.fail(claimed(transitions, slice_id), SilentKernel("kernel 1 is silent"))
    job = records.whole("j")
    assert job.status is Status.FAILED
    assert job.error is not None
    assert job.error.type == "/problems/silent-kernel"
    assert job.error.detail == "all 2 items failed; the first: kernel 1 is silent"


def test_top_n_has_a_total_once_every_slice_is_resolved(transitions: Transitions, records: Records) -> None:
    """Ranks without an active kernel are skipped and not counted."""
    first, second = submit(transitions, kernels="top:20")
    assert records.whole("j").progress.total is None
    claim = claimed(transitions, first)
    transitions.resolve(claim, [])
    transitions.resolve(claim, [])  # a repeated call changes nothing
    assert records.whole("j").progress.total is None
    other = claimed(transitions, second)
    transitions.resolve(other, other.items[1:])
    assert records.whole("j").progress.total == 17


def test_a_worker_whose_job_has_expired_loses_its_lease(
    transitions: Transitions, records: Records, clock: Clock
) -> None:
    """It cannot restore the job."""
    (slice_id,) = submit(transitions, kernels=[1], lifetime=10)
    claim = claimed(transitions, slice_id)
    clock.now += 11
    Retention(transitions, records).expire()
    with pytest.raises(LostLease):
        transitions.commit(claim, done(claim, 0), {})
    assert transitions.expire_leases(3) == []


def test_unsent_messages_are_found_by_their_age(transitions: Transitions, clock: Clock) -> None:
    """A queued slice with an old message is found, until another message is recorded."""
    slices = submit(transitions)
    clock.now += 10
    assert transitions.unsent(transitions.queued(), 15) == []
    clock.now += 10
    assert transitions.unsent(transitions.queued(), 15) == slices
    assert transitions.sent(slices[0]) == "bulk"
    assert transitions.unsent(transitions.queued(), 15) == slices[1:]
    assert transitions.sent("nowhere:0") is None
