"""HEAD and OPTIONS on every route, and query parameters that no route has, as RFC 9110 and the bodies have it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from fastapi import Request
from fastapi.dependencies.models import Dependant
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.errors import InvalidRequest, brief

KNOWN = ("DELETE", "GET", "PATCH", "POST", "PUT")


class _Answered(Exception):
    """The head of the answer is known; nothing else of it is wanted."""


class Methods:
    """ASGI middleware: HEAD is GET up to the first byte of the body; OPTIONS says what a path takes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer OPTIONS, translate HEAD, and pass everything else on."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            await self._head(scope, receive, send)
        elif scope["type"] == "http" and scope["method"] == "OPTIONS" and (methods := allowed(scope)):
            await Response(status_code=204, headers={"Allow": ", ".join(methods)})(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _head(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The route is left as soon as it has sent its headers: no stream is begun, no archive packed."""
        start: Message | None = None

        async def kept(message: Message) -> None:
            nonlocal start
            start = message
            raise _Answered

        scope["method"] = "GET"
        try:
            await self.app(scope, receive, kept)
        except _Answered:
            pass
        finally:
            scope["method"] = "HEAD"  # the server and the log look at it
        if start is not None:
            await send(start)
            await send({"type": "http.response.body"})


def allowed(scope: Scope) -> list[str]:
    """The methods that the path takes; none where there is no such path."""
    found = [
        method
        for method in KNOWN
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in scope["app"].routes)
    ]
    return sorted([*found, *(["HEAD"] if "GET" in found else []), "OPTIONS"]) if found else []


async def known_query(request: Request) -> None:
    """A dependency of every route: a query parameter that it does not have is refused, and one that is there twice.

    Raises:
        InvalidRequest: naming those that there are. The page is spared: links to it collect parameters of others.
    """
    route: Any = request.scope["route"]
    if not request.url.query or not getattr(route, "include_in_schema", False):
        return
    known = list(_parameters(route.dependant))
    counts = Counter(name for name, _ in request.query_params.multi_items())
    for name, count in counts.items():
        if name not in known:
            takes = f"parameters: {', '.join(known)}" if known else "this route takes none"
            raise InvalidRequest(f"{brief(name)}: no such query parameter; {takes}")
        if count > 1:
            raise InvalidRequest(f"{name}: given {count} times; give it once")


def _parameters(dependant: Dependant) -> Iterator[str]:
    yield from (field.alias for field in dependant.query_params)
    for inner in dependant.dependencies:
        yield from _parameters(inner)
