"""The client follows a job by its events."""

from __future__ import annotations

import httpx
import pytest
from httpx_sse import ServerSentEvent
from pydantic import TypeAdapter

from kernelscope.client import (
    NotFound,
    NotKernelscope,
    ProgressEvent,
    ServerError,
    ServerUnreachable,
    StatusEvent,
    Unauthorized,
)
from kernelscope.client.events import EventLog
from kernelscope.client.sync import jobs
from shared.errors import JobExpired, KernelscopeError
from shared.errors import Unauthorized as NoKey
from shared.schemas import ItemResult, Status, plan
from tests.unit.client_server import (
    ENDED,
    EVENTS,
    ITEMS,
    REQUEST,
    RUNNING,
    Broken,
    Server,
    client,
    progress,
    record,
    stream,
)


def log() -> EventLog[ItemResult]:
    """Of a job of which nothing has been read yet."""
    return EventLog(TypeAdapter(ItemResult))


def test_events_continue_after_the_last_one_and_unknown_ones_are_skipped() -> None:
    """Ids are kept; a terminal status is the end."""
    read = log()
    assert read.headers == {}
    assert read.parse(ServerSentEvent("status", '{"status": "running"}', "1-0")) == StatusEvent(Status.RUNNING)
    assert read.parse(ServerSentEvent("news", "{}", "2-0")) is None
    event = read.parse(ServerSentEvent("progress", '{"completed": 1, "total": null, "loss": 0.5}', "3-0"))
    assert event == ProgressEvent(1, None, loss=0.5)
    assert read.headers == {"Last-Event-ID": "3-0"}
    assert not read.ended
    read.parse(ServerSentEvent("status", '{"status": "failed"}', "4-0"))
    assert read.ended


@pytest.mark.parametrize(
    ("error", "kind", "raised"),
    [(JobExpired("deleted"), "gone", NotFound), (NoKey("revoked"), "problem", Unauthorized)],
)
def test_events_that_end_for_good_raise_the_reason(
    error: KernelscopeError, kind: str, raised: type[ServerError]
) -> None:
    """The job was deleted, or the key revoked, while its events were read."""
    data = error.problem().model_dump_json()
    with pytest.raises(raised, match=error.detail):
        log().parse(ServerSentEvent(kind, data))


def test_events_are_resumed_after_a_server_error() -> None:
    """After the last event."""
    read = log()
    read.parse(ServerSentEvent("status", '{"status": "running"}', "1-0"))
    assert read.parse(ServerSentEvent("problem", KernelscopeError("a bug").problem().model_dump_json())) is None
    assert not read.ended
    assert read.headers == {"Last-Event-ID": "1-0"}


def test_progress_is_followed_by_events_and_not_by_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job is read once for each status; `on_change` gets the progress of the events, which never goes back."""
    monkeypatch.setattr(jobs, "REPORT_SECONDS", 0)
    none = {"completed": 0, "total": ITEMS, "failed": 0}
    server = Server(
        record("queued"),
        record("running", progress=none),
        record("succeeded"),
        events=[stream(RUNNING, progress(10), progress(9), progress(30)), stream(progress(31), ENDED)],
    )
    seen: list[tuple[str, int]] = []
    with client(server) as one:
        one.job("j").wait(on_change=lambda job: seen.append((job.status, job.progress.completed))).check()
    assert seen == [("running", done) for done in (0, 10, 10, 30, 31)] + [("succeeded", ITEMS)]
    assert server.requests == ["GET /jobs/j", EVENTS, "GET /jobs/j", EVENTS, "GET /jobs/j"]


def test_what_events_do_not_contain_is_read_when_they_are_silent() -> None:
    """A queued job has a place in the queue, of which there are no events."""
    silent = httpx.Response(
        200, stream=Broken(httpx.ReadTimeout("silent")), headers={"Content-Type": "text/event-stream"}
    )
    server = Server(
        record("queued", queue_position=5),
        record("queued", queue_position=3),
        record("succeeded"),
        events=[silent, stream(ENDED)],
    )
    seen: list[int | None] = []
    with client(server) as one:
        one.job("j").wait(on_change=lambda job: seen.append(job.queue_position))
    assert seen == [3, None]


def test_results_of_a_small_job_are_those_of_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are there when `on_change` is called."""
    monkeypatch.setattr(jobs, "REPORT_SECONDS", 0)
    (items, *_) = plan(REQUEST, ITEMS)
    one_result = ItemResult.of(items[0], REQUEST, 0).model_dump(mode="json")
    server = Server(
        record("running", results=[]),
        record("running", results=[]),
        record("succeeded", results=[one_result]),
        events=[stream(RUNNING, ("result", one_result), ENDED)],
    )
    seen: list[int] = []
    with client(server) as one:
        job = one.job("j").wait(on_change=lambda job: seen.append(len(job.results)))
        assert seen == [0, 1, 1]
        assert job.results[0]._client is one


def test_streams_that_never_work_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that accepts the request and then ends each stream at once."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    server = Server(record("running"), events=[stream() for _ in range(20)])
    with client(server) as one, pytest.raises(ServerUnreachable, match="the event stream ended early"):
        list(one.job("j").events())
    assert 5 < server.requests.count(EVENTS) < 20
    other = Server(record("running"), events=[httpx.Response(200, html="<html>")])
    with client(other) as one, pytest.raises(NotKernelscope):
        list(one.job("j").events())
