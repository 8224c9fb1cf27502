"""Addresses that callers name: which are called, and that it is the address that was checked."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import httpcore
import pytest

from api.jobs import outbound
from api.jobs.outbound import ForbiddenAddressError, check_target, is_public, post
from shared.errors import WebhookRefused

FORBIDDEN = [
    "http://localhost/x",
    "http://LOCALHOST:80/",
    "http://a.localhost/",
    "http://printer.local/",
    "http://metadata.google.internal/",
    "http://127.0.0.1/",
    "http://10.1.2.3/",
    "http://172.16.0.1/",
    "http://192.168.0.1:8080/x",
    "http://169.254.169.254/latest/meta-data/",
    "http://100.64.0.1/",
    "http://0.0.0.0/",
    "http://224.0.0.1/",
    "http://255.255.255.255/",
    "http://[::1]/",
    "http://[::]/",
    "http://[fe80::1]/",
    "http://[fc00::1]/",
    "http://[ff02::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:10.0.0.1]/",
    "http://[::ffff:8.8.8.8]/",
    "http://[::ffff:0:a00:1]/",
    "http://[::ffff:0:808:808]/",
    "http://[3fff::1]/",
    "http://[5f00::1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[2002:7f00:1::]/",
]
MALFORMED = [
    "ftp://example.com/",
    "http://",
    "http:///x",
    "http://[::1",
    "http://example.com:99999/",
    "https://a:b@c.org/",
]


@pytest.mark.parametrize("url", FORBIDDEN)
def test_what_is_not_public_is_refused(url: str) -> None:
    """Loopback, private, link-local, shared, multicast, in IPv4 and IPv6 and one inside the other."""
    with pytest.raises(WebhookRefused, match="public"):
        check_target(url, private=False)
    check_target(url, private=True)


@pytest.mark.parametrize("url", MALFORMED)
def test_what_is_no_address_is_refused(url: str) -> None:
    """With any setting."""
    for private in (False, True):
        with pytest.raises(WebhookRefused):
            check_target(url, private=private)


@pytest.mark.parametrize("url", ["https://lab.example/hook?x=1", "http://8.8.8.8:8080/", "https://[2606:4700::1111]/"])
def test_what_is_public_is_taken(url: str) -> None:
    """A name is checked when it is called."""
    check_target(url, private=False)


def answering(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Every name leads to these addresses."""
    found: list[Any] = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["10.0.0.8"], ["8.8.8.8", "192.168.1.1"], ["169.254.169.254"]])
def test_a_public_name_that_leads_inside_is_not_called(monkeypatch: pytest.MonkeyPatch, addresses: list[str]) -> None:
    """Not even where only one of its addresses does; no connection is tried."""
    answering(monkeypatch, *addresses)
    with pytest.raises(ForbiddenAddressError, match=r"lab\.example resolves to"):
        post("http://lab.example/", b"", {}, private=False)


def test_the_connection_is_made_to_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is looked up once: what it leads to a moment later does not matter; the Host header keeps it."""
    looked_up: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def once(host: str, *_: object, **__: object) -> list[Any]:
            looked_up.append(host)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

        monkeypatch.setattr(socket, "getaddrinfo", once)
        monkeypatch.setattr(outbound, "is_public", lambda _: True)
        seen: list[bytes] = []

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                seen.append(connection.recv(65536))
                connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1/\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        monkeypatch.setattr(socket, "create_connection", _numeric_only(socket.create_connection))
        assert post(f"http://lab.example:{port}/hook", b"{}", {"a": "b"}, private=False) == 302
        thread.join()
    assert looked_up[0] == "lab.example"
    assert b"POST /hook HTTP/1.1\r\n" in seen[0]
    assert f"Host: lab.example:{port}".encode() in seen[0]


def _numeric_only(connect: Any) -> Any:
    def checked(address: tuple[str, int], *arguments: Any, **named: Any) -> Any:
        assert address[0] == "127.0.0.1"
        return connect(address, *arguments, **named)

    return checked


def test_a_name_that_is_not_found_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's resolver may take minutes; when all that may wait for it do, the next attempt fails at once."""
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answered.wait(30) and [])
    monkeypatch.setattr(outbound, "STEP_SECONDS", 0.2)
    monkeypatch.setattr(outbound, "LOOKUPS", threading.BoundedSemaphore(2))
    begin = time.monotonic()
    for complaint in ("lab.example was not resolved", "lab.example was not resolved", "the resolver does not respond"):
        with pytest.raises(httpcore.ConnectTimeout, match=complaint):
            post("http://lab.example/", b"", {}, private=False)
    assert time.monotonic() - begin < 5
    answered.set()
    for thread in threading.enumerate():
        if thread.name == "resolver":
            thread.join()


def test_a_name_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is reported as the system reports it."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(socket.gaierror, match="not known"):
        post("http://lab.example/", b"", {}, private=False)


def test_what_an_ip_address_is() -> None:
    """A name is none."""
    assert is_public("1.1.1.1")
    assert not is_public("192.0.2.1")
    with pytest.raises(ValueError, match="lab"):
        is_public("lab.example")
