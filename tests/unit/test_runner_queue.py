"""Which slices a runner takes, and which it leaves to others."""

from __future__ import annotations

import time
from threading import Event, Thread

import pytest

from shared.errors import ModelUnavailable
from shared.images import Frame
from shared.schemas import Status
from shared.workers import NetworkState
from tests.unit.job_bench import JobBench, Lacking, Scripted, until
from worker.engine.dummy import DummyDevice
from worker.jobs import runner as runner_module


def test_a_suspect_runs_beside_others_but_not_beside_another(bench: JobBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not block others; a second suspect is skipped, and the message is sent again a little later."""
    monkeypatch.setattr(runner_module, "RESEND_SECONDS", 0.2)
    bench.lease_seconds = 0.01
    names = ("suspect", "another")
    for name, iterations in zip(names, (800, 10), strict=True):
        bench.submit(name, iterations=iterations)
        bench.transitions.claim(f"{name}:0")
        time.sleep(0.02)
        assert bench.transitions.expire_leases(3) == [f"{name}:0"]
    bench.lease_seconds = 20.0
    with bench.runner() as runner:
        thread = Thread(target=runner.run, args=("interactive", "suspect:0"))
        thread.start()
        until(lambda: bench.records.job("suspect").status is Status.RUNNING)
        runner.run("interactive", "another:0")
        assert bench.transitions.queued() == ["another:0"]
        bench.submit("other", iterations=20, layer="conv1_2")
        runner.run("interactive", "other:0")
        assert [bench.records.job(name).status for name in ("suspect", "other")] == [Status.RUNNING, Status.SUCCEEDED]
        thread.join()
        until(lambda: len(bench.announced) == 3)
        runner.run("interactive")
    # One for `another` beside each of the others that began, and one that `another` itself found no use for.
    assert bench.announced == [("", "interactive")] * 3
    assert {bench.records.job(name).status for name in (*names, "other")} == {Status.SUCCEEDED}


def test_what_a_worker_has_no_use_for_is_passed_on_when_it_stops(bench: JobBench) -> None:
    """The work of that message is not lost, and later messages are handled."""
    bench.submit(model="vgg19", layer="conv5_1")
    bench.device = Lacking()
    with bench.runner() as runner:
        for _ in range(3):
            runner.run("interactive", "j:0")
        assert bench.announced == []
        runner.stop()
        assert bench.announced == [("", "interactive")]
        runner.run("interactive", "j:0")
        assert bench.announced == [("", "interactive"), ("j:0", "interactive")]
    assert bench.transitions.queued() == ["j:0"]


class Disappointed(DummyDevice):
    """A device that reports a network until it tries to use it."""

    tried = False

    def states(self) -> dict[str, NetworkState]:
        """The states as far as is known."""
        unavailable = NetworkState(available=False, reason="the file is damaged")
        return super().states() | ({"vgg19": unavailable} if self.tried else {})

    def frame(self, model: str) -> Frame:
        """Fails, and changes the state."""
        if model == "vgg19":
            self.tried = True
            raise ModelUnavailable("the file is damaged")
        return super().frame(model)


def test_a_network_that_turns_out_not_to_be_there_fails_no_job(bench: JobBench) -> None:
    """The slice is released without an attempt, and this worker does not claim it again; another one does."""
    bench.submit(model="vgg19", layer="conv5_1")
    bench.device = Disappointed()
    with bench.runner() as runner:
        runner.run("interactive", "j:0")
        assert bench.announced == [("j:0", "interactive")]
        runner.run("interactive", "j:0")
        assert bench.transitions.queued() == ["j:0"]
    bench.device = Scripted()
    job = bench.run()
    assert (job.status, job.attempt, job.failed_items) == (Status.SUCCEEDED, 1, 0)


def test_what_a_worker_lacks_does_not_hold_up_what_it_has(bench: JobBench) -> None:
    """Even from the same caller, and if it came first."""
    for number in range(5):
        bench.submit(f"other{number}", model="vgg19", layer="conv5_1")
    bench.submit()
    bench.device = Lacking()
    assert bench.run().status is Status.SUCCEEDED
    assert len(bench.transitions.queued()) == 5


def test_who_waits_for_a_network_keeps_no_other_slice_waiting(bench: JobBench) -> None:
    """The network of one job is still being downloaded while another job's slice runs and ends."""
    begun, arrived = Event(), Event()

    class Trickling(DummyDevice):
        def frame(self, model: str) -> Frame:
            if model != "vgg_mini":
                begun.set()
                assert arrived.wait(30)
            return super().frame(model)

    bench.device = Trickling()
    bench.submit("slow", model="vgg19", layer="conv1_1")
    bench.submit("fast")
    with bench.runner() as runner:
        slow, fast = (Thread(target=runner.run, args=("interactive", f"{name}:0")) for name in ("slow", "fast"))
        slow.start()
        assert begun.wait(10)
        fast.start()
        fast.join(10)
        assert bench.records.job("fast").status is Status.SUCCEEDED
        arrived.set()
        slow.join()
    assert bench.records.job("slow").status is Status.SUCCEEDED
