"""`GET /jobs/{id}`: the current job."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter

from httpx import Client
from redis import Redis

from shared.jobs import Transitions
from shared.settings import Settings
from tests.api.conftest import InlineWorker, polling_of
from tests.api.test_explain import post, refused


def test_polling_returns_the_same_document_as_submitting(client: Client) -> None:
    """Not to be cached, with `Retry-After`."""
    submitted = post(client)
    answer = client.get(submitted.headers["location"])
    assert answer.json() == submitted.json()
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["retry-after"] == "1"


def test_an_ended_job_has_no_retry_after(client: Client) -> None:
    """Nor a position in the queue."""
    path = post(client).headers["location"]
    assert client.get(path).json()["queue_position"] == 1
    client.post(f"{path}/cancel").raise_for_status()
    answer = client.get(path)
    assert answer.json()["status"] == "cancelled"
    assert answer.json()["queue_position"] is None
    assert "retry-after" not in answer.headers


def test_the_position_in_the_queue_is_current(client: Client, redis: Redis) -> None:
    """Small and big jobs have separate queues; a job moves up when one before it starts."""
    many = ",".join(map(str, range(20)))
    small, big = ([post(client, kernels=kernels).json()["id"] for _ in range(3)] for kernels in ("3", many))

    def places() -> list[int | None]:
        return [client.get(f"/jobs/{job}").json()["queue_position"] for job in (*small, *big)]

    assert places() == [1, 2, 3, 1, 3, 5]  # the big ones have two slices each
    assert Transitions(redis).claim(f"{small[0]}:0")
    assert places()[:3] == [None, 1, 2]


def test_the_schema_of_a_job_is_documented(client: Client) -> None:
    """The response is serialised without FastAPI, but its schema is in the document."""
    described = client.get("/openapi.json").json()["paths"]["/jobs/{job_id}"]["get"]["responses"]["200"]
    assert described["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Job"}


def test_failed_items_can_be_retried(client: Client, inline_worker: InlineWorker) -> None:
    """202 and the job, queued again; 409 with the reason if nothing can be retried."""
    path = post(client, kernels="1,9").headers["location"]  # the dummy's kernel 9 is silent
    refused(client.post(f"{path}/retry"), 409, "nothing-to-retry", "still queued")
    inline_worker.work()
    assert client.get(path).json()["failed_items"] == 1
    answer = client.post(f"{path}/retry")
    assert answer.status_code == 202
    job = answer.json()
    assert (job["status"], job["failed_items"], job["progress"]["completed"]) == ("queued", 0, 1)
    refused(client.post(f"{path}/retry"), 409, "nothing-to-retry", "still queued")
    inline_worker.work()
    job = client.get(path).json()
    assert [result["status"] for result in job["results"]] == ["succeeded", "failed"]
    whole = post(client, kernels="1").headers["location"]
    inline_worker.work()
    refused(client.post(f"{whole}/retry"), 409, "nothing-to-retry", "no failed items")
    refused(client.post(f"/jobs/{OLD}/retry"), 404, "job-not-found")


OLD = "0" * 32


def test_an_expired_job(client: Client, redis: Redis) -> None:
    """410 while its tombstone is stored."""
    redis.set(f"ks:gone:{OLD}", "")
    refused(client.get(f"/jobs/{OLD}"), 410, "job-expired", OLD)


def test_many_concurrent_requests_are_all_answered(client: Client, settings: Settings) -> None:
    """More than there are connections to Redis: requests wait for a free one."""
    job_id = post(client).json()["id"]

    async def read() -> set[str]:
        polling = polling_of(settings)
        found = await asyncio.gather(*(polling.job(job_id) for _ in range(200)))
        await polling.close()
        return {job.id for job in found}

    assert asyncio.run(read()) == {job_id}


def test_a_poll_leaves_nothing_to_the_garbage_collector(client: Client) -> None:
    """With a reference cycle in each request it would pause all others, 15 ms a second at 1,000 polls a second."""
    path = post(client).headers["location"]
    client.get(path)
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(20):
            client.get(path).raise_for_status()
        gc.collect()
        left = Counter(type(one).__name__ for one in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert left["Visitor"] == left["AsyncExitStack"] == 0, left
