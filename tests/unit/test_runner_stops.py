"""A worker that stops, or whose store or device fails, gives its slices to other workers."""

from __future__ import annotations

from threading import Event, Thread

import pytest

from shared.errors import StoreUnavailable
from shared.jobs import LeaseState
from shared.schemas import Status
from tests.unit.job_bench import JobBench, until
from worker.engine.dummy import DummyBatch
from worker.engine.questions import Answered
from worker.jobs import slices
from worker.jobs.slices import SliceRun


def test_a_store_that_is_away_is_sat_out(bench: JobBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker keeps its lease and retries until the store is back; no attempt is spent, and nothing fails."""
    monkeypatch.setattr(slices, "STORE_RETRY_SECONDS", 0.01)
    put, failures = bench.store.put, [StoreUnavailable("away")] * 40

    def away(job_id: str, data: bytes) -> str:
        if failures:
            raise failures.pop()
        return put(job_id, data)

    bench.submit()
    monkeypatch.setattr(bench.store, "put", away)
    job = bench.run()
    assert job.status is Status.SUCCEEDED
    assert (job.attempt, job.failed_items, job.progress.completed) == (1, 0, 3)
    assert not failures


def test_a_worker_that_stops_while_the_store_is_away_hands_back(
    bench: JobBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker may reach it; the attempt does not count."""
    tried = Event()

    def away(*_: object) -> str:
        tried.set()
        raise StoreUnavailable("away")

    bench.submit()
    monkeypatch.setattr(bench.store, "put", away)
    with bench.runner() as runner:
        thread = Thread(target=runner.run, args=("interactive", "j:0"))
        thread.start()
        assert tried.wait(5)
        runner.stop()
        thread.join(5)
        assert not thread.is_alive()
    job = bench.records.job("j")
    assert (job.status, job.progress.completed) == (Status.RUNNING, 0)
    assert bench.transitions.queued() == ["j:0"]


def test_a_worker_that_stops_hands_the_slice_back_and_says_so(bench: JobBench) -> None:
    """The message is sent again, so that the slice does not wait for housekeeping; committed items remain."""
    bench.submit(iterations=100)
    with bench.runner() as runner:
        thread = Thread(target=runner.run, args=("interactive", "j:0"))
        thread.start()
        until(lambda: bench.records.job("j").progress.completed == 1)
        runner.stop()
        thread.join(5)
        assert not thread.is_alive()
        runner.run("interactive", "j:0")  # a message that came late: it is sent on
    assert bench.announced == [("j:0", "interactive")] * 2
    assert bench.records.job("j").progress.completed < 3
    assert bench.run().status is Status.SUCCEEDED
    assert bench.records.job("j").attempt == 1


class HungBatch(DummyBatch):
    """A device that never returns."""

    def step(self) -> Answered:
        """Block until the end of the test."""
        Event().wait(30)
        return []


def test_a_device_that_hangs_loses_its_leases_and_is_reported(bench: JobBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker process then ends itself."""
    monkeypatch.setattr(bench.device, "batch", lambda _: HungBatch())
    bench.lease_seconds = 1.0
    bench.submit()
    with bench.runner() as runner:
        Thread(target=runner.run, args=("interactive", "j:0"), daemon=True).start()
        assert bench.hung.wait(5)
        assert bench.transitions.expire_leases(3) == ["j:0"]
        runner.stop()


def test_the_renewal_of_leases_outlives_a_bug(
    bench: JobBench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected error is logged, and the leases are renewed the next time."""
    bench.submit(iterations=300)
    with bench.runner() as runner:
        renew, failures = runner.leases.transitions.renew_all, [ValueError("a bug")]

        def once(claims: object) -> list[LeaseState]:
            if failures:
                raise failures.pop()
            return renew(claims)  # type: ignore[arg-type]

        monkeypatch.setattr(runner.leases.transitions, "renew_all", once)
        runner.run("interactive", "j:0")
    assert "a bug" in caplog.text
    assert bench.records.job("j").status is Status.SUCCEEDED
    assert not failures


def test_one_lost_lease_does_not_keep_the_others(bench: JobBench) -> None:
    """Slices that do not stop are released, independently of one another."""
    for name in ("cancelled", "other"):
        bench.submit(name)
    with bench.runner() as runner:
        for name in ("cancelled", "other"):
            claim = bench.transitions.claim(f"{name}:0")
            assert claim is not None
            runner._running.add(SliceRun(runner.context, claim))
        bench.transitions.cancel("cancelled")
        runner.abandon()
    assert bench.transitions.queued() == ["other:0"]
    assert bench.announced == [("other:0", "interactive")]
