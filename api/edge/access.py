"""Authentication: API keys, sessions of the web page, rate limits.

The check is a middleware that runs before routing, so a route that is added later is protected as well.
"""

from __future__ import annotations

import math
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import limits
from fastapi import Depends, Request
from limits.aio.storage import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.edge.problems import refusal
from api.edge.site import check_host, check_origin, check_proxy, is_reachable_by_others, route_path
from shared.connection import redis_errors
from shared.errors import KernelscopeError, RateLimited, Unauthorized
from shared.jobs import Caller
from shared.keys import KEYS, ApiKey, digest_of, entry
from shared.settings import Settings

if TYPE_CHECKING:
    from redis.asyncio import Redis as AsyncRedis

OPEN = ("/", "/healthz", "/readyz", "/docs", "/openapi.json", "/llms.txt")
OPEN_FOLDERS = ("/web/", "/problems/")  # the page's files, and the explanations of errors
PAGES = "/kernels/"  # these URLs return a web page to browsers, JSON to programs
SESSION_SECONDS = 12 * 3600
KEY_CHECK_SECONDS = 1.0  # between two checks whether there are any keys
BEARER = re.compile(r"bearer +([!-~]{1,200})", re.IGNORECASE)


def bearer(connection: HTTPConnection) -> str | None:
    """The API key in a request's `Authorization`; None if that is missing or of another scheme."""
    match = BEARER.fullmatch(connection.headers.get("authorization", "").strip())
    return match[1] if match else None


def wants_page(connection: HTTPConnection, path: str) -> bool:
    """Whether a browser requests a web page, which is public; the page fetches its data with further requests."""
    return path.startswith(PAGES) and "text/html" in connection.headers.get("accept", "")


def session_token(connection: HTTPConnection) -> str | None:
    """The token in the session's cookie."""
    return next((token for name in cookie_names(connection) if (token := connection.cookies.get(name))), None)


def cookie_names(connection: HTTPConnection) -> tuple[str, str]:
    """Names of the session's cookie: over TLS, where no other host can set it; and over HTTP, one for each port."""
    _, _, port = connection.headers.get("host", "").rpartition(":")
    return "__Host-kernelscope", f"kernelscope-{port if port.isdigit() else 80}"


class Access:
    """Identifies callers and applies their rate limits."""

    def __init__(self, settings: Settings, redis: AsyncRedis) -> None:
        self.settings = settings
        self.redis = redis
        url = settings.redis
        pool: Any = redis.connection_pool
        storage = RedisStorage(f"async+{url}", implementation="redispy", key_prefix="ks:rate", connection_pool=pool)
        self._limiter = SlidingWindowCounterRateLimiter(storage)
        self._keys_exist = False
        self._checked_at = -math.inf

    async def needs_key(self) -> bool:
        """Whether this server requires API keys."""
        if self.settings.access != "auto":
            return self.settings.access == "keys"
        return self.settings.behind_proxy or is_reachable_by_others(self.settings.host) or await self._any_key()

    async def _any_key(self) -> bool:
        """Checked at most once a second. A server that has had keys keeps requiring them."""
        if not self._keys_exist and time.monotonic() - self._checked_at > KEY_CHECK_SECONDS:
            with redis_errors():
                self._keys_exist = bool(await self.redis.hlen(KEYS))
            self._checked_at = time.monotonic()
        return self._keys_exist

    async def key(self, connection: HTTPConnection) -> ApiKey:
        """The key of a request, from its `Authorization` or its session.

        Raises:
            Unauthorized, StoreUnavailable.
        """
        if given := bearer(connection):
            digest = digest_of(given)
        elif token := session_token(connection):
            with redis_errors():
                digest = await self.redis.get(f"ks:session:{digest_of(token)}") or ""
        else:
            raise Unauthorized("this server requires an API key; send it as `Authorization: Bearer <key>`")
        with redis_errors():
            found = entry(await self.redis.hget(KEYS, digest), digest)
        if found is None:
            raise Unauthorized("the API key is unknown or was revoked")
        return found

    async def is_authorized(self, connection: HTTPConnection) -> bool:
        """Whether a request would be accepted by the routes that are not public.

        Raises:
            StoreUnavailable.
        """
        try:
            if await self.needs_key():
                await self.key(connection)
        except Unauthorized:
            return False
        return True

    async def count_request(self, key: ApiKey) -> dict[str, str]:
        """Count one request; returns the `RateLimit` fields (draft-ietf-httpapi-ratelimit-headers).

        Raises:
            RateLimited: with the same fields.
        """
        limit = limits.parse(key.rate or self.settings.rate_limit)
        with redis_errors():
            allowed = await self._limiter.hit(limit, key.name)
            stats = await self._limiter.get_window_stats(limit, key.name)
        wait = max(1, math.ceil(stats.reset_time - time.time()))
        policy = f'"key";q={limit.amount};w={limit.get_expiry()}'
        fields = {"RateLimit-Policy": policy, "RateLimit": f'"key";r={max(0, stats.remaining)};t={wait}'}
        if not allowed:
            detail = f"your key may send {limit}; send the next request in {wait} s"
            raise RateLimited(detail, headers=fields, retry_after=wait)
        return fields

    async def open_session(self, key: ApiKey) -> str:
        """A token for the web page that stands for the key while the key is valid."""
        token = secrets.token_urlsafe(32)
        with redis_errors():
            await self.redis.set(f"ks:session:{digest_of(token)}", key.digest, ex=SESSION_SECONDS)
        return token

    async def end_session(self, token: str) -> None:
        """Delete a token."""
        with redis_errors():
            await self.redis.delete(f"ks:session:{digest_of(token)}")

    async def check(self, connection: HTTPConnection, owner: str) -> None:
        """Check that a request with these headers would still be accepted, as this owner's.

        Raises:
            Unauthorized, StoreUnavailable.
        """
        if await self.needs_key() and (await self.key(connection)).name != owner:
            raise Unauthorized("the API key now belongs to another name")

    def caller(self, key: ApiKey | None) -> Caller:
        """The owner and limits of this key, for the job record."""
        if key is None:
            return Caller(max_queued=self.settings.max_queued)
        most = self.settings.max_open if key.max_open is None else key.max_open
        return Caller(owner=key.name, max_open=most, max_queued=self.settings.max_queued)


@dataclass(frozen=True, kw_only=True)
class RequestCaller(Caller):
    """The caller of a request.

    Args:
        check: raises Unauthorized (or StoreUnavailable) if the request would no longer be accepted.
    """

    check: Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class AccessControl:
    """ASGI middleware: identifies the caller, or refuses the request."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on requests that are authorized."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        access: Access = scope["app"].state.services.access
        try:
            key, fields = await self._authorize(access, scope)
        except KernelscopeError as error:
            await refusal(error, scope)(scope, receive, send)
            return
        caller = access.caller(key)
        # A reference to the scope itself would be a cycle that only the garbage collector frees, pausing all requests.
        connection = HTTPConnection({"type": scope["type"], "headers": scope["headers"]})
        request_caller = RequestCaller(**vars(caller), check=partial(access.check, connection, caller.owner))
        scope.setdefault("state", {}).update(key=key, caller=request_caller)

        async def send_with_fields(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(fields)
            await send(message)

        await self.app(scope, receive, send_with_fields if fields else send)

    async def _authorize(self, access: Access, scope: Scope) -> tuple[ApiKey | None, dict[str, str]]:
        path = route_path(scope)
        check_proxy(scope, access.settings)
        check_origin(scope, access.settings)
        if path in OPEN or path.startswith(OPEN_FOLDERS) or wants_page(HTTPConnection(scope), path):
            return None, {}
        if not await access.needs_key():
            check_host(scope, access.settings)
            return None, {}
        key = await access.key(HTTPConnection(scope))
        return key, await access.count_request(key)


async def _caller(request: Request) -> RequestCaller:
    caller: RequestCaller = request.state.caller
    return caller


CallerDep = Annotated[RequestCaller, Depends(_caller)]
