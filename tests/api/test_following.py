"""Following jobs: the list, long polls, deletion, lost connections to Redis."""

from __future__ import annotations

import asyncio
import errno
import time
from base64 import urlsafe_b64encode
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import uvloop
from httpx import Client
from redis import Redis

from api.jobs.updates import JobUpdates
from api.services import Services
from shared.keys import ApiKeys
from shared.settings import Settings
from tests.api.conftest import InlineWorker, polling_of, serving
from tests.api.reading import hurried, later, parsed
from tests.api.test_access import bearer
from tests.api.test_explain import post, refused


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
            reported = threads.submit(waiter.get, links["events"])
            kept = {"kernelscope_long_polls 2.0", "kernelscope_open_streams 1.0"}
            until = time.monotonic() + 10
            while not kept <= set(client.get("/metrics").text.splitlines()):
                assert time.monotonic() < until
                time.sleep(0.05)
        job, made, story = (answer.result() for answer in (asked, sent, reported))
    assert (job.status_code, job.json()["status"]) == (200, "queued")
    assert (made.status_code, made.json()["status"]) == (202, "queued")
    assert made.headers["location"] == made.json()["links"]["self"]
    assert [event.data for event in parsed(iter(story.text.splitlines()))] == [{"status": "queued"}]


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
    services.retention.remove_files(10, 0)
    assert [each.exists() for each in kept] == [False, True]
    assert client.get(f"{second}/artifacts/0/optimized.png").status_code == 200
    assert client.delete(second).status_code == 204
    services.retention.remove_files(10, 0)
    assert [path for path in folder.rglob("*") if path.is_file()] == []
    asyncio.run(services.close())


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
