"""Capacity: budgets and their order, checks before images are decoded, the cached readiness."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest
from httpx import Client
from redis import Redis

from api.edge import capacity
from api.services import READINESS_SECONDS
from shared import images
from shared.keys import ApiKeys
from shared.settings import Settings
from shared.store import BlobStore
from shared.workers import WorkerState, publish
from tests.api.conftest import InlineWorker, serving
from tests.api.test_access import bearer
from tests.api.test_explain import post, refused
from tests.conftest import noise, png


def stalled(client: Client, size: int, sent: int, key: str = "") -> socket.socket:
    """An upload that announces this many bytes, sends some of them and pauses."""
    connection = socket.create_connection((client.base_url.host, client.base_url.port or 80))
    head = f"POST /explain HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n"
    connection.sendall(f"{head}{f'Authorization: Bearer {key}' if key else 'X-A: b'}\r\n\r\n".encode() + b" " * sent)
    return connection


def test_uploads_beyond_the_capacity_are_refused_for_now(
    settings: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 with Retry-After. Small uploads and those of other callers are accepted; later all are."""
    monkeypatch.setattr(capacity, "BODY_PATIENCE_SECONDS", 0.3)
    keys = {name: ApiKeys(redis).add(name) for name in ("ada", "bob")}
    large = png(noise(400, 400))
    assert 64 * 1024 < len(large) < 10**6
    with serving(settings.model_copy(update={"max_body_mb": 1})) as client, ExitStack() as held:
        for _ in range(3):
            held.enter_context(stalled(client, 10**6, 200_000, keys["ada"]))
        time.sleep(0.5)
        busy = post(client, large, headers=bearer(keys["ada"]))
        refused(busy, 503, "server-busy", "uploads", "try again")
        assert busy.headers["retry-after"] == "5"
        assert post(client, headers=bearer(keys["ada"])).status_code == 202
        assert post(client, large, headers=bearer(keys["bob"])).status_code == 202
        held.close()
        time.sleep(0.2)
        assert post(client, large, headers=bearer(keys["ada"])).status_code == 202


def test_uploads_that_have_hardly_begun_reserve_nothing(client: Client) -> None:
    """A hundred uploads announce the largest body and send slowly."""
    with ExitStack() as held:
        for _ in range(100):
            held.enter_context(stalled(client, 32 * 10**6, 1000))
        assert post(client, png(noise(400, 400))).status_code == 202


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads in which images are decoded."""
    threads: list[str] = []
    for name in ("decode", "verify"):
        known = getattr(images, name)

        def noted(data: bytes, most: int, known: Callable[[bytes, int], object] = known) -> object:
            threads.append(threading.current_thread().name)
            return known(data, most)

        monkeypatch.setattr(images, name, noted)
    return threads


def test_images_are_checked_in_their_own_threads(client: Client, checks: list[str]) -> None:
    """Large and small images, never in the threads of other requests."""
    assert post(client).status_code == 202
    assert post(client, png(noise(2100, 2000))).status_code == 202
    assert len(checks) == 2
    assert all(name.startswith("check") for name in checks)


def test_slow_checks_delay_nothing_else(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """While sixty images are checked slowly, routes that use threads respond."""
    over = threading.Event()
    monkeypatch.setattr(images, "decode", lambda *_: over.wait(20))
    with ThreadPoolExecutor(60) as callers:
        waiting = [callers.submit(post, client) for _ in range(60)]
        time.sleep(0.5)
        begin = time.monotonic()
        assert client.get("/models", timeout=5).status_code == 200
        assert client.get("/jobs", timeout=5).status_code == 200
        assert time.monotonic() - begin < 4
        over.set()
        assert {answer.result().status_code for answer in waiting} == {202}


def test_a_repeated_request_is_answered_before_anything_is_checked(
    client: Client, redis: Redis, worker: WorkerState, checks: list[str]
) -> None:
    """The existing job is returned although its network is now unavailable, undecoded. New requests are refused."""
    headers = {"Idempotency-Key": "mine"}
    first = post(client, headers=headers)
    assert first.status_code == 202
    worker.networks["vgg_mini"].available = False
    publish(redis, worker)
    checks.clear()
    again = post(client, headers=headers)
    assert again.status_code == 200
    assert again.json()["id"] == first.json()["id"]
    refused(post(client, headers=headers, kernels="4"), 422, "idempotency-conflict")
    assert checks == []
    refused(post(client, headers={"Idempotency-Key": "other"}), 422, "model-unavailable")


def test_a_caller_at_their_quota_is_refused_before_anything_is_decoded_or_stored(
    settings: Settings, redis: Redis, checks: list[str], inline_worker: InlineWorker
) -> None:
    """Also if the queue is full. A repeated request still returns its job."""
    key = bearer(ApiKeys(redis).add("ada", max_open=1))
    other = bearer(ApiKeys(redis).add("bob"))
    with serving(settings.model_copy(update={"max_queued": 1})) as client:
        first = post(client, headers={**key, "Idempotency-Key": "mine"})
        assert first.status_code == 202
        known = sorted(redis.keys("*"))
        blobs = sorted((settings.data_dir / "store").rglob("*"))
        checks.clear()
        refused(post(client, png(noise(seed=7)), headers=key), 429, "quota-exceeded")
        refused(post(client, png(noise(seed=8)), headers=other), 503, "queue-full", "holds 1 parts of jobs")
        assert checks == []
        assert sorted((settings.data_dir / "store").rglob("*")) == blobs
        assert [name for name in sorted(redis.keys("*")) if "rate" not in name] == [
            name for name in known if "rate" not in name
        ]
        again = post(client, headers={**key, "Idempotency-Key": "mine"})
        assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])


def test_a_job_that_never_fits_is_refused_for_good(settings: Settings, redis: Redis) -> None:
    """Without Retry-After, and with what would fit; while others only have to wait."""
    small = bearer(ApiKeys(redis).add("ada", max_open=2))
    large = bearer(ApiKeys(redis).add("bob"))
    with serving(settings.model_copy(update={"max_queued": 3})) as client:
        cases = [(11, small, 429, "quota-exceeded", "2 parts are 32"), (17, large, 503, "queue-full", "3 parts are 48")]
        for kernels, key, status, slug, fits in cases:
            answer = post(client, headers=key, alpha="0,1,2", kernels=",".join(map(str, range(kernels))))
            refused(answer, status, slug, "waiting does not help", f"{fits} items")
            assert "retry-after" not in answer.headers
            assert "retry_after" not in answer.json()
        assert post(client, headers=small, alpha="0,1", kernels=",".join(map(str, range(16)))).status_code == 202
        answer = post(client, headers=small, kernels="1")
        refused(answer, 429, "quota-exceeded", "wait for your jobs")
        assert answer.headers["retry-after"]


def calls(redis: Redis, command: str) -> int:
    """How often Redis has run this command."""
    return int(redis.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0))


def test_a_full_queue_is_counted_not_read(settings: Settings, redis: Redis) -> None:
    """Its length does not matter."""
    with serving(settings.model_copy(update={"max_queued": 2})) as client:
        assert post(client).status_code == 202
        before = calls(redis, "zrange")
        refused(post(client, kernels=",".join(map(str, range(20)))), 503, "queue-full", "holds 1 parts", "of at most 2")
        assert calls(redis, "zrange") == before


def test_a_short_list_reads_few_records(client: Client, redis: Redis) -> None:
    """A page of one job reads one record. Each job is on exactly one page, for all page sizes."""
    ids = [post(client, kernels=str(kernel)).json()["id"] for kernel in range(12)]
    for limit in (1, 5, 7, 12, 100):
        found: list[str] = []
        cursor = ""
        while cursor is not None:
            before = calls(redis, "evalsha")
            page = client.get(f"/jobs?limit={limit}" + (f"&cursor={cursor}" if cursor else "")).json()
            assert calls(redis, "evalsha") - before <= limit + 1
            found += [job["id"] for job in page["jobs"]]
            cursor = page["next_cursor"]
        assert found == ids[::-1]


def test_concurrent_readiness_requests_share_one_check(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a slow store, a hundred requests cause one check, and other routes have their threads."""
    looks: list[float] = []
    over = threading.Event()

    def slow(*_: object) -> str:
        looks.append(time.monotonic())
        over.wait(20)
        return ""

    monkeypatch.setattr(BlobStore, "identity", slow)
    time.sleep(READINESS_SECONDS)
    pool = httpx.Limits(max_connections=200)
    with httpx.Client(base_url=client.base_url, timeout=30, limits=pool) as many, ThreadPoolExecutor(100) as callers:
        answers = [callers.submit(many.get, "/readyz") for _ in range(100)]
        time.sleep(1)
        assert many.get("/models", timeout=5).status_code == 200
        over.set()
        assert {answer.result().status_code for answer in answers} == {200}
    assert len(looks) == 1


def test_the_cached_readiness_expires(client: Client, redis: Redis, worker: WorkerState) -> None:
    """A new worker is listed within seconds."""
    assert [each["id"] for each in client.get("/readyz").json()["workers"]] == ["w1"]
    publish(redis, worker.model_copy(update={"id": "w2"}))
    time.sleep(READINESS_SECONDS + 0.1)
    assert [each["id"] for each in client.get("/readyz").json()["workers"]] == ["w1", "w2"]


def test_readiness_without_a_key_has_no_names(settings: Settings, redis: Redis, worker: WorkerState) -> None:
    """Only the number of workers and whether they are ready, for the page; hosts, devices and networks need a key."""
    key = ApiKeys(redis).add("ada")
    with serving(settings) as client:
        for headers in ({}, bearer("ks_wrong")):
            reported = client.get("/readyz", headers=headers)
            assert reported.json() == {"status": "ready", "workers": [{"ready": True}]}
        assert client.get("/readyz", headers=bearer(key)).json()["workers"][0]["id"] == "w1"
        client.post("/session", headers=bearer(key))
        assert client.get("/readyz").json()["workers"][0]["device"] == "cpu"


def test_the_memory_of_a_json_body_is_released_early(client: Client) -> None:
    """A request that waits for the end of its job has released its reservation."""
    with ThreadPoolExecutor(8) as callers:
        large = png(noise(3000, 1200))
        waiting = [callers.submit(post, client, large, {"Prefer": "wait=8"}) for _ in range(8)]
        time.sleep(4)
        begin = time.monotonic()
        assert post(client, large).status_code == 202
        assert time.monotonic() - begin < 4
        assert {answer.result().status_code for answer in waiting} == {202}
