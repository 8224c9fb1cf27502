"""The slice runner between the record and an engine controlled by the test."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
from PIL import ImageCms
from redis import Redis

from shared import images
from shared.errors import LayerNotCovered, ModelUnavailable, StoreUnavailable
from shared.images import Frame
from shared.jobs import LeaseState, Records, Retention, Transitions
from shared.jobs.claims import Queue
from shared.schemas import ExplainRequest, Status, WholeJob, plan
from shared.store import BlobStore
from shared.workers import NetworkState
from tests.conftest import encoded, noise, png
from tests.unit import profiles
from worker.engine.dummy import DummyBatch, DummyDevice, _answer
from worker.engine.engine import Engine
from worker.engine.questions import Answered, Batch, Question, Ticket
from worker.engine.scheduling import EngineRequest
from worker.jobs import runner as runner_module
from worker.jobs import slices
from worker.jobs.artifacts import note
from worker.jobs.leases import LeaseRenewer
from worker.jobs.runner import SliceRunner
from worker.jobs.slices import SliceRun


@dataclass
class Scripted(DummyDevice):
    """The dummy device whose batches raise at a given kernel."""

    raises: dict[int, Exception] = field(default_factory=dict)

    def batch(self, question: Question) -> Batch:  # noqa: ARG002
        """A batch with this script."""
        return ScriptedBatch(self.raises)


class ScriptedBatch(DummyBatch):
    """A dummy batch that follows a script."""

    def __init__(self, raises: dict[int, Exception]) -> None:
        super().__init__()
        self.raises = raises

    def add(self, tickets: Sequence[Ticket]) -> Answered:
        """Raise at the script's kernel."""
        (ticket,) = tickets
        if ticket.question.kernel in self.raises:
            raise self.raises[ticket.question.kernel]
        return super().add(tickets)


@dataclass
class JobBench:
    """A slice runner with its services, and a job of three kernels."""

    redis: Redis
    store: BlobStore
    folder: Path
    device: DummyDevice = field(default_factory=Scripted)
    announced: list[tuple[str, str]] = field(default_factory=list)
    hung: Event = field(default_factory=Event)
    lease_seconds: float = 20.0

    def submit(self, name: str = "j", images: Sequence[bytes] = (), **fields: object) -> None:
        """Create a job."""
        digests = [self.store.put(name, data) for data in images or [png(noise())]]
        base = {"images": digests, "model": "vgg_mini", "layer": "conv2_1", "kernels": [1, 2, 3], "iterations": 3}
        request = ExplainRequest.model_validate({**base, **fields})
        self.transitions.submit(name, request, plan(request, 100), 2e9)

    @property
    def transitions(self) -> Transitions:
        """A field of the job's record."""
        return Transitions(self.redis, self.lease_seconds)

    @property
    def records(self) -> Records:
        """The job."""
        return Records(self.redis, self.store)

    @contextmanager
    def runner(self) -> Iterator[SliceRunner]:
        """A runner with its own engine."""
        engine = Engine(self.device)
        runner = SliceRunner(
            engine=engine,
            leases=LeaseRenewer(self.transitions, engine, on_hang=self.hung.set),
            records=self.records,
            transitions=self.transitions,
            store=self.store,
            worker="worker",
            max_pixels=10**8,
            announce=lambda *message: self.announced.append(message),
        )
        yield runner
        runner.leases.close()
        if not self.hung.is_set():
            engine.close()

    def run(self, slice_id: str = "j:0", queue: Queue = "interactive") -> WholeJob:
        """Run the only waiting slice. Returns the job afterwards."""
        with self.runner() as runner:
            runner.run(queue, slice_id)
        return self.records.whole(slice_id.split(":", maxsplit=1)[0])


@pytest.fixture
def bench(redis: Redis, tmp_path: Path) -> JobBench:
    """A bench with the test's Redis and store."""
    return JobBench(redis, BlobStore(tmp_path.as_uri()), tmp_path)


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

    def away(*_: object) -> str:
        raise StoreUnavailable("away")

    bench.submit()
    monkeypatch.setattr(bench.store, "put", away)
    with bench.runner() as runner:
        thread = Thread(target=runner.run, args=("interactive", "j:0"))
        thread.start()
        time.sleep(0.7)
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


def test_the_same_work_is_not_done_twice(bench: JobBench) -> None:
    """Another job with the same pixels reuses the results; other parameters or a deadline are other work."""
    bench.submit()
    first = bench.run()
    bench.submit("again", kernels=[2, 3, 4])
    again = bench.run("again:0")
    assert [result.reused for result in again.results] == [True, True, False]
    assert [result.kernel for result in again.results] == [2, 3, 4]
    assert again.results[0].losses == first.results[1].losses
    assert bench.records.result("again", 0)[2] == bench.records.result("j", 1)[2]
    bench.submit("other", iterations=4)
    assert not any(result.reused for result in bench.run("other:0").results)
    retention = Retention(bench.transitions, bench.records)
    retention.remove("j")
    assert retention.remove_files(10, 0) == 1
    files = bench.records.result("again", 0)[2].values()
    assert all(bench.store.has("again", digest) for digest in files)  # its own by now


def test_work_whose_files_are_gone_is_done_again(bench: JobBench) -> None:
    """For example after a move to another store: no result is reused without its files."""
    bench.submit()
    bench.run()
    lost = bench.records.result("j", 1)[2]["optimized.png"]
    (file,) = [path for path in bench.folder.rglob(lost) if path.parent.name == "j"]
    file.unlink()
    bench.submit("again", kernels=[2])
    assert not bench.run("again:0").results[0].reused
    assert all(bench.store.has("again", digest) for digest in bench.records.result("again", 0)[2].values())
    bench.submit("later", kernels=[2])
    assert bench.run("later:0").results[0].reused


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


class Lacking(DummyDevice):
    """A device without VGG-19."""

    def states(self) -> dict[str, NetworkState]:
        """All networks but this one."""
        return super().states() | {"vgg19": NetworkState(available=False, reason="no weights for vgg19")}


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


def test_an_image_that_is_gone_is_reported(bench: JobBench) -> None:
    """The record refers to an image that is missing from the store."""
    bench.submit()
    bench.store.remove("j")
    job = bench.run()
    assert job.error is not None
    assert job.request.images[0] in job.error.detail


def test_what_was_ignored_of_an_image_is_noted_in_its_results(bench: JobBench) -> None:
    """The note is in explanations and rankings, but not in those of a file with the same pixels."""
    odd = encoded(noise(), "WEBP", lossless=True, exif=b"garbage-garbage!")
    plain = encoded(noise(), "WEBP", lossless=True)
    said = "The EXIF data of the image's file was ignored: it is damaged."
    bench.submit("odd", images=[odd])
    assert [result.note for result in bench.run("odd:0").results] == [said] * 3
    bench.submit("plain", images=[plain])
    assert [(result.note, result.reused) for result in bench.run("plain:0").results] == [(None, False)] * 3
    bench.submit("again", images=[odd])
    assert [(result.note, result.reused) for result in bench.run("again:0").results] == [(said, True)] * 3
    bench.submit("ranks", images=[odd], kernels=[], methods=["activations"])
    assert bench.run("ranks:0").results[0].note == said


def test_one_note_does_not_replace_another(bench: JobBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question with this picture and these notes."""
    monkeypatch.setattr(slices, "note", lambda *_: "This is the blank picture.")
    bench.submit(images=[encoded(noise(), "WEBP", exif=b"garbage-garbage!")])
    assert bench.run().results[0].note == (
        "This is the blank picture. The EXIF data of the image's file was ignored: it is damaged."
    )


def test_results_of_other_colours_are_not_reused(bench: JobBench) -> None:
    """Not after a profile that changes the pixels; after one that does not, they are reused."""
    bench.submit("plain")
    bench.run("plain:0")
    bench.submit("phone", images=[png(noise(), icc_profile=profiles.display_p3())])
    assert not any(result.reused for result in bench.run("phone:0").results)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    bench.submit("srgb", images=[png(noise(), icc_profile=srgb)])
    assert all(result.reused for result in bench.run("srgb:0").results)


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


def test_who_waits_for_a_network_keeps_no_other_slice_waiting(bench: JobBench) -> None:
    """The network of one job is still being downloaded while another job's slice runs and ends."""
    arrived = Event()

    class Trickling(DummyDevice):
        def frame(self, model: str) -> Frame:
            assert model == "vgg_mini" or arrived.wait(30)
            return super().frame(model)

    bench.device = Trickling()
    bench.submit("slow", model="vgg19", layer="conv1_1")
    bench.submit("fast")
    with bench.runner() as runner:
        slow, fast = (Thread(target=runner.run, args=("interactive", f"{name}:0")) for name in ("slow", "fast"))
        slow.start()
        time.sleep(0.2)
        fast.start()
        fast.join(10)
        assert bench.records.job("fast").status is Status.SUCCEEDED
        arrived.set()
        slow.join()
    assert bench.records.job("slow").status is Status.SUCCEEDED


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


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


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


def test_what_a_method_does_not_look_at_does_not_make_other_work(bench: JobBench) -> None:
    """Options that a method does not use do not prevent the reuse of its results."""
    with bench.runner() as runner:
        bench.submit("one", methods=["suppression", "lrp"], kernels=[1], effort="quick", rule="zplus")
        runner.run("interactive", "one:0")
        bench.submit("two", methods=["suppression", "lrp"], kernels=[1], effort="quick", rule="gamma_epsilon")
        runner.run("interactive", "two:0")
        bench.submit("three", methods=["suppression", "lrp"], kernels=[1], effort="standard", rule="zplus")
        runner.run("interactive", "three:0")
    again = [[result.reused for result in bench.records.whole(name).results] for name in ("one", "two", "three")]
    assert again == [[False, False], [True, False], [False, True]]


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


def test_a_picture_that_invents_says_so(bench: JobBench) -> None:
    """The note advises what to change; there is none for a small invention."""
    with bench.runner() as runner:
        bench.submit("little", methods=["suppression"], kernels=[1])
        runner.run("interactive", "little:0")
    (result,) = bench.records.whole("little").results
    assert result.note is None
    question = Question("vgg_mini", "conv2_1", np.zeros((48, 48, 3), np.uint8), 1, 1.0, 1.0)
    answer = _answer(question, 1, "budget")
    loud = replace(
        answer, metrics=answer.metrics.model_copy(update={"invention": 0.42, "invention_beyond_blank": 0.42})
    )
    for method, advice in (
        ("suppression", "methods=evidence"),
        ("evidence", "max_invention"),
        ("lrp", "methods=evidence"),
    ):
        reported = note(loud, replace(question, method=method))
        assert reported is not None
        assert "42%" in reported
        assert "conv2_1" in reported
        assert advice in reported
