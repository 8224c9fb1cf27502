"""A job's record from its submission to its end."""

from __future__ import annotations

import pytest

from shared.errors import IdempotencyConflict, JobEnded, JobNotFound, SilentKernel
from shared.jobs import LostLease, Records, Retention, Submitted, Transitions
from shared.schemas import ExplainRequest, Status, plan
from tests.conftest import Clock
from tests.unit.jobs import claimed, complete, done, submit


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


def test_an_item_is_committed_once(transitions: Transitions, records: Records) -> None:
    """The first result stays."""
    (slice_id,) = submit(transitions, kernels=[1, 2])
    claim = claimed(transitions, slice_id)
    transitions.commit(claim, done(claim, 0).model_copy(update={"seconds": 1.0}), {})
    transitions.commit(claim, done(claim, 0).model_copy(update={"seconds": 2.0}), {})
    job = records.whole("j")
    assert [result.seconds for result in job.results] == [1.0]
    assert job.progress.completed == 1


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


def test_ranks_without_a_kernel_have_no_result_even_in_a_cancelled_job(
    transitions: Transitions, records: Records
) -> None:
    """They have been skipped."""
    (slice_id,) = submit(transitions, kernels="top:5")
    claim = claimed(transitions, slice_id)
    transitions.resolve(claim, claim.items[3:])
    transitions.cancel("j")
    assert [result.rank for result in records.whole("j").results] == [0, 1, 2]


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
