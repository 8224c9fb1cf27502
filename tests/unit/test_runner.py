"""The slice runner between the record and an engine: what becomes of the items of a slice."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from threading import Thread
from typing import Any

import pytest

from shared import images
from shared.errors import LayerNotCovered
from shared.schemas import Status
from tests.unit.job_bench import JobBench, Scripted, until
from worker.engine.questions import Question
from worker.engine.scheduling import EngineRequest


def test_a_bug_fails_its_kernel_and_is_logged(bench: JobBench, caplog: pytest.LogCaptureFixture) -> None:
    """The client gets a short sentence without internals, the log the traceback; other kernels are answered."""
    bench.device = Scripted(raises={2: ZeroDivisionError("secret detail")})
    bench.submit()
    with caplog.at_level(logging.ERROR):
        job = bench.run()
    assert job.status is Status.SUCCEEDED
    assert [result.status for result in job.results] == ["succeeded", "failed", "succeeded"]
    assert job.results[1].error is not None
    assert job.results[1].error.detail == "internal error (ZeroDivisionError); the worker's log has the details"
    assert "secret detail" in caplog.text


def test_an_error_of_ours_keeps_its_type(bench: JobBench) -> None:
    """For example of a layer that the weights do not cover, when the job was accepted without workers."""
    bench.device = Scripted(raises=dict.fromkeys((1, 2, 3), LayerNotCovered("the weights end at conv1_1")))
    bench.submit()
    job = bench.run()
    assert job.status is Status.FAILED
    assert job.error is not None
    assert job.error.type == "/problems/layer-not-covered"
    assert job.error.detail == "all 3 items failed; the first: the weights end at conv1_1"


def test_an_image_that_is_gone_is_reported(bench: JobBench) -> None:
    """The record refers to an image that is missing from the store."""
    bench.submit()
    bench.store.remove("j")
    job = bench.run()
    assert job.error is not None
    assert job.request.images[0] in job.error.detail


def test_a_cancelled_job_leaves_the_engine(bench: JobBench) -> None:
    """Within a second, with the committed items; the engine is free for others."""
    bench.submit(iterations=500)
    bench.submit("other", iterations=3)
    with bench.runner() as runner:
        thread = Thread(target=runner.run, args=("interactive", "j:0"))
        thread.start()
        until(lambda: bench.records.job("j").progress.completed == 1)
        bench.transitions.cancel("j")
        begin = time.monotonic()
        thread.join(5)
        assert time.monotonic() - begin < 1
        until(lambda: not runner.engine.busy)
        runner.run("interactive", "other:0")
    assert bench.records.job("j").status is Status.CANCELLED
    assert [r.status for r in bench.records.whole("j").results] == ["succeeded", "cancelled", "cancelled"]
    assert bench.records.job("other").status is Status.SUCCEEDED


def test_at_the_deadline_x_is_delivered_as_far_as_it_is(bench: JobBench) -> None:
    """Items that have not started fail."""
    bench.submit(iterations=100_000, deadline_s=0.5)
    job = bench.run()
    assert job.status is Status.SUCCEEDED
    assert [result.status for result in job.results] == ["succeeded", "failed", "failed"]
    assert job.results[0].stopped == "deadline"
    assert job.results[1].error is not None
    assert job.results[1].error.type == "/problems/deadline-passed"


def test_ranks_are_resolved_and_those_without_a_kernel_skipped(bench: JobBench) -> None:
    """The dummy's layer of 32 kernels has three silent ones: "top:31" ends with 29."""
    bench.submit(kernels="top:31", iterations=1)
    first = bench.run("j:0", "bulk")
    assert first.progress.total is None
    assert bench.transitions.queued() == ["j:1"]
    job = bench.run("j:1", "bulk")
    assert job.status is Status.SUCCEEDED
    assert job.progress.total == len(job.results) == 29
    assert [result.rank for result in job.results] == list(range(29))
    assert all(result.kernel is not None and result.kernel % 10 != 9 for result in job.results)


def test_what_evidence_is_asked(bench: JobBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evidence has the term and removes only; suppression beside it does neither."""
    asked: list[Question] = []
    with bench.runner() as runner:
        ask = runner.engine.ask

        def noted(questions: Sequence[Question], **how: Any) -> EngineRequest:
            asked.extend(questions)
            return ask(questions, **how)

        monkeypatch.setattr(runner.engine, "ask", noted)
        bench.submit("one", methods=["evidence", "suppression"], kernels=[1], beta=[1.0, 2.0])
        runner.run("interactive", "one:0")
    reported = [(one.method, one.beta, one.removes_only, one.weight(12)) for one in asked]
    evidence, plain = (("evidence", True, 0.35 * 12), ("suppression", False, 0.35 * 12))
    assert reported == [(name, beta, *rest) for name, *rest in (evidence, plain) for beta in (1.0, 2.0)]
    assert all(result.metrics.invention is not None for result in bench.records.whole("one").results if result.metrics)


def test_one_image_is_decoded_at_a_time(bench: JobBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever number of slices a worker has, memory is that of one large image."""
    decoded, inside, most = images.decoded, list[int](), list[int]()

    def slowly(data: bytes, max_pixels: int, **deep: bool) -> Any:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.05)
        inside.pop()
        return decoded(data, max_pixels, **deep)

    monkeypatch.setattr(images, "decoded", slowly)
    _all_at_once(bench, 4)
    assert most == [1] * 4


def _all_at_once(bench: JobBench, count: int) -> None:
    for number in range(count):
        bench.submit(f"j{number}")
    with bench.runner() as runner:
        slices = [Thread(target=runner.run, args=("interactive", f"j{number}:0")) for number in range(count)]
        for one in slices:
            one.start()
        for one in slices:
            one.join()
    assert {bench.records.job(f"j{number}").status for number in range(count)} == {Status.SUCCEEDED}
