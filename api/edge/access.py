"""Who calls: API keys, sessions of the page, rate limits. Nothing answers without a key where keys are needed.

The check is a middleware, before any routing, so that a route that is added tomorrow is closed as well.
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
from api.edge.site import check_host, check_origin, check_proxy, others_reach, route
from shared.connection import redis_errors
from shared.errors import KernelscopeError, RateLimited, Unauthorized
from shared.jobs import Caller
from shared.keys import KEYS, ApiKey, digest_of, entry
from shared.settings import Settings

if TYPE_CHECKING:
    from redis.asyncio import Redis as AsyncRedis

OPEN = ("/", "/healthz", "/readyz", "/docs", "/openapi.json", "/llms.txt")
OPEN_FOLDERS = ("/web/", "/problems/")  # the page's own files, and what an error means
PAGES = "/kernels/"  # addresses of pages, of which programs are told what they show
SESSION_SECONDS = 12 * 3600
GLANCE_SECONDS = 1.0  # between two looks at whether there are keys at all
BEARER = re.compile(r"bearer +([!-~]{1,200})", re.IGNORECASE)


def bearer(connection: HTTPConnection) -> str | None:
    """The key that a request came with; None where its `Authorization` is missing, or is another server's."""
    match = BEARER.fullmatch(connection.headers.get("authorization", "").strip())
    return match[1] if match else None


def page_wanted(connection: HTTPConnection, path: str) -> bool:
    """Whether a browser asks for a page, which has no secrets; what it shows it asks for itself."""
    return path.startswith(PAGES) and "text/html" in connection.headers.get("accept", "")


def session(connection: HTTPConnection) -> str | None:
    """The page's token."""
    return next((token for name in cookies(connection) if (token := connection.cookies.get(name))), None)


def cookies(connection: HTTPConnection) -> tuple[str, str]:
    """Names of the page's cookie: over TLS, which no other host can set, and without, for each port its own."""
    _, _, port = connection.headers.get("host", "").rpartition(":")
    return "__Host-kernelscope", f"kernelscope-{port if port.isdigit() else 80}"


class Access:
    """Finds out who a caller is, and whether they may call now."""

    def __init__(self, settings: Settings, redis: AsyncRedis) -> None:
        self.settings = settings
        self.redis = redis
        url = settings.redis
        pool: Any = redis.connection_pool
        storage = RedisStorage(f"async+{url}", implementation="redispy", key_prefix="ks:rate", connection_pool=pool)
        self._limiter = SlidingWindowCounterRateLimiter(storage)
        self._keys_exist = False
        self._looked_at = -math.inf

    async def needs_key(self) -> bool:
        """Whether this server answers only those who have a key."""
        if self.settings.access != "auto":
            return self.settings.access == "keys"
        return self.settings.behind_proxy or others_reach(self.settings.host) or await self._any_key()

    async def _any_key(self) -> bool:
        """Looked up once a second at most; a server that had keys once goes on asking for them."""
        if not self._keys_exist and time.monotonic() - self._looked_at > GLANCE_SECONDS:
            with redis_errors():
                self._keys_exist = bool(await self.redis.hlen(KEYS))
            self._looked_at = time.monotonic()
        return self._keys_exist

    async def key(self, connection: HTTPConnection) -> ApiKey:
        """The key that a request came with, in its `Authorization` or by a session.

        Raises:
            Unauthorized, StoreUnavailable.
        """
        if given := bearer(connection):
            digest = digest_of(given)
        elif token := session(connection):
            with redis_errors():
                digest = await self.redis.get(f"ks:session:{digest_of(token)}") or ""
        else:
            raise Unauthorized("this server needs an API key; send it as `Authorization: Bearer <key>`")
        with redis_errors():
            found = entry(await self.redis.hget(KEYS, digest), digest)
        if found is None:
            raise Unauthorized("the API key is not known here, or was revoked")
        return found

    async def lets_in(self, connection: HTTPConnection) -> bool:
        """Whether a request would be answered where not everybody is.

        Raises:
            StoreUnavailable.
        """
        try:
            if await self.needs_key():
                await self.key(connection)
        except Unauthorized:
            return False
        return True

    async def count(self, key: ApiKey) -> dict[str, str]:
        """Count one request; returns the `RateLimit` fields (draft-ietf-httpapi-ratelimit-headers).

        Raises:
            RateLimited: with the same fields.
        """
        limit = limits.parse(key.rate or self.settings.rate_limit)
        with redis_errors():
            taken = await self._limiter.hit(limit, key.name)
            stats = await self._limiter.get_window_stats(limit, key.name)
        wait = max(1, math.ceil(stats.reset_time - time.time()))
        policy = f'"key";q={limit.amount};w={limit.get_expiry()}'
        fields = {"RateLimit-Policy": policy, "RateLimit": f'"key";r={max(0, stats.remaining)};t={wait}'}
        if not taken:
            detail = f"your key may send {limit}; the next request is taken in {wait} s"
            raise RateLimited(detail, headers=fields, retry_after=wait)
        return fields

    async def open_session(self, key: ApiKey) -> str:
        """A token for the page, which stands for the key as long as that holds."""
        token = secrets.token_urlsafe(32)
        with redis_errors():
            await self.redis.set(f"ks:session:{digest_of(token)}", key.digest, ex=SESSION_SECONDS)
        return token

    async def end_session(self, token: str) -> None:
        """Forget a token."""
        with redis_errors():
            await self.redis.delete(f"ks:session:{digest_of(token)}")

    async def check(self, connection: HTTPConnection, owner: str) -> None:
        """Nothing, if a request like this one would still be let in, and as this owner's.

        Raises:
            Unauthorized, StoreUnavailable.
        """
        if await self.needs_key() and (await self.key(connection)).name != owner:
            raise Unauthorized("the API key is another one's now")

    def caller(self, key: ApiKey | None) -> Caller:
        """What the record needs to know of whoever has this key."""
        if key is None:
            return Caller(max_queued=self.settings.max_queued)
        most = self.settings.max_open if key.max_open is None else key.max_open
        return Caller(owner=key.name, max_open=most, max_queued=self.settings.max_queued)


@dataclass(frozen=True, kw_only=True)
class Visitor(Caller):
    """A caller who is being answered.

    Args:
        check: raises Unauthorized (or StoreUnavailable) once they would not be let in any more.
    """

    check: Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Gate:
    """ASGI middleware: finds the caller, or refuses."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on whom this server knows."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        access: Access = scope["app"].state.services.access
        try:
            key, fields = await self._admitted(access, scope)
        except KernelscopeError as error:
            await refusal(error, scope)(scope, receive, send)
            return
        caller = access.caller(key)
        # With the scope itself each request would be a cycle, and wait for the collector, which pauses all others.
        like_this = HTTPConnection({"type": scope["type"], "headers": scope["headers"]})
        visitor = Visitor(**vars(caller), check=partial(access.check, like_this, caller.owner))
        scope.setdefault("state", {}).update(key=key, caller=visitor)

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(fields)
            await send(message)

        await self.app(scope, receive, told if fields else send)

    async def _admitted(self, access: Access, scope: Scope) -> tuple[ApiKey | None, dict[str, str]]:
        path = route(scope)
        check_proxy(scope, access.settings)
        check_origin(scope, access.settings)
        if path in OPEN or path.startswith(OPEN_FOLDERS) or page_wanted(HTTPConnection(scope), path):
            return None, {}
        if not await access.needs_key():
            check_host(scope, access.settings)
            return None, {}
        key = await access.key(HTTPConnection(scope))
        return key, await access.count(key)


async def _caller(request: Request) -> Visitor:
    caller: Visitor = request.state.caller
    return caller


Asking = Annotated[Visitor, Depends(_caller)]
