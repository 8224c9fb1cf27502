"""Requests to URLs that callers provide: only to public addresses, and to exactly the address that was checked.

DNS rebinding (a name that resolves to a public address when it is checked, and to a private one when it is used) has no
effect: the connection is made to the checked address. TLS still verifies the name. Redirects are not followed.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from threading import BoundedSemaphore, Thread
from typing import Any
from urllib.parse import urlsplit

import httpcore

from shared.errors import WebhookRefused

STEP_SECONDS = 10.0  # to connect, and between two pieces of a response
WHOLE_SECONDS = 30.0  # for the whole request
LOOKUPS = BoundedSemaphore(64)  # concurrent name lookups


class ForbiddenAddressError(OSError):
    """The name resolves to an address that is not allowed."""


def check_target(url: str, *, private: bool) -> None:
    """Refuse a URL that cannot be called, as far as the URL itself shows this.

    Raises:
        WebhookRefused.
    """
    expected = "give the https (or http) address of a public server"
    if not url.isascii():
        raise WebhookRefused(
            f"webhook_url has characters outside ASCII; write them as punycode and %-escapes, and {expected}"
        )
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise WebhookRefused(f"webhook_url is not a URL ({error}); {expected}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise WebhookRefused(f"webhook_url is not a URL; {expected}")
    if parts.username is not None or parts.password is not None:
        raise WebhookRefused("webhook_url contains a user name or password; messages are signed instead")
    if private:
        return
    if host == "localhost" or host.endswith((".localhost", ".local", ".internal")) or not _allowed(host):
        raise WebhookRefused(f"webhook_url leads to {host}, which is not a public address; {expected}")


def _allowed(host: str) -> bool:
    try:
        return is_public(host)
    except ValueError:  # a name: resolved and checked when it is called
        return True


def is_public(address: str) -> bool:
    """Whether an IP address is public.

    Raises:
        ValueError: it is not an IP address.
    """
    found: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(address)
    if _special(found):
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.sixtofour or (found.teredo[1] if found.teredo else None)
        if inner is None and found in NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        found = inner or found
    return found.is_global and not found.is_multicast and not _special(found)


def _special(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return any(address in network for network in NOT_PUBLIC if network.version == address.version)


NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Networks that `is_global` regards as public in some versions of Python.
NOT_PUBLIC = [
    ipaddress.ip_network(text)
    for text in (
        "192.0.0.0/24",  # protocol assignments
        "168.63.129.16/32",  # services of a cloud provider
        "64:ff9b:1::/48",  # NAT64 of a site
        "fec0::/10",  # site-local
        "::/96",  # IPv4-compatible
        "::ffff:0:0/96",  # IPv4-mapped: no real name resolves to it
        "::ffff:0:0:0/96",  # IPv4-translated (SIIT)
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing
    )
]


class _CheckedBackend(httpcore.NetworkBackend):
    """Resolves a name, and connects to one of its addresses if all of them are public."""

    def __init__(self, *, private: bool) -> None:
        self.private = private
        self._inner = httpcore.SyncBackend()
        self._end = time.monotonic() + WHOLE_SECONDS

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - ours is shorter
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the address, not to the name."""
        addresses = _resolve(host, port, self.left())
        if not self.private and not all(is_public(address) for address in addresses):
            raise ForbiddenAddressError(f"{host} resolves to an address that is not public")
        for address in addresses[:-1]:
            with suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return self._connect(address, port, local_address, socket_options)
        return self._connect(addresses[-1], port, local_address, socket_options)

    def _connect(
        self,
        address: str,
        port: int,
        local_address: str | None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None,
    ) -> httpcore.NetworkStream:
        stream = self._inner.connect_tcp(address, port, self.left(), local_address, socket_options)
        return _TimedStream(stream, self.left)

    def left(self) -> float:
        """The timeout of the next step: what is left of `WHOLE_SECONDS`, at most `STEP_SECONDS`."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout(f"not done after {WHOLE_SECONDS:g} s")
        return min(left, STEP_SECONDS)


def _resolve(host: str, port: int, seconds: float) -> list[str]:
    """The addresses of a name. `getaddrinfo` has no timeout, so it runs in a thread that may be abandoned."""
    result: Future[list[str]] = Future()

    def lookup() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            result.set_result(list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found)))
        except Exception as error:  # raised by `result.result`
            result.set_exception(error)
        finally:
            LOOKUPS.release()

    if not LOOKUPS.acquire(blocking=False):
        raise httpcore.ConnectTimeout("too many name lookups are pending: the resolver does not respond")
    Thread(target=lookup, name="resolver", daemon=True).start()
    try:
        return result.result(seconds)
    except FutureTimeout:
        raise httpcore.ConnectTimeout(f"{host} was not resolved within {seconds:.0f} s") from None


class _TimedStream(httpcore.NetworkStream):
    """A stream whose steps share one timeout."""

    def __init__(self, inner: httpcore.NetworkStream, left: Callable[[], float]) -> None:
        self._inner = inner
        self._left = left

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - ours is shorter
        """Read within the time that is left."""
        return self._inner.read(max_bytes, self._left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        """Write within the time that is left."""
        self._inner.write(buffer, self._left())

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        """Start TLS within the time that is left."""
        return _TimedStream(self._inner.start_tls(ssl_context, server_hostname, self._left()), self._left)

    def get_extra_info(self, info: str) -> Any:
        """The inner stream's information."""
        return self._inner.get_extra_info(info)

    def close(self) -> None:
        """Close the inner stream."""
        self._inner.close()


def post(url: str, body: bytes, headers: dict[str, str], *, private: bool) -> int:
    """Send a `POST` to a URL that a caller provided; returns the status of the response.

    Raises:
        ForbiddenAddressError: the name resolves to an address that is not allowed.
        OSError, httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError: there was no response.
    """
    timeout = dict.fromkeys(("connect", "read", "write", "pool"), STEP_SECONDS)
    backend = _CheckedBackend(private=private)
    given = list(headers.items())
    context = ssl.create_default_context()
    with (
        httpcore.ConnectionPool(ssl_context=context, network_backend=backend) as pool,
        pool.stream("POST", url, headers=given, content=body, extensions={"timeout": timeout}) as response,
    ):
        return response.status  # the body is not read
