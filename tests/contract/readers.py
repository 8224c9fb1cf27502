"""Clients of event streams on raw sockets, and a worker that only changes the job record."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import uuid4

import numpy as np

from shared.jobs import Claim, Transitions
from shared.schemas import ExplainRequest, ItemResult, plan
from tests.contract.conftest import Plant

Key = tuple[str, str, str]  # job, kind, state or index
ONCE = ("status", "result")  # kinds whose every event each client receives exactly once


@dataclass(frozen=True)
class ReceivedEvent:
    """An event as a client received it."""

    id: str
    kind: str
    data: str
    at: float

    def key(self, job_id: str) -> Key:
        """The identity of the event."""
        reported = json.loads(self.data)
        return job_id, self.kind, str(reported["status"] if self.kind == "status" else reported.get("index"))


class Reader(asyncio.Protocol):
    """A connection to a job's events; `ended` is true once the server has ended the stream."""

    def __init__(self, job_id: str, after: str = "") -> None:
        self.job_id = job_id
        self.status = 0
        self.heard: list[ReceivedEvent] = []
        self.ended = False
        self.begun = asyncio.Event()
        self.closed = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport | None = None
        self._after = f"Last-Event-ID: {after}\r\n" if after else ""
        self._raw = self._text = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        head = f"GET /jobs/{self.job_id}/events HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{self._after}\r\n"
        transport.write(head.encode())

    def data_received(self, data: bytes) -> None:
        """Record each complete event with its time."""
        now = time.monotonic()
        self._raw += data
        if not self.status and not self._head():
            return
        self._unchunk()
        *events, self._text = self._text.split(b"\n\n")
        self.heard += [_parse_event(event.decode(), now) for event in events if not event.startswith(b":")]
        if self.heard:
            self.begun.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's name
        """Record the end."""
        self.begun.set()
        if not self.closed.done():
            self.closed.set_result(None)

    def cut(self) -> None:
        """Break the connection."""
        if self.transport:
            self.transport.abort()

    def once(self) -> list[Key]:
        """The events of the kinds in `ONCE`, in the order of arrival."""
        return [heard.key(self.job_id) for heard in self.heard if heard.kind in ONCE]

    def _head(self) -> bool:
        head, whole, rest = self._raw.partition(b"\r\n\r\n")
        if whole:
            self.status, self._raw = int(head.split()[1]), rest
        return bool(whole)

    def _unchunk(self) -> None:
        while True:
            size, whole, rest = self._raw.partition(b"\r\n")
            if not whole or len(rest) < int(size, 16) + 2:
                return
            self._text += rest[: int(size, 16)]
            self._raw = rest[int(size, 16) + 2 :]
            self.ended = self.ended or int(size, 16) == 0


def _parse_event(text: str, at: float) -> ReceivedEvent:
    fields = dict(line.split(": ", 1) for line in text.split("\n"))
    return ReceivedEvent(fields.get("id", ""), fields["event"], fields["data"], at)


async def connected(plant: Plant, readers: Iterable[Reader], at_once: int = 100) -> None:
    """Connect a few at a time, and wait until each has received its first event."""
    room = asyncio.Semaphore(at_once)
    loop = asyncio.get_running_loop()

    async def connect(reader: Reader) -> None:
        async with room:
            await loop.create_connection(lambda: reader, "127.0.0.1", plant.api_port)
            await reader.begun.wait()

    await asyncio.gather(*map(connect, readers))


class RecordWorker:
    """Makes a job's transitions as a worker would, and records when each began."""

    def __init__(self, transitions: Transitions) -> None:
        self.transitions = transitions
        self.began: dict[Key, float] = {}

    def submit(self, kernels: int) -> str:
        """Create a job that no other worker runs."""
        job_id = uuid4().hex
        fields = {"images": ["0" * 64], "model": "vgg_mini", "layer": "conv2_1", "kernels": list(range(kernels))}
        request = ExplainRequest.model_validate(fields)
        self._note(job_id, "status", "queued")
        self.transitions.submit(job_id, request, plan(request, 10_000), 86400)
        return job_id

    def claim(self, job_id: str, number: int = 0) -> Claim:
        """Claim one of its slices."""
        self._note(job_id, "status", "running")
        claim = self.transitions.claim(f"{job_id}:{number}", "worker")
        assert claim
        return claim

    def commit(self, claim: Claim, number: int) -> None:
        """Commit one of the claim's items, after renewing the lease."""
        self.transitions.renew(claim, {"iteration": number, "budget": 400, "loss": 0.5})
        item = claim.items[number]
        self._note(claim.job_id, "result", str(item.index))
        blobs = dict.fromkeys(("optimized.png", "optimized.npy", "maps.npz", "history.json"), "0" * 64)
        self.transitions.commit(claim, ItemResult.of(item, claim.request, item.kernel), blobs)

    def finish(self, claim: Claim) -> None:
        """Finish the slice; with the last one the job succeeds."""
        self.began.pop((claim.job_id, "status", "succeeded"), None)
        self._note(claim.job_id, "status", "succeeded")
        self.transitions.finish(claim)

    def events(self, job_id: str) -> list[Key]:
        """All recorded events of a job, in order."""
        return [key for key in self.began if key[0] == job_id]

    def delays(self, readers: Iterable[Reader], keys: Sequence[Key]) -> list[float]:
        """Seconds from the begin of each transition until each client received its event."""
        wanted = set(keys)
        pairs = ((reader.job_id, heard) for reader in readers for heard in reader.heard if heard.kind in ONCE)
        return [heard.at - self.began[key] for job_id, heard in pairs if (key := heard.key(job_id)) in wanted]

    def _note(self, job_id: str, kind: str, what: str) -> None:
        self.began.setdefault((job_id, kind, what), time.monotonic())


def figures(delays: list[float]) -> dict[str, float]:
    """Their median, 99th percentile and maximum, in milliseconds."""
    assert delays
    p50, p99 = np.percentile(delays, (50, 99))
    return {name: round(1e3 * float(value), 1) for name, value in (("p50", p50), ("p99", p99), ("worst", max(delays)))}
