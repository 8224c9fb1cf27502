"""A slice is written to by the holder of its lease only, and queued again when the lease expires."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shared.errors import SilentKernel
from shared.jobs import LostLease, Records, Retention, Transitions
from shared.schemas import Status
from tests.conftest import Clock
from tests.unit.jobs import LEASE, claimed, complete, done, submit


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


def test_a_released_slice_does_not_count_as_an_attempt(transitions: Transitions, records: Records) -> None:
    """A worker may be stopped any number of times."""
    (slice_id,) = submit(transitions, kernels=[1, 2])
    for _ in range(5):
        claim = claimed(transitions, slice_id)
        assert claim.attempt == 1
        transitions.release(claim)
    assert transitions.queued() == [slice_id]
    assert records.whole("j").status is Status.RUNNING


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
