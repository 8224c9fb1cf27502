"""What every request gets: an id, a log line, metrics, and security headers."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import MutableMapping
from typing import Any
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.edge.problems import refusal
from api.edge.prometheus import ApiMetrics
from shared import logs, telemetry
from shared.errors import KernelscopeError
from shared.jobs import JOB_ID
from shared.keys import ApiKey

log = logging.getLogger(__name__)

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
CLIENT_CLOSED = 499  # in logs and metrics: the client disconnected before the request was complete
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
DEFAULT_POLICY = "default-src 'none'; frame-ancestors 'none'"


class RequestContext:
    """The outermost ASGI middleware: every request gets a response with its id, whatever fails inside.

    Args:
        metrics: where requests are counted.
        cross_origin: whether pages of other origins may read responses; CORS says which.
    """

    def __init__(self, app: ASGIApp, metrics: ApiMetrics, *, cross_origin: bool) -> None:
        self.app = app
        self.metrics = metrics
        self.headers = {**HEADERS, "Cross-Origin-Resource-Policy": "cross-origin"} if cross_origin else HEADERS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, then log and count its response."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid4().hex
        begin, status, preferred_wait = time.perf_counter(), 0, False

        async def send_with_headers(message: Message) -> None:
            nonlocal status, preferred_wait
            if message["type"] == "http.response.start":
                status = message["status"]
                preferred_wait = "preference-applied" in MutableHeaders(scope=message)
                self._set_headers(message, request_id)
            await send(message)

        with (
            telemetry.received(headers.get("traceparent", "")),
            logs.bound(request_id=request_id, **telemetry.fields(telemetry.traceparent())),
        ):
            try:
                await self.app(scope, receive, send_with_headers)
            except ClientDisconnect:
                status = status or CLIENT_CLOSED
            except Exception:
                log.exception("%s %s failed", scope["method"], _template(scope))
                if status:
                    raise
                error = KernelscopeError("an internal error; the server's log has the details", request_id=request_id)
                await refusal(error, scope)(scope, receive, send_with_headers)
            finally:
                self._record(scope, status, time.perf_counter() - begin, preferred_wait=preferred_wait)

    def _set_headers(self, message: MutableMapping[str, Any], request_id: str) -> None:
        headers = MutableHeaders(scope=message)
        headers["X-Request-ID"] = request_id
        for name, value in self.headers.items():
            headers.setdefault(name, value)
        headers.setdefault("Content-Security-Policy", DEFAULT_POLICY)

    def _record(self, scope: Scope, status: int, seconds: float, *, preferred_wait: bool) -> None:
        route = _template(scope)
        self.metrics.count_request(scope["method"], route, status, None if preferred_wait else seconds)
        level = logging.DEBUG if status < 400 and scope["method"] == "GET" else logging.INFO
        job_id = scope.get("path_params", {}).get("job_id", "")
        fields: dict[str, object] = {"job_id": job_id} if JOB_ID.fullmatch(job_id) else {}
        fields |= {"client": (scope.get("client") or ("",))[0], "caller": _caller(scope)}
        with logs.bound(**{name: value for name, value in fields.items() if value}):
            log.log(level, "%s %s: %d in %.1f ms", scope["method"], route, status, 1e3 * seconds)


def _caller(scope: Scope) -> str:
    """The name of the caller's key."""
    key: ApiKey | None = scope.get("state", {}).get("key")
    return key.name if key else ""


def _template(scope: Scope) -> str:
    """The route's path template: what a client sends never becomes a log line or a metric's label."""
    return getattr(scope.get("route"), "path", "") or "(no route)"
