"""Serve the API: `python -m api`. Where it listens is a setting, so that what is public is known to be."""

from __future__ import annotations

import gc
import sys
from asyncio import TimerHandle

import uvicorn
from redis import Redis
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.access import others_reach
from api.app import create_app
from shared.errors import StoreUnavailable
from shared.jobs import connect
from shared.keys import ApiKeys
from shared.settings import Settings, settings

GRACE_SECONDS = 5  # for requests that are being answered when the process is told to stop; event streams end then
HEADER_SECONDS = 10.0  # until a request's head must have come
HEADER_BYTES = 64 * 1024


class PatientProtocol(HttpToolsProtocol):
    """uvicorn's, with bounds on how long a request's head may take and how large it may be."""

    _head: TimerHandle | None = None
    _parsed = _unparsed = 0  # bytes of it

    def connection_made(self, transport: object) -> None:
        """The head must come soon."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._await_head()

    def on_message_begin(self) -> None:
        """So must that of the next request."""
        super().on_message_begin()
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Count what comes of a head that is not whole yet."""
        super().data_received(data)
        if self._head:
            self._unparsed += len(data)
            if self._unparsed > HEADER_BYTES:
                self._refuse()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count what comes of it at once; the parser's error becomes a 400."""
        self._parsed += len(name) + len(value)
        if self._parsed > HEADER_BYTES:
            raise ValueError("the head is too large")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """It has come."""
        self._disarm()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing to wait for."""
        self._disarm()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._disarm()
        self._parsed = self._unparsed = 0
        self._head = self.loop.call_later(HEADER_SECONDS, self._refuse)

    def _disarm(self) -> None:
        if self._head:
            self._head.cancel()
            self._head = None

    def _refuse(self) -> None:
        self._disarm()
        if not self.transport.is_closing():
            self.transport.close()


def check_access(configuration: Settings) -> str | None:
    """Why this must not be served: on a public address, with keys needed and none made."""
    if configuration.access != "auto" or not others_reach(configuration.host):
        return None
    redis: Redis = connect(configuration.redis_url.get_secret_value())
    try:
        if ApiKeys(redis).all():
            return None
    except StoreUnavailable:
        return None  # it will answer nobody until there are keys
    finally:
        redis.close()
    return (
        f"{configuration.host} can be reached by others, and there is no API key: make one with `kernelscope keys add "
        "NAME`, or set KERNELSCOPE_ACCESS=open to serve everybody, or listen on 127.0.0.1"
    )


def main() -> None:
    """Until SIGTERM or SIGINT."""
    configuration = settings()
    if reason := check_access(configuration):
        sys.exit(f"kernelscope: {reason}")
    app = create_app(configuration)
    # What is there now stays: the collector need not look at it, and pauses nobody for it.
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
    uvicorn.run(
        app,
        host=configuration.host,
        port=configuration.port,
        http=PatientProtocol,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


if __name__ == "__main__":
    main()
