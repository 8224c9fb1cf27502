"""Serve the API: `python -m api`. Its address is a setting, so that the API knows whether others can reach it."""

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
from api.edge.protocol import BoundedProtocol
from api.edge.site import is_reachable_by_others
from shared.advice import log_start
from shared.errors import StoreUnavailable
from shared.jobs import connect
from shared.keys import ApiKeys
from shared.settings import Settings, settings

GRACE_SECONDS = 5  # for requests that are being served when the process stops
NOT_STARTED = 3  # exit code, the same as of uvicorn's command: the port is in use, for example
M_MMAP_THRESHOLD = -3  # malloc.h
LARGE_BLOCK = 4 * 2**20  # bytes; Pillow allocates 16 MiB


class Server(uvicorn.Server):
    """uvicorn's server. When it stops, it first ends the long polls and event streams."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop."""
        app = self.config.app
        if isinstance(app, FastAPI):
            app.state.services.updates.stop()
        await super().shutdown(sockets)


def check_access(configuration: Settings) -> str | None:
    """Why the API must not start: others can reach it, and no key exists. None if it may start."""
    reachable = configuration.behind_proxy or is_reachable_by_others(configuration.host)
    if configuration.access != "auto" or not reachable:
        return None
    redis: Redis = connect(configuration.redis)
    try:
        if ApiKeys(redis).all():
            return None
    except StoreUnavailable:
        return None  # every request is refused until there is a key
    finally:
        redis.close()
    place = configuration.public_url or configuration.host
    return (
        f"{place} can be reached by others, and there is no API key: make one with `kernelscope keys add NAME`, or set "
        "KERNELSCOPE_ACCESS=open to serve everybody, or listen on 127.0.0.1 without a proxy"
    )


def return_large_blocks() -> None:
    """Make glibc return large freed blocks to the system: by default it keeps those of images."""
    with suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    return_large_blocks()
    configuration = settings()
    if reason := check_access(configuration):
        sys.exit(f"kernelscope: {reason}")
    app = create_app(configuration)
    log_start(configuration, "the API")
    # Objects that exist now live as long as the process: exclude them from garbage collection, which pauses requests.
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
    server = Server(
        uvicorn.Config(
            app,
            host=configuration.host,
            port=configuration.port,
            http=BoundedProtocol,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # create_app trusts the proxies in the settings
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
