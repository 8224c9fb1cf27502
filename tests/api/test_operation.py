"""Operation: metrics, logs, request ids, security headers, CORS, readiness."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path

import httpx
from httpx import Client
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from redis import Redis

from api.housekeeping import Loop, Scheduler, loops
from api.jobs.deliveries import WebhookSender
from api.services import READINESS_SECONDS, Services
from kernelscope.stack import free_port
from shared import workers
from shared.housekeeping import SUCCESS
from shared.jobs import connect
from shared.keys import ApiKeys
from shared.settings import Settings
from shared.store import BlobStore
from shared.version import REVISION, VERSION
from shared.workers import WorkerState
from tests.api.conftest import InlineWorker, serving
from tests.api.test_access import bearer
from tests.api.test_explain import post, refused
from tests.conftest import noise, own_redis, png, refusing

ROOT = Path(__file__).parents[2]


def metrics(text: str) -> dict[str, float]:
    """The samples by name and labels."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {f"{each.name}{json.dumps(each.labels, sort_keys=True)}": each.value for each in samples}


def test_metrics_of_requests_and_of_the_queue(client: Client, inline_worker: InlineWorker, worker: WorkerState) -> None:
    """In Prometheus's format; routes are path templates, so that clients cannot create labels."""
    for _ in range(3):
        post(client)
    post(client, kernels=",".join(map(str, range(20))))
    client.get("/jobs/nothing")
    client.get("/nowhere/at/all")
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found = metrics(answer.text)
    route = '{"method": "POST", "route": "/explain", "status": "202"}'
    assert found[f"kernelscope_http_requests_total{route}"] == 4
    assert found['kernelscope_http_requests_total{"method": "GET", "route": "/jobs/{job_id}", "status": "404"}'] == 1
    assert found['kernelscope_http_requests_total{"method": "GET", "route": "(no route)", "status": "404"}'] == 1
    assert found['kernelscope_queued_slices{"queue": "interactive"}'] == 3
    assert found['kernelscope_queued_slices{"queue": "bulk"}'] == 2
    assert 0 <= found['kernelscope_oldest_queued_seconds{"queue": "bulk"}'] < 60
    assert found["kernelscope_redis_up{}"] == 1
    assert found['kernelscope_workers{"ready": "true"}'] == 1
    assert "nowhere" not in answer.text
    inline_worker.work()
    found = metrics(client.get("/metrics").text)
    assert found['kernelscope_jobs_ended_total{"status": "succeeded"}'] == 4
    assert found["kernelscope_running_slices{}"] == 0


def test_the_metrics_report_an_unavailable_redis(settings: Settings) -> None:
    """And still count requests."""
    url = f"redis://127.0.0.1:{free_port()}/0"
    changed = Settings(_env_file=None, redis_url=url, data_dir=settings.data_dir)
    with serving(changed.model_copy(update={"access": "open"})) as client:
        found = metrics(client.get("/metrics").text)
        assert found["kernelscope_redis_up{}"] == 0


def test_a_redis_that_refuses_writes_is_unavailable(client: Client, worker: WorkerState, redis: Redis) -> None:
    """503 for every write, not 500; reads succeed; the API recovers by itself."""
    job = post(client).json()
    with refusing(redis):
        fields = {"model": "vgg_mini", "layer": "conv2_2", "kernels": "5"}
        picture = {"image": ("a.png", png(noise()), "image/png")}
        for answer in (
            client.post("/explain", files=picture, data=fields),
            client.post("/jobs/" + job["id"] + "/cancel"),
            client.delete("/jobs/" + job["id"]),
        ):
            refused(answer, 503, "store-unavailable", "NOREPLICAS")
            assert answer.headers["Retry-After"]
        assert client.get("/jobs/" + job["id"]).json()["status"] == "queued"
    assert client.delete("/jobs/" + job["id"]).status_code == 204


def test_a_redis_that_may_evict_jobs_is_reported(settings: Settings, tmp_path: Path) -> None:
    """Not ready, with the setting to change; only a warning if just expiring keys may be evicted. Also a metric."""
    with (
        own_redis(tmp_path, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru") as url,
        serving(settings.model_copy(update={"redis_url": SecretStr(url)})) as client,
        connect(url) as redis,
    ):
        refused(client.get("/readyz"), 503, "store-unavailable", "noeviction")
        redis.config_set("maxmemory-policy", "volatile-lru")
        kept(redis)
        time.sleep(READINESS_SECONDS)
        (warning,) = client.get("/readyz").json()["warnings"]
        assert "volatile-lru" in warning
        found = metrics(client.get("/metrics").text)
        assert found["kernelscope_redis_evicts{}"] == 1
        assert found["kernelscope_redis_evicted_keys_total{}"] == 0
        assert 0 < found["kernelscope_redis_memory_bytes{}"] < 0.5 * found["kernelscope_redis_memory_limit_bytes{}"]
        redis.config_set("maxmemory-policy", "noeviction")
        time.sleep(READINESS_SECONDS)
        assert client.get("/readyz").json()["warnings"] == []
        assert metrics(client.get("/metrics").text)["kernelscope_redis_evicts{}"] == 0


def test_a_worker_with_another_store_is_reported(
    client: Client, worker: WorkerState, settings: Settings, redis: Redis
) -> None:
    """None of its jobs could succeed (a `file://` store on two machines, say). Also one of an earlier version."""
    here = worker.model_copy(update={"store": BlobStore(settings.store).identity()})
    workers.publish(redis, here)
    kept(redis)
    reported = client.get("/readyz").json()
    assert reported["warnings"] == []
    assert reported["workers"][0]["version"] == "0.1.0 (abc)"
    assert reported["version"].startswith(VERSION)
    workers.publish(redis, here.model_copy(update={"id": "w2", "store": "another"}))
    time.sleep(READINESS_SECONDS)
    (warning,) = client.get("/readyz").json()["warnings"]
    assert "worker w2" in warning
    assert "KERNELSCOPE_STORE_URL" in warning
    workers.publish(redis, here.model_copy(update={"id": "w2", "version": ""}))
    time.sleep(READINESS_SECONDS)
    (warning,) = client.get("/readyz").json()["warnings"]
    assert "worker w2 has an earlier version" in warning


def test_metrics_on_their_own_address(settings: Settings, redis: Redis) -> None:
    """Without a key; the route is then 404."""
    ApiKeys(redis).add("ada")
    port = free_port()
    with serving(settings.model_copy(update={"metrics_bind": f"127.0.0.1:{port}"})) as client:
        assert "kernelscope_redis_up" in httpx.get(f"http://127.0.0.1:{port}/metrics").text
        key = ApiKeys(redis).add("bob")
        refused(client.get("/metrics", headers=bearer(key)), 404, "no-such-path", "KERNELSCOPE_METRICS_BIND")


def test_a_worker_has_metrics(client: Client, inline_worker: InlineWorker) -> None:
    """Items by outcome, and their times."""
    post(client, kernels="3,9")
    post(client, kernels="3")
    inline_worker.work()
    from prometheus_client import generate_latest

    found = metrics(generate_latest(inline_worker.runner.telemetry.registry).decode())
    where = '"layer": "conv2_2", "model": "vgg_mini"'
    assert found[f'kernelscope_items_total{{{where}, "reused": "false", "status": "succeeded"}}'] == 1
    assert found[f'kernelscope_items_total{{{where}, "reused": "false", "status": "failed"}}'] == 1
    assert found[f'kernelscope_items_total{{{where}, "reused": "true", "status": "succeeded"}}'] == 1
    assert found[f"kernelscope_solver_seconds_count{{{where}}}"] == 1
    assert found['kernelscope_solver_stops_total{"stopped": "budget"}'] == 1


def test_the_documented_metrics_are_the_existing_ones(client: Client, inline_worker: InlineWorker) -> None:
    """docs/metrics.md lists all of them; it and the alerts name no others."""
    from prometheus_client import generate_latest

    texts = client.get("/metrics").text + generate_latest(inline_worker.runner.telemetry.registry).decode()
    names = set(re.findall(r"^# TYPE (kernelscope_\w+)", texts, re.MULTILINE))
    names = {name for name in names if not name.endswith("_created")}
    names |= set(re.findall(r'"(kernelscope_\w+)"', (ROOT / "worker" / "process.py").read_text()))
    documented = set(re.findall(r"`(kernelscope_\w+)`", (ROOT / "docs" / "metrics.md").read_text()))
    assert documented == names
    alerts = set(re.findall(r"kernelscope_[a-z_]+", (ROOT / "docs" / "alerts.yml").read_text()))
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in alerts} <= names


def test_every_response_has_a_request_id_and_security_headers(client: Client) -> None:
    """The client's id if it is valid, else a new one."""
    answer = client.get("/models", headers={"X-Request-ID": "lab-42.a_b"})
    assert answer.headers["x-request-id"] == "lab-42.a_b"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "https:" not in client.get("/docs").headers["content-security-policy"] + client.get("/docs").text
    for indecent in ("", "a b", "x" * 65, "<script>"):
        given = client.get("/nowhere", headers={"X-Request-ID": indecent}).headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", given)


def test_other_sites_need_permission(settings: Settings, redis: Redis, client: Client) -> None:
    """By the setting, including preflight requests, with and without keys."""
    origin = {"Origin": "https://lab.example"}
    assert "access-control-allow-origin" not in client.get("/models", headers=origin).headers
    key = ApiKeys(redis).add("ada")
    with serving(settings.model_copy(update={"cors_origins": ("https://lab.example",)})) as open_:
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,prefer"}
        before = open_.options("/explain", headers={**origin, **asked})
        assert before.status_code == 200
        assert before.headers["access-control-allow-origin"] == "https://lab.example"
        answer = open_.get("/models", headers={**origin, **bearer(key)})
        assert answer.headers["access-control-allow-origin"] == "https://lab.example"
        assert "Retry-After" in answer.headers["access-control-expose-headers"]
        assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
        refused(open_.get("/models", headers=origin), 401, "unauthorized")
        other = open_.get("/models", headers={"Origin": "https://elsewhere.example", **bearer(key)})
        assert "access-control-allow-origin" not in other.headers


def test_requests_that_wait_are_counted_but_not_timed(client: Client) -> None:
    """Otherwise an alert on slow responses would fire for `Prefer: wait`."""
    post(client)
    post(client, headers={"Prefer": "wait=1"})
    found = metrics(client.get("/metrics").text)
    assert found['kernelscope_http_requests_total{"method": "POST", "route": "/explain", "status": "202"}'] == 2
    assert found['kernelscope_http_request_seconds_count{"method": "POST", "route": "/explain"}'] == 1


def test_metrics_of_the_process_the_store_and_housekeeping(client: Client, settings: Settings, redis: Redis) -> None:
    """Build, process, threads, store, memory of Redis, housekeeping."""
    found = metrics(client.get("/metrics").text)
    assert found[f'kernelscope_build_info{{"revision": "{REVISION}", "version": "{VERSION}"}}'] == 1
    assert found["process_resident_memory_bytes{}"] > 1e6
    assert found["kernelscope_threads_busy{}"] >= 1
    assert found["kernelscope_threads_waiting{}"] == 0
    assert found["kernelscope_redis_memory_bytes{}"] > 1e5
    assert found["kernelscope_redis_memory_limit_bytes{}"] > 1e6
    assert found["kernelscope_housekeeping_up{}"] == 0
    post(client)
    services = Services.open(settings)
    scheduler = Scheduler(redis, loops(services, WebhookSender(services.webhooks, private=False)))
    scheduler.round()
    (settings.data_dir / "store" / "jobs").rename(settings.data_dir / "elsewhere")
    (settings.data_dir / "store" / "jobs").write_text("in the way")
    assert post(client, png(noise(seed=5))).status_code == 503
    found = metrics(client.get("/metrics").text)
    assert found["kernelscope_housekeeping_up{}"] == 1
    for loop in ("reaper", "announcer", "expiry", "webhooks"):
        assert 0 <= found[f'kernelscope_housekeeping_success_seconds{{"loop": "{loop}"}}'] < 5
        assert found[f'kernelscope_housekeeping_failures_total{{"loop": "{loop}"}}'] == 0
    assert found['kernelscope_store_seconds_count{"operation": "put"}'] == 2
    assert found['kernelscope_store_errors_total{"operation": "put"}'] == 1
    scheduler.stop()
    asyncio.run(services.close())


def test_readiness_warns_if_housekeeping_does_not_run(client: Client, redis: Redis) -> None:
    """With the consequences; jobs are accepted nevertheless."""
    for wanted in ("has never run", None, "has not run for 4"):
        if wanted is None:
            kept(redis)
        elif "for" in wanted:
            redis.hset(SUCCESS, "work", f"{redis.time()[0] - 40} 1")
        time.sleep(READINESS_SECONDS)
        answer = client.get("/readyz")
        assert answer.status_code == 200
        assert [wanted in each for each in answer.json()["warnings"]] == ([True] if wanted else [])


def kept(redis: Redis) -> None:
    """Housekeeping has run."""
    Scheduler(redis, [Loop("work", 1.0, list)]).round()
