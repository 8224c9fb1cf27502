"""Clients of Redis, and what goes wrong with it as one error of ours."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from redis import Redis
from redis.asyncio import BlockingConnectionPool
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from shared.errors import StoreUnavailable

# What Redis says of its own state, not of the command, and what its operator does about it.
REASONS = {
    "MISCONF": "it cannot save to its disk, and takes no writes until it can; its log says why (is the disk full?)",
    "NOREPLICAS": "too few of its replicas are connected, and it takes no writes without them; bring them back, or "
    "lower min-replicas-to-write",
    "OOM": "its memory is full, and it takes nothing new; raise its maxmemory, then delete jobs",
    "READONLY": "it is a replica, which takes no writes; KERNELSCOPE_REDIS_URL has to lead to the master",
    "MASTERDOWN": "it is a replica that has lost its master; bring that back, or promote this one",
    "BUSY": "a script has run in it for too long; SCRIPT KILL ends one that has written nothing",
    "LOADING": "it has just started and reads its file; it serves by itself once it is done",
    "NOAUTH": "it needs a password, and was given none; set KERNELSCOPE_REDIS_PASSWORD",
    "WRONGPASS": "it has another password than it was given; set KERNELSCOPE_REDIS_PASSWORD to its own",
    "NOPERM": "its user may not run this command; give it all commands, and all keys",
    "maxclients": "it has as many connections as it takes; raise its maxclients, or end what else holds connections",
    "certificate": "its certificate is not trusted here; `?ssl_ca_certs=FILE` in KERNELSCOPE_REDIS_URL names its "
    "authority, and the host's name must be in it",
}
# Redis 6 says it amid another text where a script's command is refused.
REFUSAL = re.compile(r"\b(MISCONF|NOREPLICAS|OOM|READONLY|MASTERDOWN|BUSY) ")
TEXTS = {
    "max number of clients": "maxclients",
    "CERTIFICATE_VERIFY_FAILED": "certificate",
    "Authentication required": "NOAUTH",
    "already authenticated": "NOAUTH",  # HELLO's word for it
}
REFUSALS: dict[type[RedisError], str] = {
    OutOfMemoryError: "OOM",
    ReadOnlyError: "READONLY",
    MasterDownError: "MASTERDOWN",
    BusyLoadingError: "LOADING",
    NoPermissionError: "NOPERM",
    AuthenticationError: "WRONGPASS",
}
DEMOTED = ("READONLY", "MASTERDOWN")  # behind the same name there may be a new master: on a new connection
CONNECTIONS = 9  # of an event loop: who finds none free waits for one; the news take one for themselves


def connect(url: str, *, patience: float = 1.0, persistent: bool = False) -> Redis:
    """A Redis client.

    Args:
        url: `redis://…`, or `rediss://…` for TLS, where the certificate is verified.
        patience: seconds that a call waits for an answer. One that finds nobody there, or a master that is none any
            more, is tried twice more, on a new connection.
        persistent: try again for about 20 s, whatever is wrong: a restart of Redis is sat out.
    """
    retry = _Retry(40, tuple(REASONS), (RedisTimeoutError,)) if persistent else _Retry(2, DEMOTED)
    return cast(Redis, Redis.from_url(url, retry=retry, **_options(patience)))


def connect_async(url: str, *, patience: float = 1.0) -> AsyncRedis:
    """The same for an event loop, with so many connections and no more."""
    # RuntimeError is what uvloop says of a connection that was lost while nobody used it.
    retry = _AsyncRetry(2, DEMOTED, (RuntimeError,))
    pool = BlockingConnectionPool.from_url(
        url, max_connections=CONNECTIONS, timeout=patience, retry=retry, **_options(patience)
    )
    return AsyncRedis.from_pool(pool)


def _options(patience: float) -> dict[str, Any]:
    return {
        "decode_responses": True,
        "socket_timeout": patience,
        "socket_connect_timeout": patience / 2,
        "socket_keepalive": True,
    }


@contextmanager
def redis_errors() -> Iterator[None]:
    """A Redis that cannot serve becomes our error; a command that it refuses for itself is a bug, and stays one."""
    try:
        yield
    except (RedisConnectionError, RedisTimeoutError, ResponseError) as error:
        if code := refusal(error):
            raise StoreUnavailable(f"Redis does not serve now ({code}): {REASONS[code]}") from error
        if isinstance(error, ResponseError):
            raise
        raise StoreUnavailable(f"Redis does not answer ({type(error).__name__})") from error


def refusal(error: BaseException) -> str | None:
    """Which of `REASONS` it is that Redis names; None for any other error."""
    text = str(error)
    if isinstance(error, RedisConnectionError):
        named = next((code for part, code in TEXTS.items() if part in text), None)
    else:
        found = REFUSAL.search(text) if isinstance(error, ResponseError) else None
        named = found[1] if found else None
    return named or next((code for kind, code in REFUSALS.items() if isinstance(error, kind)), None)


class _Worth:
    """Which errors a call is tried again after: those of the connection, and refusals of these codes.

    Before it is tried again redis-py drops the connection.
    """

    def __init__(self, retries: int, codes: Iterable[str], errors: Iterable[type[Exception]] = ()) -> None:
        self.codes = frozenset(codes)
        worth_it = (RedisConnectionError, ResponseError, *errors)
        super().__init__(ExponentialBackoff(cap=0.5, base=0.02), retries, supported_errors=worth_it)  # type: ignore[call-arg]

    def again(self, error: Exception) -> bool:
        """Whether it is worth it."""
        return not isinstance(error, ResponseError) or refusal(error) in self.codes


class _Retry(_Worth, Retry):  # type: ignore[misc]  # redis-py's types are not read
    def call_with_retry(self, do: Callable[[], object], fail: Callable[..., Any], *_: Any, **options: Any) -> Any:
        return super().call_with_retry(do, fail, self.again, **options)


class _AsyncRetry(_Worth, AsyncRetry):  # type: ignore[misc]
    async def call_with_retry(
        self, do: Callable[[], Awaitable[object]], fail: Callable[..., Any], *_: Any, **options: Any
    ) -> Any:
        return await super().call_with_retry(do, fail, self.again, **options)
