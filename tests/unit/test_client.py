"""What the client sends, when it sends it again, and the errors that it raises."""

from __future__ import annotations

import time
from typing import Any

import httpx
import numpy as np
import pytest
from tenacity import Retrying

from kernelscope.client import (
    Client,
    NotKernelscope,
    ServerError,
    ServerUnreachable,
    TooManyRequests,
    Unauthorized,
    UntrustedCertificate,
)
from kernelscope.client.transport import form, retrying
from shared.errors import QueueFull, RateLimited
from shared.errors import Unauthorized as NoKey
from tests.unit.client_server import Script, client, problem


def test_a_request_is_retried_with_one_idempotency_key() -> None:
    """After a lost connection, a proxy's 502, our own 503; each time it is the same request."""
    lost, away = httpx.ConnectError("refused"), problem(QueueFull("full", retry_after=0))
    script = Script(lost, httpx.Response(502, text="bad gateway"), away, httpx.Response(422, json={}))
    with client(script) as one, pytest.raises(ServerError):
        one.explain(b"x", layer="conv1_1", kernels=[1, 2], alpha=0.5, only_remove=True)
    assert len(script.requests) == 4
    assert len({request.headers["idempotency-key"] for request in script.requests}) == 1
    assert {request.headers["authorization"] for request in script.requests} == {"Bearer ks_secret"}
    body = script.requests[0].read()
    assert b"1,2" in body
    assert b"true" in body


def test_retries_end() -> None:
    """With `patience=0` after one attempt. The error has the URL, and how to start a server."""
    script = Script(httpx.ConnectError("refused"))
    with client(script, patience=0) as one, pytest.raises(ServerUnreachable, match=r"http://server.*kernelscope up"):
        one.models()
    assert len(script.requests) == 1
    script = Script(problem(RateLimited("wait"), **{"Retry-After": "60"}))
    with client(script) as one, pytest.raises(TooManyRequests):
        one.models()
    assert len(script.requests) == 1  # longer than the patience: raised at once


def test_an_untrusted_certificate_is_named_at_once() -> None:
    """It is no server that is away: no second attempt, and the way to trust it."""
    script = Script(httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate"))
    with client(script) as one, pytest.raises(UntrustedCertificate, match="SSL_CERT_FILE"):
        one.models()
    assert len(script.requests) == 1


def test_a_redirection_is_no_success() -> None:
    """A proxy's sign-in page neither deletes anything nor is a list."""
    script = Script(*[httpx.Response(302, headers={"Location": "https://login"}, text="sign in")] * 2)
    with client(script) as one:
        with pytest.raises(NotKernelscope):
            one.delete_dataset("0" * 32)
        with pytest.raises(NotKernelscope):
            one.models()


def test_retry_after_is_honoured() -> None:
    """The client waits at least so long."""
    script = Script(problem(RateLimited("wait"), **{"Retry-After": "1"}), httpx.Response(200, json=[]))
    begin = time.monotonic()
    with client(script) as one:
        assert one.models() == []
    assert time.monotonic() - begin >= 1


def test_pauses_grow_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exponential backoff with jitter, so that many clients do not retry together; the total time is limited."""
    pauses: list[list[float]] = [[], []]
    for paused in pauses:
        again = retrying(Retrying, 60)
        monkeypatch.setattr(again, "sleep", paused.append)

        def fail(paused: list[float] = paused) -> None:
            if len(paused) < 4:
                raise ServerUnreachable("http://server", None)

        again(fail)
    assert pauses[0] != pauses[1]
    assert all(0.5 <= pause / (0.2 * 2**number) <= 1 for each in pauses for number, pause in enumerate(each))
    begin = time.monotonic()
    with client(Script(httpx.ConnectError("refused")), patience=1) as one, pytest.raises(ServerUnreachable):
        one.models()
    assert time.monotonic() - begin < 1.5


def test_another_server_is_recognised() -> None:
    """By its error pages, whose HTML is not shown, and by responses that cannot be parsed."""
    page = httpx.Response(404, html="<!DOCTYPE HTML><html><h1>Error response</h1></html>")
    with (
        client(Script(page)) as one,
        pytest.raises(ServerError, match=r"Not Found: http://server/models returned a web page"),
    ):
        one.models()
    with (
        client(Script(httpx.Response(200, html="<html>"))) as one,
        pytest.raises(NotKernelscope, match="http://server"),
    ):
        one.models()


def test_errors_have_the_class_of_their_status() -> None:
    """A missing key, and a response that is not ours."""
    with client(Script(problem(NoKey("no key")))) as one, pytest.raises(Unauthorized, match="API key needed"):
        one.models()
    with (
        client(Script(httpx.Response(418, text="a teapot"))) as one,
        pytest.raises(ServerError, match="teapot") as raised,
    ):
        one.models()
    assert raised.value.status == 418


@pytest.mark.parametrize(
    ("kernels", "sent"),
    [
        (np.argsort([3.0, 1.0, 2.0])[::-1][:2], "0,2"),
        (np.array([[5], [7]]), "5,7"),
        (np.array(5), "5"),
        (np.int64(5), "5"),
        ([np.int32(1), np.uint8(2)], "1,2"),
        (range(2, 5), "2,3,4"),
        ((kernel for kernel in (1, 2)), "1,2"),
        ("top:3", "top:3"),
    ],
)
def test_kernels_of_any_type_are_sent(kernels: Any, sent: str) -> None:
    """Lists, ranges, arrays and NumPy's numbers."""
    _, fields = form(b"x", {"kernels": kernels})
    assert fields == {"kernels": sent}


def test_other_fields_of_numpy_s_types_are_sent() -> None:
    """None is not sent."""
    given = {
        "beta": np.linspace(0, 1, 3),
        "alpha": np.float32(0.1),
        "only_remove": np.bool_(True),
        "iterations": np.int64(9),
        "gamma": None,
    }
    _, fields = form(b"x", given)
    assert fields == {"beta": "0.0,0.5,1.0", "alpha": "0.1", "only_remove": "true", "iterations": "9"}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_requests_to_this_machine_use_no_proxy(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """Whatever the environment says."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    with Client(f"http://{host}:8000") as client:
        own = client._http._transport_for_url(httpx.URL(f"http://{host}:8000/jobs"))
        others = client._http._transport_for_url(httpx.URL("http://lab.example/jobs"))
    assert own is client._http._transport
    assert others is not own
