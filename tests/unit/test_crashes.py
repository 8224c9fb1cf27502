"""Which slices are suspected or blamed when a worker crashes."""

from __future__ import annotations

from shared.jobs import Records, Transitions
from shared.schemas import Status
from tests.conftest import Clock
from tests.unit.jobs import LEASE, claimed, done, submit, suspected


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
