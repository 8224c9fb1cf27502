"""Event streams: one reading of a job's events for all its readers."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import Self

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from prometheus_client import Gauge

from api.jobs.news import LOOK_SECONDS, News
from shared.errors import InvalidRequest, JobExpired, KernelscopeError, StoreUnavailable
from shared.jobs import Event, Polling

log = logging.getLogger(__name__)

KEEPALIVE_SECONDS = 15.0  # after which a reader hears that it is still read to, and whether it still may be
AGAIN_SECONDS = 0.5
BEHIND = 1000  # events that a reader may be behind; one that reads slower is cut off, and may resume
EVENT_ID = re.compile(r"\d{1,19}-\d{1,19}")
OLD_IDS = 10**12  # milliseconds since 1970, since 2001 and until 2286

Check = Callable[[], Awaitable[None]]  # raises Unauthorized where a caller would not be let in any more


@dataclass(frozen=True)
class Told:
    """An event as its readers get it."""

    place: tuple[int, int]
    data: bytes
    last: bool

    @classmethod
    def of(cls, event: Event) -> Self:
        """From the record's event."""
        return cls(event.place, format_sse_event(data_str=event.data, event=event.kind, id=event.id), event.last)


@dataclass(frozen=True)
class End:
    """That a stream ends before its job has: what its reader is told of why, nothing where they may just come back."""

    data: bytes = b""

    @classmethod
    def of(cls, error: Exception, root: str) -> Self:
        """An event without an id, so that who comes back goes on where they were: the problem, as JSON.

        Args:
            root: the path under which the API is served.
        """
        if not isinstance(error, KernelscopeError):
            error = KernelscopeError("an internal error; the server's log has the details, and events can be resumed")
        kind = "gone" if isinstance(error, JobExpired) else "problem"
        return cls(format_sse_event(data_str=error.problem().under(root).model_dump_json(), event=kind))


Reader = asyncio.Queue[Told | End]
Place = tuple[int, int]


def place(event_id: str) -> Place:
    """Where an event is that its reader was told; the beginning for one of a version whose ids were times.

    Raises:
        InvalidRequest: this is no id of ours.
    """
    if not EVENT_ID.fullmatch(event_id):
        raise InvalidRequest(f"Last-Event-ID: {event_id!r} is not the id of an event; send one as it came, or none")
    number, _, progress = event_id.partition("-")
    return (0, 0) if OLD_IDS <= int(number) < 10 * OLD_IDS else (int(number), int(progress))


class _Feed:
    """Reads one job's events as they come, for all its readers."""

    def __init__(self, job_id: str, polling: Polling, news: News) -> None:
        self.job_id = job_id
        self.polling = polling
        self.news = news
        self.readers: set[Reader] = set()
        self.started = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        """However it ends, its readers are told."""
        try:
            end = await self._follow()
        except Exception as error:
            _note(self.job_id, error)
            end = End.of(error, self.polling.root)
        self.started.set()
        for reader in self.readers:
            _put(reader, end)

    async def _follow(self) -> End:
        """Until the job is gone, this process is told to stop, or nobody reads any more.

        That last is looked at, because a cancellation can be lost: before Python 3.12 `asyncio.wait_for`, under every
        command to Redis, swallows one that comes as it returns.
        """
        with self.news.of(self.job_id) as bell:
            newest = await self.polling.last_event(self.job_id)
            self.started.set()
            last = newest[0] if newest else None
            while last is not None and not self.news.ending and self.readers:
                last = await self._read(last)
                if last is not None:
                    await bell.wait(LOOK_SECONDS)
        if self.news.ending:
            return End()
        return End.of(JobExpired(f"job {self.job_id} was deleted, or has expired"), self.polling.root)

    async def _read(self, last: Place) -> Place | None:
        """Pass on what is new; returns the last event's place, or None where the job is gone."""
        try:
            while events := await self.polling.events(self.job_id, last):
                for told in map(Told.of, events):
                    for reader in self.readers:
                        _put(reader, told)
                last = events[-1].place
            return last if await self.polling.last_event(self.job_id) else None
        except StoreUnavailable as error:
            log.warning("%s; the readers of job %s wait", error, self.job_id)
            return last


def _note(job_id: str, error: Exception) -> None:
    """Log why readers have to come back: what a caller may meet in a line, a bug with its traceback."""
    if isinstance(error, KernelscopeError):
        log.warning("%s; who reads the events of job %s has to come back", error, job_id)
    else:
        log.error("the events of job %s could not be read", job_id, exc_info=error)


def _put(reader: Reader, told: Told | End) -> None:
    """A reader that is far behind is cut off; it may come back and resume."""
    if reader.full():
        while not reader.empty():
            reader.get_nowait()
        told = End()
    reader.put_nowait(told)


async def _all_of(reader: Reader, seconds: float) -> tuple[list[Told], End | None]:
    """All that waits for a reader, nothing after so long without news; and whether the stream is to end then."""
    try:
        async with asyncio.timeout(seconds):
            waiting = [await reader.get()]
    except TimeoutError:
        return [], None
    while not reader.empty():
        waiting.append(reader.get_nowait())
    told = [one for one in takewhile(lambda one: isinstance(one, Told), waiting) if isinstance(one, Told)]
    return told, next((one for one in waiting if isinstance(one, End)), None)


class Feeds:
    """The feeds of all jobs that somebody reads."""

    def __init__(self, polling: Polling, news: News) -> None:
        self.polling = polling
        self.news = news
        self.streams = Gauge("kernelscope_open_streams", "Event streams that are read.", registry=None)
        self._feeds: dict[str, _Feed] = {}

    async def follow(
        self, job_id: str, after: str | None, *, watch: bool = False, check: Check | None = None
    ) -> AsyncIterator[bytes] | None:
        """A job's events after one of them, as a Server-Sent Events stream; it ends with the job.

        None: there are none, and there will be none.

        Args:
            watch: as long as the stream is read, the job's worker makes previews.
            check: asked each 15 s; the stream ends with what it raises.

        Raises:
            InvalidRequest, StoreUnavailable: at once, not in the stream.
        """
        seen = place(after) if after else (0, 0)
        newest = await self.polling.last_event(job_id)
        if newest is None or (newest[1] and newest[0] <= seen):
            return None

        async def beat() -> None:
            try:
                if check:
                    await check()
                if watch:
                    await self.polling.watch(job_id)
            except StoreUnavailable as error:
                log.warning("%s; the readers of job %s wait", error, job_id)

        return self._stream(job_id, seen, beat)

    async def _stream(self, job_id: str, seen: Place, beat: Check) -> AsyncIterator[bytes]:
        """Whatever is held for a reader is taken here: a stream that nobody begins to read holds nothing."""
        yield KEEPALIVE_COMMENT
        reader: Reader = asyncio.Queue(BEHIND)
        feed = None
        try:
            with self.streams.track_inprogress():
                while missed := await self._since(job_id, seen):
                    yield b"".join(told.data for told in missed)
                    seen = missed[-1].place
                    if missed[-1].last:
                        return
                feed = self._join(job_id, reader)
                await feed.started.wait()
                for told in await self._since(job_id, seen):  # what came before the feed was joined
                    _put(reader, told)
                async for part in _parts(reader, seen, beat):
                    yield part
        except Exception as error:
            _note(job_id, error)
            yield End.of(error, self.polling.root).data
        finally:
            if feed:
                self._leave(feed, reader)

    async def _since(self, job_id: str, after: Place) -> list[Told]:
        """What happened since then; who has begun to read waits for a Redis that does not answer, or for their turn."""
        while True:
            try:
                return list(map(Told.of, await self.polling.events(job_id, after)))
            except StoreUnavailable as error:
                log.warning("%s; a reader of job %s waits", error, job_id)
                if self.news.ending:
                    return []
                await asyncio.sleep(AGAIN_SECONDS)

    def _join(self, job_id: str, reader: Reader) -> _Feed:
        feed = self._feeds.get(job_id)
        if feed is None or feed.task.done():
            feed = self._feeds[job_id] = _Feed(job_id, self.polling, self.news)
        feed.readers.add(reader)
        return feed

    def _leave(self, feed: _Feed, reader: Reader) -> None:
        feed.readers.discard(reader)
        if not feed.readers:
            feed.task.cancel()
            if self._feeds.get(feed.job_id) is feed:
                del self._feeds[feed.job_id]


async def _parts(reader: Reader, seen: tuple[int, int], beat: Check) -> AsyncIterator[bytes]:
    """What is new to a reader, as it comes, and a comment each 15 s; up to the job's last event or another end."""
    due = 0.0
    while True:
        if time.monotonic() >= due:
            await beat()
            due = time.monotonic() + KEEPALIVE_SECONDS
        waiting, end = await _all_of(reader, due - time.monotonic())
        news = {told.place: told for told in waiting if told.place > seen}
        seen = max([seen, *news])
        data = b"".join(news[place].data for place in sorted(news))
        if end:
            yield data + end.data
            return
        if data or not waiting:
            yield data or KEEPALIVE_COMMENT
        if any(told.last for told in waiting):
            return
