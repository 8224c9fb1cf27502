"""`GET /jobs/{id}`: the whole record, as it is now."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter

from httpx import Client
from redis import Redis

from shared.jobs import Transitions
from shared.settings import Settings
from tests.api.conftest import Hands, polling_of
from tests.api.test_explain import post, refused


def test_polling_tells_what_submitting_told(client: Client) -> None:
    """The same document, not to be kept, with the time to ask again."""
    submitted = post(client)
    answer = client.get(submitted.headers["location"])
    assert answer.json() == submitted.json()
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["retry-after"] == "1"


def test_an_ended_job_is_not_to_be_asked_again(client: Client) -> None:
    """No `Retry-After`; its place in the queue is gone."""
    path = post(client).headers["location"]
    assert client.get(path).json()["queue_position"] == 1
    client.post(f"{path}/cancel").raise_for_status()
    answer = client.get(path)
    assert answer.json()["status"] == "cancelled"
    assert answer.json()["queue_position"] is None
    assert "retry-after" not in answer.headers


def test_the_place_in_the_queue_is_that_of_now(client: Client, redis: Redis) -> None:
    """Small and big jobs have a queue each; a job moves up when one before it is taken."""
    many = ",".join(map(str, range(20)))
    small, big = ([post(client, kernels=kernels).json()["id"] for _ in range(3)] for kernels in ("3", many))

    def places() -> list[int | None]:
        return [client.get(f"/jobs/{job}").json()["queue_position"] for job in (*small, *big)]

    assert places() == [1, 2, 3, 1, 3, 5]  # the big ones have two slices each
    assert Transitions(redis).claim(f"{small[0]}:0")
    assert places()[:3] == [None, 1, 2]


def test_the_document_of_a_job_is_described(client: Client) -> None:
    """The answer is written without FastAPI's help; its schema is still there."""
    described = client.get("/openapi.json").json()["paths"]["/jobs/{job_id}"]["get"]["responses"]["200"]
    assert described["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Job"}


def test_what_failed_is_run_again(client: Client, hands: Hands) -> None:
    """202 and the job, queued again; what cannot be retried is 409 with the reason."""
    path = post(client, kernels="1,9").headers["location"]  # the dummy's kernel 9 is silent
    refused(client.post(f"{path}/retry"), 409, "nothing-to-retry", "still queued")
    hands.work()
    assert client.get(path).json()["failed_items"] == 1
    answer = client.post(f"{path}/retry")
    assert answer.status_code == 202
    job = answer.json()
    assert (job["status"], job["failed_items"], job["progress"]["completed"]) == ("queued", 0, 1)
    refused(client.post(f"{path}/retry"), 409, "nothing-to-retry", "still queued")
    hands.work()
    job = client.get(path).json()
    assert [result["status"] for result in job["results"]] == ["succeeded", "failed"]
    whole = post(client, kernels="1").headers["location"]
    hands.work()
    refused(client.post(f"{whole}/retry"), 409, "nothing-to-retry", "nothing")
    refused(client.post(f"/jobs/{OLD}/retry"), 404, "job-not-found")


OLD = "0" * 32


def test_an_expired_job(client: Client, redis: Redis) -> None:
    """410 while its tombstone is kept."""
    redis.set(f"ks:gone:{OLD}", "")
    refused(client.get(f"/jobs/{OLD}"), 410, "job-expired", OLD)


def test_many_readers_at_once_are_all_answered(client: Client, settings: Settings) -> None:
    """More than there are connections to Redis: they wait for one another."""
    job_id = post(client).json()["id"]

    async def read() -> set[str]:
        polling = polling_of(settings)
        found = await asyncio.gather(*(polling.job(job_id) for _ in range(500)))
        await polling.close()
        return {job.id for job in found}

    assert asyncio.run(read()) == {job_id}


def test_a_poll_leaves_nothing_to_the_garbage_collector(client: Client) -> None:
    """A cycle in each request has it pause all the others, for 15 ms a second at 1,000 polls a second."""
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
