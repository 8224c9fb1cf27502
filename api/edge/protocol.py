"""Bounds on a connection: the size and time of a request's head, and the time in which a response must be read."""

from __future__ import annotations

from asyncio import TimerHandle

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_SECONDS = 10.0  # in which a request's head must arrive
HEADER_BYTES = 64 * 1024
READER_SECONDS = 30.0  # in which a client must read some of the response that waits for it


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with these bounds."""

    _head: TimerHandle | None = None
    _reader: TimerHandle | None = None
    _parsed = _unparsed = 0  # bytes of the head

    def connection_made(self, transport: object) -> None:
        """Start the timeout of the first request's head."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._start_head_timeout()

    def on_message_begin(self) -> None:
        """Start the timeout of a further request's head."""
        super().on_message_begin()
        self._start_head_timeout()

    def data_received(self, data: bytes) -> None:
        """Count the bytes of a head that is not complete."""
        super().data_received(data)
        if self._head:
            self._unparsed += len(data)
            if self._unparsed > HEADER_BYTES:
                self._refuse()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count the bytes of a complete header. The parser's error becomes a 400."""
        self._parsed += len(name) + len(value)
        if self._parsed > HEADER_BYTES:
            raise ValueError("the head is too large")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Stop the timeout."""
        self._stop_head_timeout()
        super().on_headers_complete()

    def pause_writing(self) -> None:
        """Start to check that the client reads the response."""
        super().pause_writing()
        self._watch_reader(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Stop the check: the client has read what waited."""
        super().resume_writing()
        if self._reader:
            self._reader.cancel()

    def _watch_reader(self, left: int) -> None:
        self._reader = self.loop.call_later(READER_SECONDS, self._check_reader, left)

    def _check_reader(self, before: int) -> None:
        left = self.transport.get_write_buffer_size()
        if left >= before:
            self.transport.abort()
        else:
            self._watch_reader(left)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timeouts."""
        self._stop_head_timeout()
        if self._reader:
            self._reader.cancel()
        super().connection_lost(exc)

    def _start_head_timeout(self) -> None:
        self._stop_head_timeout()
        self._parsed = self._unparsed = 0
        self._head = self.loop.call_later(HEADER_SECONDS, self._refuse)

    def _stop_head_timeout(self) -> None:
        if self._head:
            self._head.cancel()
            self._head = None

    def _refuse(self) -> None:
        self._stop_head_timeout()
        if not self.transport.is_closing():
            self.transport.close()
