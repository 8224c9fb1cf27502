"""Calls to addresses that callers name: only to public ones, and to the very address that was checked.

A name that is public when it is looked up and private when it is connected to (DNS rebinding) finds no way in: the
connection is made to the address, not to the name. TLS still checks the name. Redirects are not followed.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Iterable
from urllib.parse import urlsplit

import httpcore

from shared.errors import WebhookRefused

SECONDS = 10.0  # to connect; and between two pieces of an answer


class ForbiddenAddressError(OSError):
    """The name leads to an address that is not called."""


def check_target(url: str, *, private: bool) -> None:
    """Refuse what cannot be called, as far as the URL itself shows it.

    Raises:
        WebhookRefused.
    """
    wanted = "give the https (or http) address of a public server"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise WebhookRefused(f"webhook_url is no address ({error}); {wanted}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise WebhookRefused(f"webhook_url is no address; {wanted}")
    if parts.username is not None or parts.password is not None:
        raise WebhookRefused("webhook_url has a user name or password in it; messages are signed instead")
    if private:
        return
    if host == "localhost" or host.endswith((".localhost", ".local", ".internal")) or not _allowed(host):
        raise WebhookRefused(f"webhook_url leads to {host}, which is not a public address; {wanted}")


def _allowed(host: str) -> bool:
    try:
        return is_public(host)
    except ValueError:  # a name: looked up, and checked, when it is called
        return True


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet.

    Raises:
        ValueError: it is no IP address.
    """
    found: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if inner is None and found in NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        found = inner or found
    return found.is_global and not found.is_multicast


NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class _CheckedBackend(httpcore.NetworkBackend):
    """Looks a name up, and connects to one of its addresses if all of them are public."""

    def __init__(self, *, private: bool) -> None:
        self.private = private
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """To the address, not to the name."""
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(sockaddr[0]) for *_, sockaddr in found]
        forbidden = [address for address in addresses if not is_public(address)]
        if forbidden and not self.private:
            raise ForbiddenAddressError(f"{host} leads to {forbidden[0]}, which is not a public address")
        return self._inner.connect_tcp(addresses[0], port, timeout, local_address, socket_options)


def post(url: str, body: bytes, headers: dict[str, str], *, private: bool) -> int:
    """`POST` to an address that a caller named; returns the answer's status.

    Raises:
        ForbiddenAddressError: the name leads to an address that is not called.
        OSError, httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError: nobody answered.
    """
    timeout = dict.fromkeys(("connect", "read", "write", "pool"), SECONDS)
    backend = _CheckedBackend(private=private)
    given = list(headers.items())
    context = ssl.create_default_context()
    with (
        httpcore.ConnectionPool(ssl_context=context, network_backend=backend) as pool,
        pool.stream("POST", url, headers=given, content=body, extensions={"timeout": timeout}) as answer,
    ):
        return answer.status  # what else it says is nobody's business
