"""The client's flows: what is sent again, how often, and what becomes of the answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import httpx
import pytest
from httpx_sse import ServerSentEvent

from kernelscope.client import (
    Client,
    NotKernelscope,
    ProgressEvent,
    ServerError,
    ServerUnreachable,
    StatusEvent,
    TooManyRequests,
    Unauthorized,
)
from kernelscope.client.events import Story
from kernelscope.client.flows import Patience, file_of
from shared.errors import QueueFull, RateLimited
from shared.errors import Unauthorized as NoKey
from shared.schemas import ItemResult, Status

Answering = Callable[[httpx.Request], httpx.Response]


def client(answer: Answering, patience: float = 5.0) -> Client:
    """One whose server is a function."""
    made = Client("http://server", "ks_secret", patience=patience)
    made._http = httpx.Client(
        base_url="http://server", transport=httpx.MockTransport(answer), headers=made._http.headers
    )
    return made


class Script:
    """Answers in turn, the last one ever after, and keeps the requests."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers: Sequence[httpx.Response | Exception] = answers
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """The next."""
        self.requests.append(request)
        answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer


def problem(error: QueueFull | RateLimited | NoKey, **headers: str) -> httpx.Response:
    """As the API answers it."""
    return httpx.Response(error.status, json=error.problem().model_dump(), headers=headers)


def test_what_passes_is_sat_out_with_one_idempotency_key() -> None:
    """A lost connection, a proxy's 502, our own 503: sent again, the same request each time."""
    lost, away = httpx.ConnectError("refused"), problem(QueueFull("full"))
    script = Script(lost, httpx.Response(502, text="bad gateway"), away, httpx.Response(422, json={}))
    with client(script) as one, pytest.raises(ServerError):
        one.explain(b"x", layer="conv1_1", kernels=[1, 2], alpha=0.5, only_remove=True)
    assert len(script.requests) == 4
    assert len({request.headers["idempotency-key"] for request in script.requests}) == 1
    assert {request.headers["authorization"] for request in script.requests} == {"Bearer ks_secret"}
    body = script.requests[0].read()
    assert b"1,2" in body
    assert b"true" in body


def test_patience_ends() -> None:
    """None at all: one try. The error says where nothing answers, and how to start a server."""
    script = Script(httpx.ConnectError("refused"))
    with client(script, patience=0) as one, pytest.raises(ServerUnreachable, match=r"http://server.*kernelscope up"):
        one.models()
    assert len(script.requests) == 1
    script = Script(problem(RateLimited("wait"), **{"Retry-After": "60"}))
    with client(script) as one, pytest.raises(TooManyRequests):
        one.models()
    assert len(script.requests) == 1  # longer than the patience: told at once


def test_retry_after_is_heeded() -> None:
    """At least so long."""
    script = Script(problem(RateLimited("wait"), **{"Retry-After": "1"}), httpx.Response(200, json=[]))
    begin = time.monotonic()
    with client(script) as one:
        assert one.models() == []
    assert time.monotonic() - begin >= 1


def test_pauses_grow_and_differ() -> None:
    """Many clients do not come back at the same moment."""
    both = Patience(60), Patience(60)
    pauses = [[pause.seconds for _ in range(4) if (pause := patience.next())] for patience in both]
    assert pauses[0] != pauses[1]
    assert all(0.5 <= pause / (0.2 * 2**number) <= 1 for each in pauses for number, pause in enumerate(each))


def test_another_server_is_told_from_ours() -> None:
    """Its error pages, which nobody wants to read as HTML; its answers."""
    page = httpx.Response(404, html="<!DOCTYPE HTML><html><h1>Error response</h1></html>")
    with (
        client(Script(page)) as one,
        pytest.raises(ServerError, match=r"Not Found: a web page came from http://server/"),
    ):
        one.models()
    with (
        client(Script(httpx.Response(200, html="<html>"))) as one,
        pytest.raises(NotKernelscope, match="http://server"),
    ):
        one.models()


def test_refusals_have_their_kind() -> None:
    """A missing key, and an answer that is not ours."""
    with client(Script(problem(NoKey("no key")))) as one, pytest.raises(Unauthorized, match="API key needed"):
        one.models()
    with (
        client(Script(httpx.Response(418, text="a teapot"))) as one,
        pytest.raises(ServerError, match="teapot") as told,
    ):
        one.models()
    assert told.value.status == 418


def test_no_picture_is_told_with_what_would_be_one() -> None:
    """Before anything is sent."""
    with pytest.raises(TypeError, match="numpy array of uint8"):
        file_of(17)
    with pytest.raises(FileNotFoundError, match=r"missing\.jpg"):
        file_of("missing.jpg")


def test_a_story_goes_on_where_it_was_and_skips_what_it_does_not_know() -> None:
    """Ids are kept, unknown events are none, the last status ends it."""
    story = Story(ItemResult)
    assert story.headers == {}
    assert story.told(ServerSentEvent("status", '{"status": "running"}', "1-0")) == StatusEvent(Status.RUNNING)
    assert story.told(ServerSentEvent("news", "{}", "2-0")) is None
    told = story.told(ServerSentEvent("progress", '{"completed": 1, "total": null, "loss": 0.5}', "3-0"))
    assert told == ProgressEvent(1, None, loss=0.5)
    assert story.headers == {"Last-Event-ID": "3-0"}
    assert not story.over
    story.told(ServerSentEvent("status", '{"status": "failed"}', "4-0"))
    assert story.over
