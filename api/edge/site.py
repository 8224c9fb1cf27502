"""Where this server is to the world: the path under which it is served, and the names by which it may be asked."""

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
    """ASGI middleware: the same routes at `/` and under the public URL's path, whether or not the proxy takes it off.

    Args:
        root: `/kernelscope`, or empty.
    """

    app: ASGIApp
    root: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have the path begin with the root, as ASGI wants it."""
        if scope["type"] == "http" and self.root:
            if scope["path"] == self.root:
                await RedirectResponse(f"{self.root}/", 308)(scope, receive, send)
                return
            if not scope["path"].startswith(f"{self.root}/"):
                scope["path"] = self.root + scope["path"]
            scope["root_path"] = self.root
        await self.app(scope, receive, send)


def route(scope: Scope) -> str:
    """The path below the root: that of the routes."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def others_reach(host: str) -> bool:
    """Whether other machines reach what listens on this address."""
    if host == "localhost":
        return False
    address = _address(host)
    return address is None or not address.is_loopback


def check_proxy(scope: Scope, settings: Settings) -> None:
    """Refuse what a proxy passed on where whoever asks is believed to be on this machine.

    Raises:
        UnknownProxy.
    """
    if settings.access != "auto" or settings.behind_proxy or others_reach(settings.host):
        return
    headers = Headers(scope=scope)
    if found := next((name for name in FORWARDED if name in headers), None):
        raise UnknownProxy(
            f"a proxy passed this on ({found}), and this server answers its own machine only; set "
            "KERNELSCOPE_PUBLIC_URL to where the proxy serves it, and make an API key: `kernelscope keys add NAME`"
        )


def check_host(scope: Scope, settings: Settings) -> None:
    """Refuse names that are not ours where nobody needs a key: a page of another site may have its name lead here.

    An address is no such name.

    Raises:
        CrossOrigin.
    """
    given = Headers(scope=scope).get("host", "")
    name = _name(given).lower()
    own = {*LOOPBACK_NAMES, settings.host, urlsplit(settings.public_url).hostname, *settings.allowed_hosts}
    if name in own or "*" in own or (_address(name) and others_reach(settings.host)):
        return
    if settings.access == "auto":
        raise CrossOrigin(
            f"this server is for this machine alone, and was asked as {given[:80]!r}; use localhost, or set "
            "KERNELSCOPE_PUBLIC_URL where a proxy leads here"
        )
    raise CrossOrigin(
        f"this server was asked as {given[:80]!r}, and needs no keys; set KERNELSCOPE_ALLOWED_HOSTS to the names that "
        "lead here, or KERNELSCOPE_ACCESS=keys"
    )


def check_origin(scope: Scope, settings: Settings) -> None:
    """Refuse what a page of another site makes a browser send.

    A browser adds cookies, and a proxy's `Authorization: Basic`, by itself; our own keys it does not.

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
            "a page of another site sent this; KERNELSCOPE_CORS_ORIGINS names the sites that may, and "
            "KERNELSCOPE_PUBLIC_URL says where a proxy serves this one"
        )


def _name(host: str) -> str:
    """Without the port: `127.0.0.1:8000` → `127.0.0.1`, `[::1]:8000` → `::1`."""
    return host.partition("]")[0].strip("[") if host.startswith("[") else host.rpartition(":")[0] or host


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
