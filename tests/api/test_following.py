"""Following jobs: the list, long polls, Server-Sent Events, deleting."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import pytest
import uvloop
from httpx import Client
from PIL import Image
from redis import Redis

from api.jobs import feeds, responses
from api.jobs.feeds import Feeds
from api.jobs.updates import JobUpdates
from api.services import Services
from shared.jobs import Polling, Transitions
from shared.keys import ApiKeys
from shared.settings import Settings
from tests.api.conftest import InlineWorker, polling_of, serving
from tests.api.test_access import bearer
from tests.api.test_explain import post, refused


@dataclass
class Event:
    """An event as a client receives it."""

    id: str
    kind: str
    data: dict[str, Any]


@contextmanager
def reading(client: Client, path: str, last: str | None = None) -> Iterator[Iterator[Event]]:
    """A job's events, as they arrive."""
    headers = {"Last-Event-ID": last} if last else {}
    with client.stream("GET", path, headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        yield _parsed(answer.iter_lines())


def _parsed(lines: Iterator[str]) -> Iterator[Event]:
    import json

    fields: dict[str, str] = {}
    for line in lines:
        if line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value
        elif not line and fields:
            yield Event(fields.get("id", ""), fields["event"], json.loads(fields["data"]))
            fields = {}


@contextmanager
def later(seconds: float, action: Callable[[], object]) -> Iterator[None]:
    """Run an action after a delay, while the context continues; wait for it at the end."""
    thread = threading.Timer(seconds, action)
    thread.start()
    yield
    thread.join()


def listed(client: Client, **query: str | int) -> list[str]:
    """The ids of all pages of a list."""
    ids: list[str] = []
    while True:
        page = client.get("/jobs", params=query).json()
        ids += [job["id"] for job in page["jobs"]]
        if page["next_cursor"] is None:
            return ids
        query["cursor"] = page["next_cursor"]


def test_the_list_is_empty_at_first(client: Client) -> None:
    """One empty page."""
    answer = client.get("/jobs")
    assert answer.json() == {"jobs": [], "next_cursor": None}
    assert "link" not in answer.headers


def test_jobs_are_listed_newest_first_by_pages(client: Client, redis: Redis) -> None:
    """Each job once, for any page size, even if several were created at the same time; without results."""
    ids = [post(client).json()["id"] for _ in range(7)]
    for job_id in ids[2:5]:
        redis.zadd("ks:jobs:", {job_id: 5.0})
    tied = sorted(ids[2:5], reverse=True)
    expected = [*reversed(ids[5:]), *reversed(ids[:2]), *tied]
    for limit in (1, 2, 3, 100):
        assert listed(client, limit=limit) == expected
    answer = client.get("/jobs?limit=3&model=vgg_mini")
    assert "results" not in answer.json()["jobs"][0]
    following = answer.headers["link"].split(";")[0].strip("<>")
    assert [job["id"] for job in client.get(following).json()["jobs"]] == expected[3:6]


def test_the_list_is_filtered(client: Client, inline_worker: InlineWorker) -> None:
    """By status, network and layer, by any name of the layer."""
    first, second = post(client).json()["id"], post(client, layer="conv1_1", kernels="3").json()["id"]
    inline_worker.work()
    third = post(client, layer="conv1_1", kernels="3").json()["id"]
    assert listed(client, status="succeeded") == [second, first]
    assert listed(client, status="queued") == [third]
    assert listed(client, layer="conv1_1") == [third, second]
    assert listed(client, model="vgg_mini", layer="relu1_1", status="queued") == [third]
    assert listed(client, model="vgg16") == []
    refused(client.get("/jobs?status=done"), 422, "invalid-request", "status")
    refused(client.get("/jobs?limit=1000"), 422, "invalid-request", "limit")
    refused(client.get("/jobs?model=vgg16&layer=conv9_9"), 422, "unknown-layer", "conv9_9", "conv5_3")


@pytest.mark.parametrize("cursor", ["x", "", "é", urlsafe_b64encode(b"a b").decode(), "AAAA"])
def test_an_invalid_cursor(client: Client, cursor: str) -> None:
    """422, with what to send."""
    refused(client.get("/jobs", params={"cursor": cursor}), 422, "invalid-request", "next_cursor")


def test_waiting_for_a_job_ends_when_it_ends(client: Client, inline_worker: InlineWorker) -> None:
    """Immediately, not at the next poll; the response has the granted time."""
    path = post(client).json()["links"]["self"]
    begin = time.monotonic()
    with later(0.5, inline_worker.work):
        answer = client.get(path, headers={"Prefer": "wait=20"})
        waited = time.monotonic() - begin
    assert answer.json()["status"] == "succeeded"
    assert answer.headers["preference-applied"] == "wait=20"
    assert "retry-after" not in answer.headers
    assert 0.4 < waited < 4
    again = client.get(path, headers={"Prefer": "respond-async, wait=100"})
    assert again.headers["preference-applied"] == "wait=60"


def test_waiting_ends_after_the_requested_time(client: Client) -> None:
    """With the job's current state; an invalid preference is ignored."""
    path = post(client).json()["links"]["self"]
    begin = time.monotonic()
    answer = client.get(path, headers={"Prefer": "wait=1"})
    assert 1 <= time.monotonic() - begin < 3
    assert answer.json()["status"] == "queued"
    assert answer.headers["retry-after"] == "1"
    for nothing in ("wait", "wait=soon", "wait=-1", "await=5", "handling=lenient"):
        assert "preference-applied" not in client.get(path, headers={"Prefer": nothing}).headers


def test_submitting_can_wait_for_the_end(client: Client, inline_worker: InlineWorker) -> None:
    """200 and the whole job if it ended in time, else 202."""
    with later(0.5, inline_worker.work):
        answer = post(client, headers={"Prefer": "wait=20"})
    assert answer.status_code == 200
    assert answer.json()["status"] == "succeeded"
    assert answer.headers["location"] == answer.json()["links"]["self"]
    answer = post(client, headers={"Prefer": "wait=1"})
    assert answer.status_code == 202
    assert answer.json()["status"] == "queued"


def test_a_cancelled_or_deleted_job_ends_the_wait(client: Client) -> None:
    """Cancelled: with the job. Deleted: 410."""
    links = post(client).json()["links"]
    with later(0.3, lambda: client.post(links["cancel"])):
        assert client.get(links["self"], headers={"Prefer": "wait=20"}).json()["status"] == "cancelled"
    links = post(client).json()["links"]
    with later(0.3, lambda: client.delete(links["self"])):
        answer = client.get(links["self"], headers={"Prefer": "wait=20"})
    assert answer.status_code in (200, 410)  # it is cancelled first, which the client may see
    refused(client.get(links["self"]), 410, "job-expired", "deleted")


def test_events_include_every_change(client: Client, inline_worker: InlineWorker) -> None:
    """Each status once, each result once, progress with its loss terms; then the stream ends."""
    links = post(client, iterations="300").json()["links"]
    with later(0.3, inline_worker.work), reading(client, links["events"]) as events:
        story = list(events)
    states = [event.data["status"] for event in story if event.kind == "status"]
    assert states == ["queued", "running", "succeeded"]
    results = [event.data for event in story if event.kind == "result"]
    assert sorted(results, key=lambda each: each["index"]) == client.get(links["self"]).json()["results"]
    progress = [event.data for event in story if event.kind == "progress"]
    assert progress
    assert all(step["total"] == 2 and 0 <= step["completed"] <= 2 for step in progress)
    item = progress[0]["items"][0]
    assert set(item["losses"]) == {"preservation", "suppression", "regularization", "total"}
    assert 0 < item["iteration"] <= 300
    ids = [tuple(map(int, event.id.split("-"))) for event in story]
    assert ids == sorted(set(ids))


def test_a_stream_with_previews(client: Client, inline_worker: InlineWorker) -> None:
    """Its events link to pictures that can be downloaded; without such a stream none are made."""
    job = post(client, iterations="1200", kernels="1").json()
    seen: set[int] = set()
    with later(0.1, inline_worker.work), reading(client, f"{job['links']['events']}?previews=true") as events:
        for event in events:
            if event.kind == "progress" and (number := event.data["items"][0].get("preview")):
                answer = client.get(f"/jobs/{job['id']}/previews/0")
                assert answer.headers["content-type"] == "image/webp"
                assert Image.open(BytesIO(answer.content)).size == (96, 96)
                seen.add(number)
    assert len(seen) > 1
    unwatched = post(client, iterations="400", kernels="1", beta="2").json()
    with later(0.1, inline_worker.work), reading(client, unwatched["links"]["events"]) as events:
        assert not any("preview" in event.data["items"][0] for event in events if event.kind == "progress")
    refused(client.get(f"/jobs/{unwatched['id']}/previews/0"), 404, "artifact-not-found", "previews=true")


def test_a_client_that_connects_late_or_resumes_misses_and_repeats_nothing(
    client: Client, inline_worker: InlineWorker
) -> None:
    """After any event, the rest; after the last one, an immediate end."""
    links = post(client, kernels="1,2,3,4,5").json()["links"]
    inline_worker.work()
    with reading(client, links["events"]) as events:
        story = list(events)
    assert [event.data["status"] for event in story if event.kind == "status"] == ["queued", "running", "succeeded"]
    for number, event in enumerate(story[:-1]):
        with reading(client, links["events"], event.id) as events:
            assert list(events) == story[number + 1 :]
    over = client.get(links["events"], headers={"Last-Event-ID": story[-1].id})
    assert (over.status_code, over.content) == (204, b"")  # tells a browser not to reconnect
    refused(client.get(links["events"], headers={"Last-Event-ID": "soon"}), 422, "invalid-request", "Last-Event-ID")


def test_all_clients_of_a_job_receive_its_events(client: Client, redis: Redis) -> None:
    """Also while clients connect and disconnect."""
    links = post(client).json()["links"]
    transitions = Transitions(redis)
    (slice_id,) = transitions.queued()
    with reading(client, links["events"]) as first, reading(client, links["events"]) as second:
        assert next(first).data == next(second).data == {"status": "queued"}
        claim = transitions.claim(slice_id)
        assert claim
        assert next(first).data == {"status": "running"}
        with reading(client, links["events"]) as third:
            assert [next(third).data["status"] for _ in range(2)] == ["queued", "running"]
        transitions.cancel(claim.job_id)
        assert next(first).data == {"status": "cancelled"}
        assert [event.data["status"] for event in second] == ["running", "cancelled"]
        assert list(first) == []


def test_a_deleted_job_ends_the_stream(client: Client) -> None:
    """Clients receive the cancellation, or that the job is gone."""
    links = post(client).json()["links"]
    with reading(client, links["events"]) as events:
        assert next(events).data == {"status": "queued"}
        assert client.delete(links["self"]).status_code == 204
        (last,) = list(events)
        assert last.kind == "gone" or last.data == {"status": "cancelled"}


def test_a_stream_of_a_deleted_job_ends_with_gone(client: Client, settings: Settings) -> None:
    """A special event, without an id."""
    links = post(client).json()["links"]
    services = Services.open(settings)
    with reading(client, links["events"]) as events:
        next(events)
        job_id = links["self"].rsplit("/", 1)[-1]
        created = services.redis.hget(f"ks:job:{job_id}", "created_at")
        keys = [f"ks:job:{job_id}"]
        with services.redis.pipeline(transaction=True) as pipe:  # otherwise it may see the one without the other
            services.transitions._scripts["cancel"](keys=keys, args=[job_id], client=pipe)
            services.retention._remove(keys=keys, args=[job_id, "", created, "", 60], client=pipe)
            pipe.execute()
        (last,) = list(events)
    assert (last.kind, last.id, last.data["type"], last.data["status"]) == ("gone", "", "/problems/job-expired", 410)
    asyncio.run(services.close())


@contextmanager
def hurried(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.2) -> Iterator[None]:
    """Shorten the intervals of 15 s."""
    monkeypatch.setattr(feeds, "KEEPALIVE_SECONDS", seconds)
    monkeypatch.setattr(responses, "KEEPALIVE_SECONDS", seconds)
    monkeypatch.setattr(responses, "RECHECK_SECONDS", seconds)
    yield


@pytest.mark.parametrize("with_session", [False, True])
def test_a_revoked_key_ends_its_streams(
    settings: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch, *, with_session: bool
) -> None:
    """Or the end of a session: within a keepalive interval, with the reason as an event. Other streams continue."""
    keys = ApiKeys(redis)
    ada, bob = (bearer(keys.add(name)) for name in ("ada", "bob"))
    with hurried(monkeypatch), serving(settings) as client, Client(base_url=client.base_url) as page:
        other, own = (post(client, headers=key).json()["links"]["events"] for key in (bob, ada))
        if with_session:
            page.post("/session", headers=ada).raise_for_status()
        else:
            page.headers.update(ada)
        client.headers.update(bob)
        with reading(page, own) as events, reading(client, other) as others:
            assert next(events).data == next(others).data == {"status": "queued"}
            page.delete("/session") if with_session else keys.revoke("ada")
            (last,) = list(events)
            client.post(other.replace("events", "cancel")).raise_for_status()
            assert next(others).data == {"status": "cancelled"}
        assert (last.kind, last.data["type"], last.data["status"]) == ("problem", "/problems/unauthorized", 401)
        assert page.get(own).status_code == 401


def test_a_revoked_key_ends_its_long_polls(settings: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a keepalive interval, with 401."""
    keys = ApiKeys(redis)
    ada = bearer(keys.add("ada"))
    with hurried(monkeypatch), serving(settings) as client:
        path = post(client, headers=ada).json()["links"]["self"]
        with later(0.3, lambda: keys.revoke("ada")):
            answer = client.get(path, headers={"Prefer": "wait=20", **ada})
    refused(answer, 401, "unauthorized", "revoked")


def test_waiting_requests_are_answered_when_the_server_stops(settings: Settings, redis: Redis) -> None:
    """With the job's current state, so that its id is not lost; event streams end between events and can be resumed."""
    with ThreadPoolExecutor() as threads, Client(timeout=30) as waiter:
        with serving(settings) as client:
            waiter.base_url = client.base_url
            links = post(client).json()["links"]
            asked = threads.submit(waiter.get, links["self"], headers={"Prefer": "wait=60"})
            sent = threads.submit(post, waiter, headers={"Prefer": "wait=60"})
            told = threads.submit(waiter.get, links["events"])
            kept = {"kernelscope_long_polls 2.0", "kernelscope_open_streams 1.0"}
            until = time.monotonic() + 10
            while not kept <= set(client.get("/metrics").text.splitlines()):
                assert time.monotonic() < until
                time.sleep(0.05)
        job, made, story = (answer.result() for answer in (asked, sent, told))
    assert (job.status_code, job.json()["status"]) == (200, "queued")
    assert (made.status_code, made.json()["status"]) == (202, "queued")
    assert made.headers["location"] == made.json()["links"]["self"]
    assert [event.data for event in _parsed(iter(story.text.splitlines()))] == [{"status": "queued"}]


def test_deleting_removes_the_record_and_the_files(
    client: Client, settings: Settings, inline_worker: InlineWorker
) -> None:
    """Images of other jobs remain."""
    first, second = (post(client).json()["links"]["self"] for _ in range(2))
    inline_worker.work()
    assert client.get(f"{first}/artifacts/0/panel.png").status_code == 200
    folder = settings.data_dir / "store" / "jobs"
    kept = [(folder / here[-2:] / here.removeprefix("/jobs/")) for here in (first, second)]
    assert all((each / "drawn-0-panel.png").is_file() is (each == kept[0]) for each in kept)
    services = Services.open(settings)
    assert client.delete(first).status_code == 204
    refused(client.get(f"{first}/artifacts/0/panel.png"), 410, "job-expired")
    refused(client.delete(first), 410, "job-expired")
    services.retention.sweep(10, 0)
    assert [each.exists() for each in kept] == [False, True]
    assert client.get(f"{second}/artifacts/0/optimized.png").status_code == 200
    assert client.delete(second).status_code == 204
    services.retention.sweep(10, 0)
    assert [path for path in folder.rglob("*") if path.is_file()] == []
    asyncio.run(services.close())


def test_a_stream_that_is_never_read_holds_no_resources(client: Client, settings: Settings) -> None:
    """If the client disconnects before the first byte or later, no feed and no task remain."""
    job_id = post(client).json()["id"]

    async def leave() -> None:
        polling = polling_of(settings)
        listening = JobUpdates(polling)
        listening.start()
        feeds = Feeds(polling, listening)
        before = len(asyncio.all_tasks())
        assert await feeds.follow(job_id, None)
        assert feeds._feeds == {}
        stream = await feeds.follow(job_id, None)
        assert stream
        reading = asyncio.ensure_future(_read_on(stream))
        while not feeds._feeds:  # noqa: ASYNC110 - joining sends no notification
            await asyncio.sleep(0.01)
        while not reading.done():  # one cancellation may be lost in a command to Redis
            reading.cancel()
            await asyncio.sleep(0.01)
        assert feeds._feeds == {}
        async with asyncio.timeout(10):
            while len(asyncio.all_tasks()) > before:  # noqa: ASYNC110 - their end sends no notification
                await asyncio.sleep(0.01)
        await listening.close()
        await polling.close()

    asyncio.run(leave())


def test_a_silently_lost_connection_is_replaced(
    client: Client, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a network failure: the event loop continues, and notifications arrive again."""
    job_id = post(client).json()["id"]

    async def die() -> None:
        polling = polling_of(settings)
        made: list[Any] = []
        pubsub = polling.redis.pubsub

        def subscription(**options: Any) -> Any:
            made.append(pubsub(**options))
            return made[-1]

        async def subscribed(count: int) -> None:
            async with asyncio.timeout(10):
                while len(made) < count or not made[-1].channels:  # noqa: ASYNC110 - there is no notification
                    await asyncio.sleep(0.01)

        monkeypatch.setattr(polling.redis, "pubsub", subscription)
        listening = JobUpdates(polling)
        listening.start()
        await subscribed(1)
        made[0].connection._reader.set_exception(TimeoutError(errno.ETIMEDOUT, "Connection timed out"))
        with listening.subscribe(job_id) as updates:
            await subscribed(2)
            await updates.wait(2)
            await asyncio.to_thread(client.post, f"/jobs/{job_id}/cancel")
            await asyncio.wait_for(updates._notified.wait(), 5)
        await listening.close()
        await polling.close()

    asyncio.run(die())


@pytest.mark.parametrize("loop", [asyncio, uvloop])
def test_a_connection_lost_while_idle_is_replaced(client: Client, settings: Settings, loop: Any) -> None:
    """The next request succeeds."""
    job_id = post(client).json()["id"]

    async def lose() -> None:
        polling = polling_of(settings)
        assert (await polling.job(job_id)).id == job_id
        connection = await polling.redis.connection_pool.get_connection()
        connection._writer.transport.abort()
        await asyncio.sleep(0.1)
        await polling.redis.connection_pool.release(connection)
        assert (await polling.job(job_id)).id == job_id
        await polling.close()

    loop.run(lose())


def test_clients_can_resume_after_a_feed_has_failed(
    client: Client, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event without an id ends the stream after any error; the next stream has the missed events."""
    job_id = post(client).json()["id"]

    async def fail() -> bytes:
        polling = polling_of(settings)
        listening = JobUpdates(polling)
        listening.start()
        feeds = Feeds(polling, listening)
        stream = await feeds.follow(job_id, None)
        assert stream
        assert b"ping" in await anext(stream)
        assert b"queued" in await anext(stream)
        ending = asyncio.ensure_future(anext(stream))
        while not (feeds._feeds and feeds._feeds[job_id].started.is_set()):  # noqa: ASYNC110 - there is no notification
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        with monkeypatch.context() as patch:
            patch.setattr(polling, "events", _raise)
            await asyncio.to_thread(client.post, f"/jobs/{job_id}/cancel")
            told = await asyncio.wait_for(ending, 5)
            assert [part async for part in stream] == []
        stream = await feeds.follow(job_id, None)
        assert stream
        assert b"cancelled" in b"".join([part async for part in stream])
        await listening.close()
        await polling.close()
        return told

    (event,) = _parsed(iter(asyncio.run(fail()).decode().splitlines()))
    assert (event.kind, event.id, event.data["status"]) == ("problem", "", 500)
    assert "resume" in event.data["detail"]


async def _raise(*_: object) -> None:
    raise ValueError("a bug")


def test_previews_are_requested_at_intervals(
    client: Client, inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with each event: each request is a write that Redis syncs to disk."""
    asked = []
    watch = Polling.watch

    async def noted(polling: Polling, job_id: str) -> None:
        asked.append(job_id)
        await watch(polling, job_id)

    monkeypatch.setattr(Polling, "watch", noted)
    job = post(client, iterations="400", kernels="1,2,3,4").json()
    with later(0.1, inline_worker.work), reading(client, f"{job['links']['events']}?previews=true") as events:
        assert len(list(events)) > 5
    assert asked == [job["id"]]


async def _read_on(stream: AsyncIterator[bytes]) -> None:
    async for _ in stream:
        pass
