"""Event streams: the events of a job are read from Redis once for all clients that follow it."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Self

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from prometheus_client import Gauge

from api.jobs.updates import RECHECK_SECONDS, JobUpdates
from shared.errors import InvalidRequest, JobExpired, KernelscopeError, StoreUnavailable
from shared.jobs import Event, Polling

log = logging.getLogger(__name__)

KEEPALIVE_SECONDS = 15.0  # between two comments on an idle stream, and between two checks of its client's key
RETRY_SECONDS = 0.5
MOST_BEHIND = 1000  # events that a client may lag behind; a slower one is disconnected, and may resume
EVENT_ID = re.compile(r"\d{1,19}-\d{1,19}")
OLD_IDS = 10**12  # an earlier version used milliseconds since 1970: from 10¹² (2001) to 10¹³ (2286)

EventPlace = tuple[int, int]
Check = Callable[[], Awaitable[None]]  # raises Unauthorized if the client's request would no longer be accepted


@dataclass(frozen=True)
class StreamEvent:
    """An event as it is sent to clients."""

    place: EventPlace
    data: bytes
    last: bool

    @classmethod
    def of(cls, event: Event) -> Self:
        """An event of the job record."""
        return cls(event.place, format_sse_event(data_str=event.data, event=event.kind, id=event.id), event.last)


@dataclass(frozen=True)
class StreamEnd:
    """The end of a stream before its job's end: an event with the reason, or nothing if the client may reconnect."""

    data: bytes = b""

    @classmethod
    def of(cls, error: Exception, root: str) -> Self:
        """A problem as an event. It has no id, so that a client that reconnects resumes after its last event.

        Args:
            root: the path under which the API is served.
        """
        if not isinstance(error, KernelscopeError):
            error = KernelscopeError("an internal error; the server's log has the details, and events can be resumed")
        kind = "gone" if isinstance(error, JobExpired) else "problem"
        return cls(format_sse_event(data_str=error.problem().under(root).model_dump_json(), event=kind))


Reader = asyncio.Queue[StreamEvent | StreamEnd]  # of one client


def parse_event_id(event_id: str) -> EventPlace:
    """The place of an event in its job; the beginning for an id of an earlier version, whose ids were times.

    Raises:
        InvalidRequest: this is not an event's id.
    """
    if not EVENT_ID.fullmatch(event_id):
        raise InvalidRequest(f"Last-Event-ID: {event_id!r} is not the id of an event; send one unchanged, or none")
    number, _, progress = event_id.partition("-")
    return (0, 0) if OLD_IDS <= int(number) < 10 * OLD_IDS else (int(number), int(progress))


class _Feed:
    """Reads one job's events as they happen, for all clients that follow it."""

    def __init__(self, job_id: str, polling: Polling, updates: JobUpdates) -> None:
        self.job_id = job_id
        self.polling = polling
        self.updates = updates
        self.readers: set[Reader] = set()
        self.started = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        """Follow the job; whatever ends this, send the end to all readers."""
        try:
            end = await self._follow()
        except Exception as error:
            _note(self.job_id, error)
            end = StreamEnd.of(error, self.polling.root)
        self.started.set()
        for reader in self.readers:
            _put(reader, end)

    async def _follow(self) -> StreamEnd:
        """Read events until the job is gone, this process stops, or there are no readers.

        The readers are checked because a cancellation may be lost: before Python 3.12, `asyncio.wait_for` (used by
        every command to Redis) swallows one that arrives as it returns.
        """
        with self.updates.subscribe(self.job_id) as subscription:
            newest = await self.polling.last_event(self.job_id)
            self.started.set()
            last = newest[0] if newest else None
            while last is not None and not self.updates.stopping and self.readers:
                last = await self._read(last)
                if last is not None:
                    await subscription.wait(RECHECK_SECONDS)
        if self.updates.stopping:
            return StreamEnd()
        return StreamEnd.of(JobExpired(f"job {self.job_id} was deleted, or has expired"), self.polling.root)

    async def _read(self, last: EventPlace) -> EventPlace | None:
        """Pass new events on; returns the place of the last one, or None if the job is gone."""
        try:
            while events := await self.polling.events(self.job_id, last):
                for event in map(StreamEvent.of, events):
                    for reader in self.readers:
                        _put(reader, event)
                last = events[-1].place
            return last if await self.polling.last_event(self.job_id) else None
        except StoreUnavailable as error:
            log.warning("%s; the clients that follow job %s wait", error, self.job_id)
            return last


def _note(job_id: str, error: Exception) -> None:
    """Log why a stream ended: an expected error in one line, a bug with its traceback."""
    if isinstance(error, KernelscopeError):
        log.warning("%s; clients that follow job %s have to reconnect", error, job_id)
    else:
        log.error("the events of job %s could not be read", job_id, exc_info=error)


def _put(reader: Reader, event: StreamEvent | StreamEnd) -> None:
    """Send an event to a client; one that is too far behind is disconnected, and may resume."""
    if reader.full():
        while not reader.empty():
            reader.get_nowait()
        event = StreamEnd()
    reader.put_nowait(event)


async def _pending(reader: Reader, seconds: float) -> tuple[list[StreamEvent], StreamEnd | None]:
    """All events that wait for a client, none if there are none within this time; and the end after them, if any."""
    try:
        async with asyncio.timeout(seconds):
            waiting = [await reader.get()]
    except TimeoutError:
        return [], None
    while not reader.empty():
        waiting.append(reader.get_nowait())
    events: list[StreamEvent] = []
    for one in waiting:
        if isinstance(one, StreamEnd):
            return events, one
        events.append(one)
    return events, None


class Feeds:
    """The feeds of all jobs that clients follow."""

    def __init__(self, polling: Polling, updates: JobUpdates) -> None:
        self.polling = polling
        self.updates = updates
        self.streams = Gauge("kernelscope_open_streams", "Open event streams.", registry=None)
        self._feeds: dict[str, _Feed] = {}

    async def follow(
        self, job_id: str, after: str | None, *, previews: bool = False, check: Check | None = None
    ) -> AsyncIterator[bytes] | None:
        """A job's events after one of them, as a stream of Server-Sent Events that ends with the job.

        None: there are no more events, and there will be none.

        Args:
            previews: the job's worker makes previews while the stream is read.
            check: called every 15 s; an error ends the stream.

        Raises:
            InvalidRequest, StoreUnavailable: at once, not in the stream.
        """
        seen = parse_event_id(after) if after else (0, 0)
        newest = await self.polling.last_event(job_id)
        if newest is None or (newest[1] and newest[0] <= seen):
            return None

        async def beat() -> None:
            try:
                if check:
                    await check()
                if previews:
                    await self.polling.watch(job_id)
            except StoreUnavailable as error:
                log.warning("%s; a client that follows job %s waits", error, job_id)

        return self._stream(job_id, seen, beat)

    async def _stream(self, job_id: str, seen: EventPlace, beat: Check) -> AsyncIterator[bytes]:
        """Resources are acquired here, so that a stream that is never read holds none."""
        yield KEEPALIVE_COMMENT
        reader: Reader = asyncio.Queue(MOST_BEHIND)
        feed = None
        try:
            with self.streams.track_inprogress():
                while missed := await self._since(job_id, seen):
                    yield b"".join(event.data for event in missed)
                    seen = missed[-1].place
                    if missed[-1].last:
                        return
                feed = self._join(job_id, reader)
                await feed.started.wait()
                for event in await self._since(job_id, seen):  # events since the last read, before the feed was joined
                    _put(reader, event)
                async for part in _parts(reader, seen, beat):
                    yield part
        except Exception as error:
            _note(job_id, error)
            yield StreamEnd.of(error, self.polling.root).data
        finally:
            if feed:
                self._leave(feed, reader)

    async def _since(self, job_id: str, after: EventPlace) -> list[StreamEvent]:
        """The events after this place. A stream that has begun waits while Redis does not respond."""
        while True:
            try:
                return list(map(StreamEvent.of, await self.polling.events(job_id, after)))
            except StoreUnavailable as error:
                log.warning("%s; a client that follows job %s waits", error, job_id)
                if self.updates.stopping:
                    return []
                await asyncio.sleep(RETRY_SECONDS)

    def _join(self, job_id: str, reader: Reader) -> _Feed:
        feed = self._feeds.get(job_id)
        if feed is None or feed.task.done():
            feed = self._feeds[job_id] = _Feed(job_id, self.polling, self.updates)
        feed.readers.add(reader)
        return feed

    def _leave(self, feed: _Feed, reader: Reader) -> None:
        feed.readers.discard(reader)
        if not feed.readers:
            feed.task.cancel()
            if self._feeds.get(feed.job_id) is feed:
                del self._feeds[feed.job_id]


async def _parts(reader: Reader, seen: EventPlace, beat: Check) -> AsyncIterator[bytes]:
    """New events as they happen, and a comment every 15 s, until the job's last event or another end."""
    due = 0.0
    while True:
        if time.monotonic() >= due:
            await beat()
            due = time.monotonic() + KEEPALIVE_SECONDS
        waiting, end = await _pending(reader, due - time.monotonic())
        new = {event.place: event for event in waiting if event.place > seen}
        seen = max([seen, *new])
        data = b"".join(new[place].data for place in sorted(new))
        if end:
            yield data + end.data
            return
        if data or not waiting:
            yield data or KEEPALIVE_COMMENT
        if any(event.last for event in waiting):
            return
