"""A client whose server is a function, and a server with one job."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import httpx

from kernelscope.client import AsyncClient, Client
from shared.errors import QueueFull, RateLimited
from shared.errors import Unauthorized as NoKey
from shared.schemas import ExplainRequest, ItemResult, Job, plan

Answering = Callable[[httpx.Request], httpx.Response]


def client(answer: Answering, patience: float = 5.0) -> Client:
    """A client whose server is a function."""
    made = Client("http://server", "ks_secret", patience=patience)
    made._http = httpx.Client(
        base_url="http://server", transport=httpx.MockTransport(answer), headers=made._http.headers
    )
    return made


def awaited(server: Answering) -> AsyncClient:
    """An asynchronous client whose server is a function."""
    made = AsyncClient("http://server", patience=0)
    made._http = httpx.AsyncClient(base_url="http://server", transport=httpx.MockTransport(server))
    return made


class Script:
    """Responds with these in turn, then always with the last one, and records the requests."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers: Sequence[httpx.Response | Exception] = answers
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """The next response."""
        self.requests.append(request)
        answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer


def problem(error: QueueFull | RateLimited | NoKey, **headers: str) -> httpx.Response:
    """The API's response."""
    return httpx.Response(error.status, json=error.problem().model_dump(), headers={**error.headers, **headers})


JOB = Job.model_validate(
    {
        "id": "j",
        "status": "succeeded",
        **dict.fromkeys(("created_at", "started_at", "finished_at", "expires_at"), "2030-01-01T00:00:00Z"),
        "attempt": 1,
        "queue_position": None,
        "request": {"images": ["a" * 64], "layer": "conv2_1", "kernels": [3]},
        "progress": {"completed": 1, "total": 1, "failed": 0},
        "failed_items": 0,
        "links": {},
        "results": [],
        "error": None,
    }
)
ITEMS = 250
REQUEST = ExplainRequest.model_validate({"images": ["a" * 64], "layer": "conv2_1", "kernels": list(range(ITEMS))})
LINKS = {name: f"/deep/jobs/j/{name}" for name in ("results", "retry", "bundle", "events")}
EVENTS = f"GET {LINKS['events']}"
RUNNING = ("status", {"status": "running"})
ENDED = ("status", {"status": "succeeded"})


def record(status: str, **changes: Any) -> dict[str, Any]:
    """A job of more items than its record includes."""
    counts = {"completed": ITEMS if status != "queued" else 0, "total": ITEMS, "failed": 0}
    own = {"status": status, "request": REQUEST, "progress": counts, "links": LINKS, "results": None, **changes}
    found: dict[str, Any] = json.loads(JOB.model_copy(update=own).model_dump_json(warnings=False))
    return found


def page(request: httpx.Request) -> httpx.Response:
    """A page of its results; the cursor is the index of the next one."""
    start, count = int(request.url.params.get("cursor", 0)), int(request.url.params["limit"])
    items = [item for part in plan(REQUEST, ITEMS) for item in part][start : start + count]
    results = [ItemResult.of(item, REQUEST, item.kernel).model_dump() for item in items]
    following = str(start + count) if start + count < ITEMS else None
    return httpx.Response(200, json={"results": results, "next_cursor": following})


def stream(*events: tuple[str, dict[str, Any]]) -> httpx.Response:
    """An event stream, which then ends."""
    text = "".join(
        f"id: {number}-0\nevent: {kind}\ndata: {json.dumps(data)}\n\n" for number, (kind, data) in enumerate(events)
    )
    return httpx.Response(200, text=text, headers={"Content-Type": "text/event-stream"})


class Broken(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that breaks off."""

    def __init__(self, error: httpx.TransportError) -> None:
        self.error = error

    def __iter__(self) -> Iterator[bytes]:
        """Half of it."""
        yield b": half of"
        raise self.error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Half of it."""
        yield b": half of"
        raise self.error


def cut_off() -> httpx.Response:
    """A response whose connection is lost."""
    return httpx.Response(200, stream=Broken(httpx.ReadError("cut off")))


def progress(completed: int) -> tuple[str, dict[str, Any]]:
    """An event."""
    return "progress", {"completed": completed, "total": ITEMS, "fraction": completed / ITEMS, "iteration": 7}


class Server:
    """Has one job, which is one state further with each request, and records the requests.

    Args:
        events: responses to requests for events, in their order.
    """

    def __init__(self, *records: dict[str, Any], events: Sequence[httpx.Response] = ()) -> None:
        self.records = list(records)
        self.events = list(events)
        self.requests: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """The response."""
        self.requests.append(f"{request.method} {request.url.path}")
        if request.url.path == LINKS["results"]:
            return page(request)
        if request.url.path == LINKS["events"]:
            return self.events.pop(0)
        found = self.records.pop(0) if len(self.records) > 1 else self.records[0]
        return httpx.Response(200, json=found)
