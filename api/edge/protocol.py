"""What a connection may do before there is a request, and after there is an answer."""

from __future__ import annotations

from asyncio import TimerHandle

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_SECONDS = 10.0  # until a request's head must have come
HEADER_BYTES = 64 * 1024
READER_SECONDS = 30.0  # in which a caller must read something of what waits for them


class PatientProtocol(HttpToolsProtocol):
    """uvicorn's, with bounds on a request's head, in time and size, and on how long a caller may read nothing."""

    _head: TimerHandle | None = None
    _reader: TimerHandle | None = None
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

    def pause_writing(self) -> None:
        """An answer waits for its reader, who must take some of it now and then."""
        super().pause_writing()
        self._look_in(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """It has been read."""
        super().resume_writing()
        if self._reader:
            self._reader.cancel()

    def _look_in(self, left: int) -> None:
        self._reader = self.loop.call_later(READER_SECONDS, self._check_reader, left)

    def _check_reader(self, before: int) -> None:
        left = self.transport.get_write_buffer_size()
        if left >= before:
            self.transport.abort()
        else:
            self._look_in(left)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing to wait for."""
        self._disarm()
        if self._reader:
            self._reader.cancel()
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
