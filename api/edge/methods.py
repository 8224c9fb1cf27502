"""HEAD and OPTIONS for every route (RFC 9110), and refusal of unknown query parameters."""

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


class _HeadersSent(Exception):
    """The headers of the response are known; its body is not needed."""


class Methods:
    """ASGI middleware: HEAD is GET without the body; OPTIONS lists the methods of a path."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to OPTIONS, translate HEAD, and pass everything else on."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            await self._head(scope, receive, send)
        elif scope["type"] == "http" and scope["method"] == "OPTIONS" and (methods := allowed(scope)):
            await Response(status_code=204, headers={"Allow": ", ".join(methods)})(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _head(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stop the route as soon as it has sent its headers, so that no stream begins and no archive is made."""
        start: Message | None = None

        async def keep_start(message: Message) -> None:
            nonlocal start
            start = message
            raise _HeadersSent

        scope["method"] = "GET"
        try:
            await self.app(scope, receive, keep_start)
        except _HeadersSent:
            pass
        finally:
            scope["method"] = "HEAD"  # the server and the log need it
        if start is not None:
            await send(start)
            await send({"type": "http.response.body"})


def allowed(scope: Scope) -> list[str]:
    """The methods of the path; none if there is no such path."""
    found = [
        method
        for method in KNOWN
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in scope["app"].routes)
    ]
    return sorted([*found, *(["HEAD"] if "GET" in found else []), "OPTIONS"]) if found else []


async def known_query(request: Request) -> None:
    """A dependency of every route: refuses query parameters that it does not have, and repeated ones.

    The web page accepts any: other sites add parameters to links.

    Raises:
        InvalidRequest: with the route's parameters.
    """
    route: Any = request.scope["route"]
    if not request.url.query or not getattr(route, "include_in_schema", False):
        return
    known = list(_parameters(route.dependant))
    counts = Counter(name for name, _ in request.query_params.multi_items())
    for name, count in counts.items():
        if name not in known:
            expected = f"parameters: {', '.join(known)}" if known else "this route has none"
            raise InvalidRequest(f"{brief(name)}: no such query parameter; {expected}")
        if count > 1:
            raise InvalidRequest(f"{name}: given {count} times; give it once")


def _parameters(dependant: Dependant) -> Iterator[str]:
    yield from (field.alias for field in dependant.query_params)
    for inner in dependant.dependencies:
        yield from _parameters(inner)
