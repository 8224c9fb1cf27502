"""The same record for readers that come often or wait, on an event loop; and the events that they are told.

An event's id is its place in the job's log, and behind a hyphen the number of the progress that is told after it.
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from shared.connection import connect_async, redis_errors
from shared.jobs.forms import MOST_RESULTS, Stored, Texts, job_of, told_of
from shared.jobs.record import Records, keys_of, live_of
from shared.jobs.scripts import text
from shared.schemas import Job, Status

WATCHED_SECONDS = 45  # for which a reader of previews is believed to be still there
PORTION = 500  # events that are read in one go


@dataclass(frozen=True)
class Event:
    """Something that happened to a job, as its readers are told."""

    place: tuple[int, int]  # later ones are greater
    kind: Literal["status", "progress", "result"]
    data: str  # JSON

    @property
    def id(self) -> str:
        """As readers are given it."""
        return "{}-{}".format(*self.place)

    @property
    def last(self) -> bool:
        """Whether the job has ended with it."""
        return self.kind == "status" and Status(json.loads(self.data)["status"]).terminal


class Polling:
    """Job records for readers that come often or wait, on an event loop.

    Args:
        url: of Redis.
        records: that are asked, in threads, for what Redis does not have.
        patience: as of `connect`.
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
        """What happened since the event at this place, oldest first, some at a time; empty: nothing, or no job."""
        while True:
            entries, progress, texts = await self._entries(job_id, after[0])
            events = list(self._told(job_id, after[0], entries, texts))
            if progress and len(entries) < PORTION:
                events += _progress(progress, after)
            if events or len(entries) < PORTION:
                return sorted(events, key=lambda event: event.place)
            after = after[0] + PORTION, 0  # results that were taken back, for a retry: there is nothing to tell

    async def _entries(self, job_id: str, start: int) -> tuple[list[str], list[str] | None, Texts]:
        """Of the log, from a place on; the latest progress; and the results that the entries speak of."""
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

    def _told(self, job_id: str, start: int, entries: Sequence[str], texts: Texts) -> Iterator[Event]:
        for place, entry in enumerate(entries, start + 1):
            kind, _, what = entry.partition(" ")
            if kind == "status":
                yield Event((place, 0), "status", json.dumps({"status": what}))
            elif kind == "result" and (stored := texts.get(int(what))):
                yield Event((place, 0), "result", told_of(job_id, int(what), stored, self.root))

    async def last_event(self, job_id: str) -> tuple[tuple[int, int], bool] | None:
        """The place of the newest event, and whether it is the last there will be; None where the job is gone."""
        job = f"ks:job:{job_id}"
        with redis_errors():
            there, entries, progress = await self._read_events(keys=[job, f"{job}:log"], args=[-1, -1])
        if there:
            newest = (int(progress[1]), int(progress[0])) if progress else (0, 0)
            return max((there, 0), newest), bool(entries) and _ends(entries[-1])
        told = await asyncio.to_thread(self.records.log_of, job_id)
        return ((len(told), 0), True) if told else None

    async def watch(self, job_id: str) -> None:
        """Somebody wants to see the previews of this job: workers make some for a while."""
        with redis_errors():
            await self.redis.set(f"ks:watched:{job_id}", "", ex=WATCHED_SECONDS)

    async def preview(self, job_id: str, index: int) -> bytes | None:
        """What X̂ of an item looks like now, a WebP file; None where there is none."""
        with redis_errors():
            text = await self.redis.get(f"ks:preview:{job_id}:{index}")
        return b64decode(text) if text else None

    async def close(self) -> None:
        """Close the connections."""
        await self.redis.aclose()


def _ends(entry: str) -> bool:
    kind, _, what = entry.partition(" ")
    return kind == "status" and Status(what).terminal


def _progress(told: list[str], after: tuple[int, int]) -> list[Event]:
    """The latest progress, if it is newer than what the reader was told."""
    number, place, data, completed, planned, unresolved, fraction = told
    at = (int(place), int(number))
    if at <= after:
        return []
    counts = {"completed": int(completed), "total": int(planned) if unresolved == "0" else None}
    running = json.loads(data)
    running.pop("share", None)
    return [Event(at, "progress", json.dumps({**counts, "fraction": round(float(fraction or 0), 4), **running}))]
