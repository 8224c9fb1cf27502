"""Serve the API: `python -m api`. Where it listens is a setting, so that what is public is known to be."""

from __future__ import annotations

import ctypes
import gc
import socket
import sys
from contextlib import suppress

import uvicorn
from fastapi import FastAPI
from redis import Redis

from api.app import create_app
from api.edge.protocol import PatientProtocol
from api.edge.site import others_reach
from shared.advice import begin
from shared.errors import StoreUnavailable
from shared.jobs import connect
from shared.keys import ApiKeys
from shared.settings import Settings, settings

GRACE_SECONDS = 5  # for requests that are being answered when the process is told to stop
NOT_STARTED = 3  # exit code, as uvicorn's own command has it: the port is taken, say
M_MMAP_THRESHOLD = -3  # malloc.h
LARGE_BLOCK = 4 * 2**20  # bytes; Pillow's blocks have 16 MiB


class Server(uvicorn.Server):
    """uvicorn's; who waits for news of a job is answered when it is told to stop."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End."""
        app = self.config.app
        if isinstance(app, FastAPI):
            app.state.services.news.end()
        await super().shutdown(sockets)


def check_access(configuration: Settings) -> str | None:
    """Why this must not be served: where others reach it, with keys needed and none made."""
    published = configuration.behind_proxy or others_reach(configuration.host)
    if configuration.access != "auto" or not published:
        return None
    redis: Redis = connect(configuration.redis)
    try:
        if ApiKeys(redis).all():
            return None
    except StoreUnavailable:
        return None  # it will answer nobody until there are keys
    finally:
        redis.close()
    place = configuration.public_url or configuration.host
    return (
        f"{place} can be reached by others, and there is no API key: make one with `kernelscope keys add NAME`, or set "
        "KERNELSCOPE_ACCESS=open to serve everybody, or listen on 127.0.0.1 without a proxy"
    )


def give_memory_back() -> None:
    """Have the C library return a large block to the system once it is free: by itself it keeps those of images."""
    with suppress(AttributeError, OSError):  # another library than glibc
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


def main() -> None:
    """Until SIGTERM or SIGINT."""
    give_memory_back()
    configuration = settings()
    if reason := check_access(configuration):
        sys.exit(f"kernelscope: {reason}")
    app = create_app(configuration)
    begin(configuration, "the API")
    # What is there now stays: the collector need not look at it, and pauses nobody for it.
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
    server = Server(
        uvicorn.Config(
            app,
            host=configuration.host,
            port=configuration.port,
            http=PatientProtocol,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # create_app has them believed from the proxies that the settings name
            timeout_keep_alive=configuration.keep_alive_s,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(NOT_STARTED)


if __name__ == "__main__":
    main()
