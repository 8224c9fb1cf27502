"""`explain` of many images on a server that has no room, is away, or fails."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from kernelscope import many, submitting
from kernelscope.client import Client, ServerUnreachable, TooManyRequests
from kernelscope.explain import _leave, _report
from kernelscope.manifest import Folder, results_of
from kernelscope.many import Run
from kernelscope.photos import Photo, found
from kernelscope.submitting import Batch, Submission
from kernelscope.supervise import StackFailed
from shared.errors import KernelscopeError, ModelUnavailable, QueueFull, QuotaExceeded
from shared.schemas import ExplainOptions, ExplainRequest, ItemResult, WholeJob, plan

OPTIONS = ExplainOptions(layer="conv2_2", kernels=[3, 16], model="vgg16")


class Server:
    """Accepts jobs as its quota has room; each ends, without results, when it was read twice.

    Args:
        room: unfinished jobs that it takes.
        most: images of a job, of which it says no more than that there is no room.
        refusal: how it refuses more.
    """

    def __init__(self, room: int = 100, most: int = 16, refusal: type[KernelscopeError] = QuotaExceeded) -> None:
        self.room, self.most, self.refusal = room, most, refusal
        self.reads: dict[str, int] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.log: list[str] = []
        self.error: KernelscopeError | None = None  # of every item
        self.away = False

    @property
    def unfinished(self) -> int:
        """The number of such jobs."""
        return sum(reads < 2 for reads in self.reads.values())

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """The answer to a request."""
        if self.away:
            self.log.append(f"{request.method} {request.url.path}")
            raise httpx.ConnectError("refused")
        if request.url.path == "/explain":
            return self._explain(request.content.count(b'name="image"'))
        _, _, job_id, *rest = request.url.path.split("/")
        if rest == ["events"]:
            return httpx.Response(204)
        self.reads[job_id] += 1
        if self.reads[job_id] == 2:
            self.log.append("ended")
        return httpx.Response(200, json=self._job(job_id))

    def _explain(self, images: int) -> httpx.Response:
        if self.unfinished >= self.room or images > self.most:
            self.log.append("refused")
            problem = self.refusal("no room", retry_after=2)
            return httpx.Response(problem.status, json=problem.problem().model_dump(), headers=problem.headers)
        self.log.append("accepted")
        job_id = f"{len(self.jobs):032x}"
        digests = [f"{len(self.jobs):032x}{number:032x}" for number in range(images)]
        self.jobs[job_id] = {**OPTIONS.model_dump(mode="json"), "images": digests}
        self.reads[job_id] = 0
        return httpx.Response(202, json=self._job(job_id))

    def _job(self, job_id: str) -> dict[str, Any]:
        ended = self.reads[job_id] >= 2
        request = ExplainRequest.model_validate(self.jobs[job_id])
        items = [item for part in plan(request, 10_000) for item in part]
        results = []
        if ended and self.error:
            results = [ItemResult.of(item, request, item.kernel).failed(self.error) for item in items]
        return {
            "id": job_id,
            "status": ("failed" if self.error else "succeeded") if ended else "running",
            **dict.fromkeys(("created_at", "started_at", "expires_at"), "2026-11-28T12:00:00Z"),
            "finished_at": "2026-11-28T12:01:00Z" if ended else None,
            "attempt": 1,
            "queue_position": None,
            "request": request.model_dump(mode="json"),
            "progress": {"completed": len(items) if ended else 5, "total": len(items), "failed": len(results)},
            "failed_items": len(results),
            "links": {"events": f"/jobs/{job_id}/events"},
            "results": [one.model_dump(mode="json") for one in results],
            "error": None,
        }

    def client(self) -> Client:
        """A client that sends nothing again by itself."""
        made = Client("http://server", patience=0)
        made._http = httpx.Client(base_url="http://server", transport=httpx.MockTransport(self))
        return made


@pytest.fixture
def photos(tmp_path: Path) -> list[Photo]:
    """Forty files, which are three jobs."""
    (tmp_path / "photos").mkdir()
    for number in range(40):
        (tmp_path / "photos" / f"{number:02}.png").write_bytes(b"%d" % number)
    return found([tmp_path / "photos"])


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long it slept, which takes no time but moves the clock."""
    slept: list[float] = []
    clock = time.monotonic
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(time, "monotonic", lambda: clock() + sum(slept))
    return slept


def run_of(server: Server, tmp_path: Path, photos: list[Photo]) -> Run:
    """An `explain` of these images."""
    return Run(server.client(), OPTIONS, Folder(tmp_path / "out", {}), len(photos))


@pytest.mark.parametrize("refusal", [QuotaExceeded, QueueFull])
def test_a_full_quota_waits_for_a_job_of_this_command(
    refusal: type[KernelscopeError], tmp_path: Path, photos: list[Photo], pauses: list[float]
) -> None:
    """It asks again when one has ended, not before, and not earlier than the server wants."""
    server = Server(room=1, refusal=refusal)
    run = run_of(server, tmp_path, photos)
    run.follow(photos)
    assert (run.done, len(run.jobs), run.refused) == (40, 3, {})
    assert server.log == ["accepted", "refused", "ended", "accepted", "refused", "ended", "accepted", "ended"]
    assert [round(one) for one in pauses if one > 0.5] == [2, 2]


def test_where_others_fill_the_quota_it_waits_and_says_so(
    tmp_path: Path, photos: list[Photo], pauses: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """By Retry-After, for ten minutes; then it ends, and the same command continues."""
    server = Server(room=0)
    run = run_of(server, tmp_path, photos)
    with pytest.raises(TooManyRequests):
        run.follow(photos)
    assert set(pauses) <= {0.0, submitting.SHORTEST_PAUSE}
    assert sum(pauses) == submitting.REFUSED_SECONDS
    said = capsys.readouterr().err
    assert said.count("Quota exceeded: no room; trying again for up to 10 minutes") == 1
    assert f"the same command with --output {run.folder.path} continues" in " ".join(said.split())


def test_room_that_comes_later_is_used(tmp_path: Path, photos: list[Photo], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost by the waiting, of `--detach` neither."""
    server = Server(room=0)

    def sleep(seconds: float) -> None:
        server.room = 100 if seconds else server.room

    monkeypatch.setattr(time, "sleep", sleep)
    run = run_of(server, tmp_path, photos)
    run.follow(photos)
    assert run.done == 40
    server.room = server.unfinished
    made = list(Submission(server.client(), OPTIONS, several=True).batches(photos))
    assert [photo for one in made for photo in one.photos] == photos


def test_a_quota_that_is_less_than_one_job_gets_smaller_ones(
    tmp_path: Path, photos: list[Photo], pauses: list[float]
) -> None:
    """Each image is asked for once."""
    server = Server(most=5)
    run = run_of(server, tmp_path, photos)
    run.follow(photos)
    assert run.done == 40
    assert sum(len(job["images"]) for job in server.jobs.values()) == 40
    assert all(len(job["images"]) > 1 for job in server.jobs.values())
    assert pauses


def test_the_progress_counts_explanations_while_a_job_runs(tmp_path: Path, photos: list[Photo]) -> None:
    """Those of finished jobs, of running ones, and those that are still to be asked for."""
    server = Server()
    run = run_of(server, tmp_path, photos)
    first, second = (
        Batch(run.client.explain([photo.path for photo in some], **OPTIONS.model_dump(exclude_defaults=True)), some)
        for some in (photos[:16], photos[16:32])
    )
    words = r"10 of 80 explanations of 40 images, the current job running: 5 of 32"
    assert re.match(words, run._state([first, second]))
    run._ended(Batch(first.job.refresh().refresh(), first.photos))
    assert re.match(r"5 of 48 explanations of 40 images", run._state([second]))


def test_ctrl_c_gives_up_at_once_where_the_server_is_away(
    tmp_path: Path, photos: list[Photo], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not say that the jobs are cancelled."""
    server = Server()
    run = run_of(server, tmp_path, photos)

    def interrupted(*_: object) -> None:
        server.away = True
        raise KeyboardInterrupt

    opened: list[Batch] = []
    run._make(run.submission.attempts(photos), opened, 3)
    assert len(opened) == 3
    server.away, server.log = True, []
    run._interrupted(opened)
    assert server.log == ["POST /jobs/00000000000000000000000000000000/cancel"]
    said = " ".join(capsys.readouterr().err.split())
    assert "the server did not confirm that the jobs are cancelled: no Kernelscope server answers" in said
    assert "continues" in said
    server.away = False
    monkeypatch.setattr(many.Run, "_wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_of(server, tmp_path / "other", photos).follow(photos)


def test_a_stack_that_fails_is_no_interrupt(
    tmp_path: Path, photos: list[Photo], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is asked of it any more."""
    server = Server()

    def failed(*_: object) -> None:
        server.away, server.log = True, []
        raise StackFailed

    monkeypatch.setattr(many.Run, "_wait", failed)
    with pytest.raises(StackFailed):
        run_of(server, tmp_path, photos).follow(photos)
    assert server.log == []
    said = capsys.readouterr().err
    assert "interrupted" not in said
    assert "continues" in said


def test_a_network_without_weights_is_named_with_the_reason_and_what_helps(
    tmp_path: Path, photos: list[Photo], capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, not for each explanation; and the same command tries again."""
    server = Server()
    server.error = ModelUnavailable("no weights for vgg16: the download from example.org failed (no route)")
    run = run_of(server, tmp_path, photos[:1])
    run.follow(photos[:1])
    _report(run, tmp_path, as_json=False, pictures=False)
    printed = capsys.readouterr()
    why = "Model unavailable: no weights for vgg16: the download from example.org failed (no route)"
    assert f"kernel 3; kernel 16: {why}\n" in printed.out
    assert "`--model vgg_mini` takes a small network" in printed.err
    _report(run, tmp_path, as_json=True, pictures=False)
    printed = capsys.readouterr()
    assert json.loads(printed.out)["job"]["status"] == "failed"
    assert "`--model vgg_mini` takes a small network" in printed.err
    record = WholeJob.model_validate(server._job("0" * 32))
    assert results_of(record, record.request.images[0], None) == []


def test_detached_jobs_are_printed_as_they_are_made(photos: list[Photo], capsys: pytest.CaptureFixture[str]) -> None:
    """Also those before a failure."""
    server = Server()
    _leave(Submission(server.client(), OPTIONS, several=True), photos, as_json=False)
    assert capsys.readouterr().out.split() == [*server.jobs]
    server.away = True
    with pytest.raises(ServerUnreachable):
        _leave(Submission(server.client(), OPTIONS, several=True), photos, as_json=False)
