"""Values of settings that have a form of their own: addresses, origins, public URLs, rates."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

SITE_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*/?")
RATE = re.compile(r"[1-9][0-9]{0,8}/(second|minute|hour|day)")


def checked_rate(value: str) -> str:
    """The rate itself.

    Raises:
        ValueError: it is not one.
    """
    if not RATE.fullmatch(value):
        raise ValueError(f"{value!r} is not a rate; write 100/second, 6000/minute, …/hour or …/day")
    return value


def checked_site(value: str) -> str:
    """The URL without a slash at its end.

    Raises:
        ValueError: a proxy cannot serve the API at it.
    """
    parts = urlsplit(value)
    plain = SITE_PATH.fullmatch(parts.path) and not (parts.query or parts.fragment or parts.username)
    if parts.scheme not in ("http", "https") or not parts.hostname or not plain:
        raise ValueError(f"{value!r} is not a public URL; write https://lab.example or https://lab.example/kernelscope")
    return value.rstrip("/")


def address(value: str) -> tuple[str, int]:
    """Host and port of `127.0.0.1:9100` or `[::1]:9100`.

    Raises:
        ValueError: it is not one.
    """
    host, _, port = value.rpartition(":")
    if not (host and port.isdigit() and int(port) < 65536):
        raise ValueError(f"{value!r} is not an address; write host:port, such as 127.0.0.1:9100")
    return host.strip("[]"), int(port)


def origin(value: str) -> str:
    """An origin as browsers send it: without the slash at the end, in small letters.

    Raises:
        ValueError: it is not one.
    """
    plain = value.removesuffix("/").lower()
    parts = urlsplit(plain)
    if plain != "*" and not (parts.hostname and plain == f"{parts.scheme}://{parts.netloc}"):
        raise ValueError(f"{value!r} is not an origin; write https://lab.example, without a path, or * for all")
    return plain
