"""Event streams: Server-Sent Events of a job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from io import BytesIO

import pytest
from httpx import Client
from PIL import Image
from redis import Redis

from api.jobs.feeds import Feeds
from api.jobs.updates import JobUpdates
from api.services import Services
from shared.jobs import Polling, Transitions
from shared.keys import ApiKeys
from shared.settings import Settings
from tests.api.conftest import InlineWorker, polling_of, serving
from tests.api.reading import hurried, later, parsed, reading
from tests.api.test_access import bearer
from tests.api.test_explain import post, refused


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
    """Clients receive the cancellation, or that the job was deleted."""
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
            reported = await asyncio.wait_for(ending, 5)
            assert [part async for part in stream] == []
        stream = await feeds.follow(job_id, None)
        assert stream
        assert b"cancelled" in b"".join([part async for part in stream])
        await listening.close()
        await polling.close()
        return reported

    (event,) = parsed(iter(asyncio.run(fail()).decode().splitlines()))
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
