"""Jobs of `explain`: how long a refused one is tried again, which never fits, and what Ctrl-C says."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from kernelscope.client import Client, Job, ServerError, TooManyRequests
from kernelscope.photos import Photo
from kernelscope.submitting import REFUSED_SECONDS, SHORTEST_PAUSE, Submission, cancel
from shared.errors import (
    JobEnded,
    JobExpired,
    JobNotFound,
    KernelscopeError,
    QueueFull,
    QuotaExceeded,
    RateLimited,
    StoreUnavailable,
    Unauthorized,
    UnknownProxy,
)
from tests.unit.test_many_images import OPTIONS, Server

Respond = Callable[[httpx.Request], httpx.Response]


def client(respond: Respond, patience: float = 0) -> Client:
    """A client whose requests are answered here."""
    made = Client("http://server", patience=patience)
    made._http = httpx.Client(base_url="http://server", transport=httpx.MockTransport(respond))
    return made


def refused(error: KernelscopeError) -> httpx.Response:
    """The response of a server to a request that it refuses."""
    return httpx.Response(error.status, json=error.problem().model_dump(), headers=error.headers)


def images(request: httpx.Request) -> int:
    """How many images a request sends."""
    return request.content.count(b'name="image"')


@pytest.fixture
def photos(tmp_path: Path) -> list[Photo]:
    """Four files, which are one job."""
    made = [Photo(tmp_path / f"{number}.png", f"{number}.png") for number in range(4)]
    for photo in made:
        photo.path.write_bytes(photo.label.encode())
    return made


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long it slept, which takes no time."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


@pytest.mark.parametrize(("wanted", "expected"), [(3600, [60.0] * 10), (45, [45.0] * 13 + [15.0])])
def test_a_late_retry_after_is_waited_for_as_far_as_ten_minutes_go(
    photos: list[Photo], pauses: list[float], wanted: int, expected: list[float]
) -> None:
    """A long estimate of the server does not end the command at once; room that opens sooner is found."""
    asked: list[int] = []

    def respond(request: httpx.Request) -> httpx.Response:
        asked.append(images(request))
        return refused(QuotaExceeded("no room", retry_after=wanted))

    submission = Submission(client(respond), OPTIONS, several=True)
    with pytest.raises(TooManyRequests):
        list(submission.batches(photos))
    assert pauses == expected
    assert sum(pauses) == REFUSED_SECONDS
    assert len(asked) == len(pauses) + 1


@pytest.mark.parametrize("refusal", [QuotaExceeded, QueueFull])
def test_an_image_that_never_fits_ends_the_command_at_once(
    photos: list[Photo], pauses: list[float], refusal: type[KernelscopeError]
) -> None:
    """Fewer images are tried first; nothing is waited for, by the client neither."""
    asked: list[int] = []

    def respond(request: httpx.Request) -> httpx.Response:
        asked.append(images(request))
        return refused(refusal("waiting does not help"))

    submission = Submission(client(respond, patience=60), OPTIONS, several=True)
    with pytest.raises(ServerError, match="waiting does not help"):
        list(submission.batches(photos))
    assert asked == [4, 2, 1]
    assert pauses == []


def test_what_is_too_large_for_the_quota_is_halved_at_once(photos: list[Photo], pauses: list[float]) -> None:
    """Two images fit."""
    server = Server()

    def respond(request: httpx.Request) -> httpx.Response:
        return refused(QuotaExceeded("too large")) if images(request) > 2 else server(request)

    made = list(Submission(client(respond), OPTIONS, several=True).batches(photos))
    assert [len(one.photos) for one in made] == [2, 2]
    assert pauses == []


def test_a_proxy_that_refuses_without_saying_until_when_is_asked_again(
    photos: list[Photo], pauses: list[float]
) -> None:
    """Its 429 has no Retry-After, or a date."""
    refusals = [
        httpx.Response(429, text="slow down", headers=headers)
        for headers in ({}, {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"})
    ]
    server = Server()
    submission = Submission(client(lambda asked: refusals.pop() if refusals else server(asked)), OPTIONS, several=True)
    assert [len(one.photos) for one in submission.batches(photos)] == [len(photos)]
    assert pauses == [SHORTEST_PAUSE] * 2


@pytest.mark.parametrize("between", [[], [RateLimited("too many requests", retry_after=1)] * 2])
def test_a_request_is_sent_again_with_its_key(
    photos: list[Photo], pauses: list[float], between: list[KernelscopeError]
) -> None:
    """The first one was queued although its answer was 503: there is no second job, and that one is followed."""
    server = Server()
    created: dict[str, httpx.Response] = {}
    errors = [StoreUnavailable("Redis does not respond", retry_after=2), *between]

    def respond(request: httpx.Request) -> httpx.Response:
        key = request.headers["idempotency-key"]
        created[key] = created.get(key) or server(request)
        return refused(errors.pop(0)) if errors else created[key]

    made = list(Submission(client(respond), OPTIONS, several=True).batches(photos))
    assert [one.job.id for one in made] == list(server.jobs)
    assert [one.photos for one in made] == [photos]
    assert pauses


def test_each_job_has_its_own_key(photos: list[Photo], pauses: list[float]) -> None:
    """Halves of a refused request too."""
    server = Server(most=1)
    keys: list[tuple[int, str]] = []

    def respond(request: httpx.Request) -> httpx.Response:
        keys.append((images(request), request.headers["idempotency-key"]))
        return server(request)

    list(Submission(client(respond), OPTIONS, several=True).batches(photos))
    assert len(server.jobs) == 4
    assert len({key for _, key in keys}) == 7  # 4; 2, 2; 1, 1, 1, 1
    assert len(set(keys)) == 7


def jobs(answers: list[httpx.Response]) -> list[Job]:
    """Two jobs, of a server that answers so when they are cancelled."""
    server = Server()

    def respond(request: httpx.Request) -> httpx.Response:
        return answers.pop(0) if request.url.path.endswith("/cancel") else server(request)

    one = client(respond)
    return [one.explain(b"image", layer="conv2_2", kernels=[3]) for _ in range(2)]


@pytest.mark.parametrize(
    "error",
    [
        StoreUnavailable("Redis does not respond"),
        RateLimited("too many requests", retry_after=9),
        Unauthorized("no such key"),
        UnknownProxy("a proxy"),
    ],
)
def test_ctrl_c_says_which_jobs_may_still_run(error: KernelscopeError, capsys: pytest.CaptureFixture[str]) -> None:
    """The first of these has ended; of the second the server says nothing."""
    made = jobs([refused(JobEnded("it has ended")), refused(error)])
    assert cancel(made) is False
    said = " ".join(capsys.readouterr().err.split())
    assert "the server did not confirm that the jobs are cancelled" in said
    assert error.detail in said
    assert f"what may still run is cancelled by: kernelscope cancel {made[1].id}" in said
    assert made[0].id not in said


@pytest.mark.parametrize("error", [JobNotFound, JobEnded, JobExpired])
def test_a_job_that_has_ended_or_is_gone_needs_no_cancelling(
    error: type[KernelscopeError], capsys: pytest.CaptureFixture[str]
) -> None:
    """404, 409 and 410 are no failure."""
    assert cancel(jobs([refused(error("gone")), refused(error("gone"))])) is True
    assert capsys.readouterr().err == "interrupted: the jobs are cancelled\n"
