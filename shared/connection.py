"""Redis clients, and the translation of Redis's failures into `StoreUnavailable`."""

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

# Errors about the state of Redis rather than about the command, and what its operator can do.
REASONS = {
    "MISCONF": "it cannot save to its disk, and accepts no writes until it can; its log says why (is the disk full?)",
    "NOREPLICAS": "too few of its replicas are connected, and it accepts no writes without them; restart them, or "
    "lower min-replicas-to-write",
    "OOM": "its memory is full, and it accepts nothing new; raise its maxmemory, then delete jobs",
    "READONLY": "it is a replica, which accepts no writes; KERNELSCOPE_REDIS_URL must be that of the master",
    "MASTERDOWN": "it is a replica that has lost its master; restart the master, or promote the replica",
    "BUSY": "a script has run in it for too long; SCRIPT KILL ends one that has written nothing",
    "LOADING": "it has just started and is loading its data; it will be available when it is done",
    "NOAUTH": "it requires a password, and none was sent; set KERNELSCOPE_REDIS_PASSWORD",
    "WRONGPASS": "it has a different password; set KERNELSCOPE_REDIS_PASSWORD",
    "NOPERM": "its user may not run this command; allow it all commands and all keys",
    "maxclients": "it has reached its limit of connections; raise its maxclients, or close other connections",
    "certificate": "its certificate is not trusted here; set its authority with `?ssl_ca_certs=FILE` in "
    "KERNELSCOPE_REDIS_URL; the certificate must contain the host's name",
}
# Redis 6 has the code inside a longer text when a script's command is refused.
REFUSAL = re.compile(r"\b(MISCONF|NOREPLICAS|OOM|READONLY|MASTERDOWN|BUSY) ")
TEXTS = {
    "max number of clients": "maxclients",
    "CERTIFICATE_VERIFY_FAILED": "certificate",
    "Authentication required": "NOAUTH",
    "already authenticated": "NOAUTH",  # as the command HELLO words it
}
REFUSALS: dict[type[RedisError], str] = {
    OutOfMemoryError: "OOM",
    ReadOnlyError: "READONLY",
    MasterDownError: "MASTERDOWN",
    BusyLoadingError: "LOADING",
    NoPermissionError: "NOPERM",
    AuthenticationError: "WRONGPASS",
}
DEMOTED = ("READONLY", "MASTERDOWN")  # the same host name may lead to a new master on a new connection
CONNECTIONS = 9  # of an event loop, one of them for the subscription to events; if none is free, calls wait for one


def connect(url: str, *, patience: float = 1.0, persistent: bool = False) -> Redis:
    """A Redis client.

    Args:
        url: `redis://…`, or `rediss://…` for TLS, where the certificate is verified.
        patience: seconds that a call waits for a response. If there is no connection, or the master has become a
            replica, there are two retries, each on a new connection.
        persistent: retry for about 20 s whatever the error, long enough for a restart of Redis.
    """
    retry = _Retry(40, tuple(REASONS), (RedisTimeoutError,)) if persistent else _Retry(2, DEMOTED)
    return cast(Redis, Redis.from_url(url, retry=retry, **_options(patience)))


def connect_async(url: str, *, patience: float = 1.0) -> AsyncRedis:
    """As `connect`, for an event loop, with at most `CONNECTIONS` connections."""
    # uvloop raises RuntimeError for a connection that was lost while it was idle.
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
    """Raises StoreUnavailable where Redis cannot serve requests. An invalid command is a bug, and its error is kept."""
    try:
        yield
    except (RedisConnectionError, RedisTimeoutError, ResponseError) as error:
        if code := refusal(error):
            raise StoreUnavailable(f"Redis is not available ({code}): {REASONS[code]}") from error
        if isinstance(error, ResponseError):
            raise
        raise StoreUnavailable(f"Redis does not answer ({type(error).__name__})") from error


def refusal(error: BaseException) -> str | None:
    """The key in `REASONS` of an error; None for any other error."""
    text = str(error)
    if isinstance(error, RedisConnectionError):
        named = next((code for part, code in TEXTS.items() if part in text), None)
    else:
        found = REFUSAL.search(text) if isinstance(error, ResponseError) else None
        named = found[1] if found else None
    return named or next((code for kind, code in REFUSALS.items() if isinstance(error, kind)), None)


class _Retrying:
    """Which errors are retried: those of the connection, and those with these codes.

    redis-py closes the connection before a retry.
    """

    def __init__(self, retries: int, codes: Iterable[str], errors: Iterable[type[Exception]] = ()) -> None:
        self.codes = frozenset(codes)
        supported = (RedisConnectionError, ResponseError, *errors)
        super().__init__(ExponentialBackoff(cap=0.5, base=0.02), retries, supported_errors=supported)  # type: ignore[call-arg]

    def again(self, error: Exception) -> bool:
        """Whether to retry after this error."""
        return not isinstance(error, ResponseError) or refusal(error) in self.codes


class _Retry(_Retrying, Retry):  # type: ignore[misc]  # redis-py is untyped here
    def call_with_retry(self, do: Callable[[], object], fail: Callable[..., Any], *_: Any, **options: Any) -> Any:
        return super().call_with_retry(do, fail, self.again, **options)


class _AsyncRetry(_Retrying, AsyncRetry):  # type: ignore[misc]
    async def call_with_retry(
        self, do: Callable[[], Awaitable[object]], fail: Callable[..., Any], *_: Any, **options: Any
    ) -> Any:
        return await super().call_with_retry(do, fail, self.again, **options)
