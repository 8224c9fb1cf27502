"""How this server is reached: the path under which it is served, and the host names and origins that it accepts."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from shared.errors import CrossOrigin, UnknownProxy
from shared.settings import Settings

SAFE = ("GET", "HEAD", "OPTIONS")
FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-prefix")
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class UnderRoot:
    """ASGI middleware: serves the routes at `/` and under the public URL's path, which a proxy may or may not strip.

    Args:
        root: `/kernelscope`, or empty.
    """

    app: ASGIApp
    root: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Make the path begin with the root, as ASGI requires."""
        if scope["type"] == "http" and self.root:
            if scope["path"] == self.root:
                await RedirectResponse(f"{self.root}/", 308)(scope, receive, send)
                return
            if not scope["path"].startswith(f"{self.root}/"):
                scope["path"] = self.root + scope["path"]
            scope["root_path"] = self.root
        await self.app(scope, receive, send)


def route_path(scope: Scope) -> str:
    """The request's path without the root."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def is_reachable_by_others(host: str) -> bool:
    """Whether other machines can connect to a server that listens on this address."""
    if host == "localhost":
        return False
    address = _address(host)
    return address is None or not address.is_loopback


def check_proxy(scope: Scope, settings: Settings) -> None:
    """Refuse forwarded requests where every client is believed to be on this machine.

    Raises:
        UnknownProxy.
    """
    if settings.access != "auto" or settings.behind_proxy or is_reachable_by_others(settings.host):
        return
    headers = Headers(scope=scope)
    if found := next((name for name in FORWARDED if name in headers), None):
        raise UnknownProxy(
            f"a proxy forwarded this request ({found}), but this server serves its own machine only; set "
            "KERNELSCOPE_PUBLIC_URL to the proxy's URL, and make an API key: `kernelscope keys add NAME`"
        )


def check_host(scope: Scope, settings: Settings) -> None:
    """Refuse foreign host names where no key is needed: another site's name may resolve to this server (DNS rebinding).

    IP addresses are not affected.

    Raises:
        CrossOrigin.
    """
    given = Headers(scope=scope).get("host", "")
    name = _name(given).lower()
    own = {*LOOPBACK_NAMES, settings.host, urlsplit(settings.public_url).hostname, *settings.allowed_hosts}
    if name in own or "*" in own or (_address(name) and is_reachable_by_others(settings.host)):
        return
    if settings.access == "auto":
        raise CrossOrigin(
            f"this server serves its own machine only, but the request's host is {given[:80]!r}; use localhost, or set "
            "KERNELSCOPE_PUBLIC_URL if a proxy leads here"
        )
    raise CrossOrigin(
        f"the request's host is {given[:80]!r}, and this server requires no keys; set KERNELSCOPE_ALLOWED_HOSTS to its "
        "host names, or KERNELSCOPE_ACCESS=keys"
    )


def check_origin(scope: Scope, settings: Settings) -> None:
    """Refuse requests that a page of another site makes a browser send.

    A browser adds cookies and a proxy's `Authorization: Basic` by itself, but never our keys.

    Raises:
        CrossOrigin.
    """
    headers = Headers(scope=scope)
    origin = headers.get("origin")
    if origin is None or scope["method"] in SAFE or headers.get("authorization", "").lower().startswith("bearer "):
        return
    public = urlsplit(settings.public_url)
    own = {headers.get("host", ""), public.netloc}
    allowed = settings.cors_origins
    if "*" not in allowed and origin not in allowed and origin.partition("://")[2] not in own:
        raise CrossOrigin(
            "a page of another site sent this request; KERNELSCOPE_CORS_ORIGINS lists the sites that may, and "
            "KERNELSCOPE_PUBLIC_URL is this site's own URL behind a proxy"
        )


def _name(host: str) -> str:
    """The host without its port: `127.0.0.1:8000` → `127.0.0.1`, `[::1]:8000` → `::1`."""
    return host.partition("]")[0].strip("[") if host.startswith("[") else host.rpartition(":")[0] or host


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
