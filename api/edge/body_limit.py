"""Bounds on a request's body while it arrives: its size and its time."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.errors import BodyTooLarge, RequestTimeout

PAUSE_SECONDS = 15.0  # most time between two pieces of a body
BODY_SECONDS = 120.0  # most time for the whole of it
REFUSED = (408, 413, 503)  # responses that may be sent before the body has been read
DRAIN_SECONDS, DRAINED_BYTES = 2.0, 64 * 10**6


class BodyLimit:
    """ASGI middleware: refuses a body that is too large or too slow, before it has been read completely."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count what the application receives."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        received, complete, refused = 0, False, False
        deadline = time.monotonic() + BODY_SECONDS

        async def limited_receive() -> Message:
            nonlocal received, complete
            if complete:  # the next message is that the client has disconnected
                return await receive()
            self._check(int(announced) if announced.isdigit() else 0)
            try:
                async with asyncio.timeout(min(deadline - time.monotonic(), PAUSE_SECONDS)):
                    message = await receive()
            except TimeoutError:
                raise RequestTimeout(
                    f"the body arrived too slowly: it may pause for {PAUSE_SECONDS:g} s and take {BODY_SECONDS:g} s"
                ) from None
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            self._check(received)
            return message

        async def draining_send(message: Message) -> None:
            """Let a client that is refused while it sends read the response before the connection is closed."""
            nonlocal refused
            if message["type"] == "http.response.start" and not complete and message["status"] in REFUSED:
                refused = True
                MutableHeaders(scope=message)["Connection"] = "close"
            if refused and message["type"] == "http.response.body" and not message.get("more_body", False):
                await send({**message, "more_body": True})
                await _drain(receive)
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        await self.app(scope, limited_receive, draining_send)

    def _check(self, size: int) -> None:
        if size > self.limit:
            raise BodyTooLarge(f"the body is larger than {self.limit / 1e6:g} MB, the limit of this server")


async def _drain(receive: Receive) -> None:
    """Read on for a moment: a client whose connection is closed while it sends loses the response."""
    left = DRAINED_BYTES
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
