"""The runner between the record and an engine that does what the test wants."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from redis import Redis

from shared.errors import KernelscopeError, LayerNotCovered, StoreUnavailable
from shared.jobs import Records, Transitions
from shared.schemas import ExplainRequest, Job, Status, plan
from shared.store import BlobStore
from tests.conftest import noise, png
from worker.dummy import DummyEngine
from worker.questions import Answer, OnStep, Question, ShouldStop
from worker.runner import Runner


@dataclass
class Scripted(DummyEngine):
    """The dummy engine, but the n-th answer is an exception that is raised."""

    raises: dict[int, Exception] = field(default_factory=dict)

    def answer(
        self, questions: Sequence[Question], on_step: OnStep, should_stop: ShouldStop
    ) -> Iterator[tuple[int, Answer | KernelscopeError]]:
        """Answers until the script says otherwise."""
        for number, answer in super().answer(questions, on_step, should_stop):
            if number in self.raises:
                raise self.raises[number]
            yield number, answer


@dataclass
class Bench:
    """A runner with what it needs, and one job of three kernels."""

    redis: Redis
    store: BlobStore
    engine: DummyEngine = field(default_factory=Scripted)
    stopping: bool = False
    announced: list[tuple[str, str]] = field(default_factory=list)

    def submit(self, **fields: object) -> None:
        """The job "j"."""
        digest = self.store.put(png(noise()))
        base = {"images": [digest], "model": "vgg_mini", "layer": "conv2_1", "kernels": [1, 2, 3], "iterations": 3}
        request = ExplainRequest.model_validate({**base, **fields})
        Transitions(self.redis).submit("j", request, plan(request, 100), 2e9)

    def run(self) -> Job:
        """Run its slice; the job afterwards."""
        records = Records(self.redis)
        runner = Runner(
            engine=self.engine,
            records=records,
            transitions=Transitions(self.redis),
            store=self.store,
            max_pixels=10**8,
            announce=lambda *message: self.announced.append(message),
            stopping=lambda: self.stopping,
        )
        runner.run("j:0")
        return records.job("j")


@pytest.fixture
def bench(redis: Redis, tmp_path: Path) -> Bench:
    """A bench on the test's Redis and folder."""
    return Bench(redis, BlobStore(tmp_path.as_uri()))


def test_a_bug_fails_the_job_and_is_logged(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The caller reads a short sentence without internals; the log has the traceback; what was finished stays."""
    bench.engine = Scripted(raises={1: ZeroDivisionError("secret detail")})
    bench.submit()
    with caplog.at_level(logging.ERROR):
        job = bench.run()
    assert job.status is Status.SUCCEEDED
    assert [result.status for result in job.results] == ["succeeded", "failed", "failed"]
    assert job.results[1].error is not None
    assert job.results[1].error.detail == "internal error (ZeroDivisionError); the worker's log has the details"
    assert "secret detail" in caplog.text


def test_an_error_of_ours_keeps_its_type(bench: Bench) -> None:
    """A layer that the weights do not cover, say: nothing was told when the job was taken without workers."""
    bench.engine = Scripted(raises={0: LayerNotCovered("the weights end at conv1_1")})
    bench.submit()
    job = bench.run()
    assert job.status is Status.FAILED
    assert job.error is not None
    assert job.error.type == "/problems/layer-not-covered"
    assert job.error.detail == "all 3 items failed; the first: the weights end at conv1_1"


def test_an_unavailable_store_is_not_the_job_s_fault(bench: Bench) -> None:
    """The slice keeps its lease, which lapses, and is tried again; nothing is failed."""
    bench.engine = Scripted(raises={1: StoreUnavailable("the object store took no data")})
    bench.submit()
    job = bench.run()
    assert job.status is Status.RUNNING
    assert job.failed_items == 0
    assert job.progress.completed == 1


def test_a_worker_that_stops_hands_the_slice_back_and_says_so(bench: Bench) -> None:
    """The message goes out again, so that nobody has to wait for housekeeping."""
    bench.stopping = True
    bench.submit()
    job = bench.run()
    assert bench.announced == [("j:0", "interactive")]
    assert job.progress.completed == 0
    bench.stopping = False
    assert bench.run().status is Status.SUCCEEDED


def test_an_image_that_is_gone_is_told(bench: Bench) -> None:
    """The record refers to bytes that are no longer in the store."""
    bench.submit(images=["f" * 64])
    job = bench.run()
    assert job.error is not None
    assert "f" * 64 in job.error.detail


def test_ranks_are_resolved_and_those_without_a_kernel_skipped(bench: Bench) -> None:
    """The dummy's layer of 32 kernels has three silent ones: "top:31" ends with 29."""
    bench.submit(kernels="top:31", iterations=1)
    first = bench.run()
    assert first.progress.total is None
    claim_rest = Transitions(bench.redis)
    assert claim_rest.queued() == ["j:1"]
    runner_job = _run_second(bench)
    assert runner_job.status is Status.SUCCEEDED
    assert runner_job.progress.total == len(runner_job.results) == 29
    assert [result.rank for result in runner_job.results] == list(range(29))
    assert all(result.kernel is not None and result.kernel % 10 != 9 for result in runner_job.results)


def _run_second(bench: Bench) -> Job:
    records = Records(bench.redis)
    Runner(
        engine=bench.engine,
        records=records,
        transitions=Transitions(bench.redis),
        store=bench.store,
        max_pixels=10**8,
        announce=lambda *_: None,
        stopping=lambda: False,
    ).run("j:1")
    return records.job("j")
