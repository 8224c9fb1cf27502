"""Asynchronous access to job records, for polling clients and for event streams.

The id of an event is its position in the job's log, a hyphen, and the number of the progress update after it.
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from shared.connection import connect_async, redis_errors
from shared.jobs.forms import MOST_RESULTS, Stored, Texts, job_of, json_of
from shared.jobs.record import Records
from shared.jobs.scripts import text
from shared.jobs.views import keys_of, live_of
from shared.schemas import Job, Status

WATCHED_SECONDS = 45  # after a request for previews, the job is regarded as watched
PORTION = 500  # events that are read at a time


@dataclass(frozen=True)
class Event:
    """An event of a job."""

    place: tuple[int, int]  # increases
    kind: Literal["status", "progress", "result"]
    data: str  # JSON

    @property
    def id(self) -> str:
        """The id in the event stream."""
        return "{}-{}".format(*self.place)

    @property
    def last(self) -> bool:
        """Whether it is the end of the job."""
        return self.kind == "status" and Status(json.loads(self.data)["status"]).terminal


class Polling:
    """Job records, read on an event loop.

    Args:
        url: of Redis.
        records: for archived jobs; called in threads.
        patience: as in `connect`.
    """

    def __init__(self, url: str, records: Records, *, patience: float = 1.0) -> None:
        self.records = records
        self.root = records.root
        self.redis = connect_async(url, patience=patience)
        self._read = self.redis.register_script(text("job"))
        self._read_events = self.redis.register_script(text("events"))

    async def job(self, job_id: str, owner: str | None = None) -> Job:
        """As `Records.job`."""
        return job_of(job_id, await self._stored(job_id, owner, MOST_RESULTS)).under(self.root)

    async def check(self, job_id: str, owner: str) -> None:
        """As `Records.check`."""
        await self._stored(job_id, owner, None)

    async def _stored(self, job_id: str, owner: str | None, most: int | None) -> Stored:
        with redis_errors():
            answer = await self._read(*keys_of(job_id, most))
        if live := live_of(job_id, answer, owner):
            return live
        return await asyncio.to_thread(self.records.archived, job_id, owner, most)

    async def events(self, job_id: str, after: tuple[int, int] = (0, 0)) -> list[Event]:
        """Some of the events after this place, oldest first; empty if there are none, or no such job."""
        while True:
            entries, progress, texts = await self._entries(job_id, after[0])
            events = list(self._events_of(job_id, after[0], entries, texts))
            if progress and len(entries) < PORTION:
                events += _progress(progress, after)
            if events or len(entries) < PORTION:
                return sorted(events, key=lambda event: event.place)
            after = after[0] + PORTION, 0  # all of these results were removed by a retry

    async def _entries(self, job_id: str, start: int) -> tuple[list[str], list[str] | None, Texts]:
        """Entries of the log from a position on, the latest progress, and the results that the entries refer to."""
        job = f"ks:job:{job_id}"
        with redis_errors():
            there, entries, progress = await self._read_events(
                keys=[job, f"{job}:log"], args=[start, start + PORTION - 1]
            )
        if not there:
            return await asyncio.to_thread(self._archived, job_id, start)
        done = [int(entry.removeprefix("result ")) for entry in entries if entry.startswith("result ")]
        if not done:
            return entries, progress, {}
        with redis_errors():
            found = await self.redis.hmget(f"{job}:results", list(map(str, done)))
            if None in found and not await self.redis.exists(job):  # archived at this moment
                return await asyncio.to_thread(self._archived, job_id, start)
        return entries, progress, dict(zip(done, found, strict=True))

    def _archived(self, job_id: str, start: int) -> tuple[list[str], None, Texts]:
        entries = self.records.log_of(job_id) or []
        return entries[start : start + PORTION], None, self.records.texts_of(job_id)

    def _events_of(self, job_id: str, start: int, entries: Sequence[str], texts: Texts) -> Iterator[Event]:
        for place, entry in enumerate(entries, start + 1):
            kind, _, what = entry.partition(" ")
            if kind == "status":
                yield Event((place, 0), "status", json.dumps({"status": what}))
            elif kind == "result" and (stored := texts.get(int(what))):
                yield Event((place, 0), "result", json_of(job_id, int(what), stored, self.root))

    async def last_event(self, job_id: str) -> tuple[tuple[int, int], bool] | None:
        """The place of the newest event, and whether the job ended with it; None if the job is gone."""
        job = f"ks:job:{job_id}"
        with redis_errors():
            there, entries, progress = await self._read_events(keys=[job, f"{job}:log"], args=[-1, -1])
        if there:
            newest = (int(progress[1]), int(progress[0])) if progress else (0, 0)
            return max((there, 0), newest), bool(entries) and _ends(entries[-1])
        entries = await asyncio.to_thread(self.records.log_of, job_id)
        return ((len(entries), 0), True) if entries else None

    async def watch(self, job_id: str) -> None:
        """Request previews of this job: workers make them for a while."""
        with redis_errors():
            await self.redis.set(f"ks:watched:{job_id}", "", ex=WATCHED_SECONDS)

    async def preview(self, job_id: str, index: int) -> bytes | None:
        """The latest preview of X̂ of an item, a WebP file; None if there is none."""
        with redis_errors():
            text = await self.redis.get(f"ks:preview:{job_id}:{index}")
        return b64decode(text) if text else None

    async def close(self) -> None:
        """Close the connections."""
        await self.redis.aclose()


def _ends(entry: str) -> bool:
    kind, _, what = entry.partition(" ")
    return kind == "status" and Status(what).terminal


def _progress(latest: list[str], after: tuple[int, int]) -> list[Event]:
    """The event of the latest progress, if it is after this place."""
    number, place, data, completed, planned, unresolved, fraction = latest
    at = (int(place), int(number))
    if at <= after:
        return []
    counts = {"completed": int(completed), "total": int(planned) if unresolved == "0" else None}
    running = json.loads(data)
    running.pop("share", None)
    return [Event(at, "progress", json.dumps({**counts, "fraction": round(float(fraction or 0), 4), **running}))]
