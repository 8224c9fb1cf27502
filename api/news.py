"""News of jobs: one subscription to Redis for all who wait, and one reading of a job's events for all its readers."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Self

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from shared.errors import InvalidRequest, StoreUnavailable
from shared.jobs import Event, Polling
from shared.schemas import Status

log = logging.getLogger(__name__)

CHANNEL = "ks:events"
LOOK_SECONDS = 5.0  # after which one looks even without news: the subscription may have been away
KEEPALIVE_SECONDS = 15.0
BEHIND = 1000  # events that a reader may be behind; one that reads slower is cut off, and may resume
EVENT_ID = re.compile(r"\d{1,19}-\d{1,19}")


@dataclass(eq=False)
class Bell:
    """Rings when there is news of a job."""

    kinds: tuple[str, ...]
    _rung: asyncio.Event = field(default_factory=asyncio.Event)

    def ring(self) -> None:
        """There is news."""
        self._rung.set()

    async def wait(self, seconds: float) -> None:
        """Until there was news since the last wait, or so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._rung.wait()
        self._rung.clear()


class News:
    """Listens for all who wait."""

    def __init__(self, polling: Polling) -> None:
        self.polling = polling
        self._bells: dict[str, list[Bell]] = defaultdict(list)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to listen, on the running loop."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop listening."""
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    @contextmanager
    def of(self, job_id: str, *kinds: str) -> Iterator[Bell]:
        """A bell for news of a job; all kinds, or these."""
        bell = Bell(kinds)
        self._bells[job_id].append(bell)
        try:
            yield bell
        finally:
            self._bells[job_id].remove(bell)
            if not self._bells[job_id]:
                del self._bells[job_id]

    async def _run(self) -> None:
        while True:
            try:
                await self._listen()
            except (RedisError, OSError) as error:
                log.warning("no news of jobs for now: Redis does not answer (%s)", type(error).__name__)
                await asyncio.sleep(0.5)

    async def _listen(self) -> None:
        async with self.polling.redis.pubsub() as subscription:
            await subscription.subscribe(CHANNEL)
            for bells in self._bells.values():  # what happened while nobody listened
                for bell in bells:
                    bell.ring()
            asked = False
            while True:
                message = await subscription.get_message(timeout=LOOK_SECONDS)
                if message is None:
                    # Nothing happened, or the connection is dead: the client says the same of both, and of a dead one
                    # says it at once, for ever.
                    if asked:
                        raise RedisTimeoutError("no answer to a PING")
                    await subscription.ping()
                asked = message is None
                if message and message["type"] == "message":
                    job_id, _, kind = message["data"].partition(" ")
                    self._tell(job_id, kind)

    def _tell(self, job_id: str, kind: str) -> None:
        for bell in self._bells.get(job_id, ()):
            if not bell.kinds or kind in bell.kinds:
                bell.ring()


@dataclass(frozen=True)
class Told:
    """An event as its readers get it."""

    place: tuple[int, int]
    data: bytes
    last: bool

    @classmethod
    def of(cls, event: Event) -> Self:
        """From the record's event."""
        last = event.kind == "status" and any(f'"{status}"' in event.data for status in Status if status.terminal)
        return cls(place(event.id), format_sse_event(data_str=event.data, event=event.kind, id=event.id), last)


def place(event_id: str) -> tuple[int, int]:
    """An event's id as numbers that can be compared.

    Raises:
        InvalidRequest: this is no id of ours.
    """
    if not EVENT_ID.fullmatch(event_id):
        raise InvalidRequest(f"Last-Event-ID: {event_id!r} is not the id of an event; send one as it came, or none")
    milliseconds, _, number = event_id.partition("-")
    return int(milliseconds), int(number)


class _Feed:
    """Reads one job's events as they come, for all its readers."""

    def __init__(self, job_id: str, polling: Polling, news: News) -> None:
        self.job_id = job_id
        self.polling = polling
        self.news = news
        self.readers: set[asyncio.Queue[Told | None]] = set()
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        with self.news.of(self.job_id) as bell:
            try:
                newest = await self.polling.last_event(self.job_id)
            except Exception as error:  # whoever waits for the beginning is told
                self.started.set_exception(error)
                return
            self.started.set_result(None)
            last = newest[0] if newest else None
            while last is not None:
                last = await self._read(last)
                await bell.wait(LOOK_SECONDS)
        for reader in self.readers:
            _put(reader, None)

    async def _read(self, last: str) -> str | None:
        """Pass on what is new; returns the last event's id, or None where nothing will follow."""
        try:
            events = await self.polling.events(self.job_id, last)
            if not events and await self.polling.last_event(self.job_id) is None:
                return None
        except StoreUnavailable as error:
            log.warning("%s; the readers of job %s wait", error, self.job_id)
            return last
        for event in events:
            told = Told.of(event)
            for reader in self.readers:
                _put(reader, told)
        return events[-1].id if events else last


def _put(reader: asyncio.Queue[Told | None], told: Told | None) -> None:
    """A reader that is far behind is cut off; it may come back and resume."""
    if reader.full():
        while not reader.empty():
            reader.get_nowait()
        told = None
    reader.put_nowait(told)


async def _all_of(reader: asyncio.Queue[Told | None]) -> list[Told] | None:
    """All that waits for a reader: nothing after a while without news; None where the stream is to end.

    It ends without the rest for one that is far behind, or whose job is gone: they may come back for it.
    """
    try:
        async with asyncio.timeout(KEEPALIVE_SECONDS):
            waiting = [await reader.get()]
    except TimeoutError:
        return []
    while not reader.empty():
        waiting.append(reader.get_nowait())
    known = [told for told in waiting if told]
    return known if len(known) == len(waiting) else None


class Feeds:
    """The feeds of all jobs that somebody reads."""

    def __init__(self, polling: Polling, news: News) -> None:
        self.polling = polling
        self.news = news
        self._feeds: dict[str, _Feed] = {}

    async def follow(self, job_id: str, after: str | None, *, watch: bool = False) -> AsyncIterator[bytes] | None:
        """A job's events after one of them, as a Server-Sent Events stream; it ends with the job.

        None: there are none, and there will be none.

        Args:
            watch: as long as the stream is read, the job's worker makes previews.

        Raises:
            InvalidRequest, StoreUnavailable: at once, not in the stream.
        """
        seen = place(after) if after else (0, 0)
        missed = await self._since(job_id, after or "0")
        newest = None if missed else await self.polling.last_event(job_id)
        if not missed and (newest is None or newest[1]):
            return None
        return self._stream(job_id, missed, seen, watch=watch)

    async def _stream(
        self, job_id: str, missed: list[Told], seen: tuple[int, int], *, watch: bool
    ) -> AsyncIterator[bytes]:
        """Whatever is held for a reader is taken here: a stream that nobody begins to read holds nothing."""
        yield b"".join([KEEPALIVE_COMMENT, *(told.data for told in missed)])
        if missed:
            seen = missed[-1].place
            if missed[-1].last:
                return
        reader: asyncio.Queue[Told | None] = asyncio.Queue(BEHIND)
        feed = self._join(job_id, reader)
        try:
            await asyncio.shield(feed.started)
            for told in await self._since(job_id, "{}-{}".format(*seen)):  # what came before the feed was joined
                _put(reader, told)
            while True:
                if watch:
                    await self.polling.watch(job_id)
                waiting = await _all_of(reader)
                if waiting is None:
                    return
                news = {told.place: told for told in waiting if told.place > seen}
                seen = max([seen, *news])
                if news or not waiting:
                    yield b"".join(news[place].data for place in sorted(news)) or KEEPALIVE_COMMENT
                if any(told.last for told in waiting):
                    return
        except StoreUnavailable as error:
            log.warning("%s; a reader of job %s has to come back", error, job_id)
        finally:
            self._leave(feed, reader)

    async def _since(self, job_id: str, after: str) -> list[Told]:
        return [Told.of(event) for event in await self.polling.events(job_id, after)]

    def _join(self, job_id: str, reader: asyncio.Queue[Told | None]) -> _Feed:
        feed = self._feeds.get(job_id)
        if feed is None or feed.task.done():
            feed = self._feeds[job_id] = _Feed(job_id, self.polling, self.news)
        feed.readers.add(reader)
        return feed

    def _leave(self, feed: _Feed, reader: asyncio.Queue[Told | None]) -> None:
        feed.readers.discard(reader)
        if not feed.readers:
            feed.task.cancel()
            if self._feeds.get(feed.job_id) is feed:
                del self._feeds[feed.job_id]
