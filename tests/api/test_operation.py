"""What operators see: metrics, logs, request ids, security headers, CORS."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from httpx import Client
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from kernelscope.stack import free_port
from shared import logs
from shared.keys import ApiKeys
from shared.settings import Settings
from shared.workers import WorkerState
from tests.api.conftest import Hands, serving
from tests.api.test_access import bearer
from tests.api.test_explain import post, refused

ROOT = Path(__file__).parents[2]


def metrics(text: str) -> dict[str, float]:
    """Each sample by its name and labels."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {f"{each.name}{json.dumps(each.labels, sort_keys=True)}": each.value for each in samples}


def test_the_metrics_tell_of_requests_and_of_the_queue(client: Client, hands: Hands, worker: WorkerState) -> None:
    """In Prometheus's format; routes are templates, so that callers cannot make labels."""
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
    hands.work()
    found = metrics(client.get("/metrics").text)
    assert found['kernelscope_jobs_ended_total{"status": "succeeded"}'] == 4
    assert found["kernelscope_running_slices{}"] == 0


def test_the_metrics_say_that_redis_is_away(settings: Settings) -> None:
    """And still tell of the requests."""
    url = f"redis://127.0.0.1:{free_port()}/0"
    changed = Settings(_env_file=None, redis_url=url, data_dir=settings.data_dir)
    with serving(changed.model_copy(update={"access": "open"})) as client:
        found = metrics(client.get("/metrics").text)
        assert found["kernelscope_redis_up{}"] == 0


def test_metrics_on_an_address_of_their_own(settings: Settings, redis: Redis) -> None:
    """Without a key, and no longer among the routes."""
    ApiKeys(redis).add("ada")
    port = free_port()
    with serving(settings.model_copy(update={"metrics_bind": f"127.0.0.1:{port}"})) as client:
        assert "kernelscope_redis_up" in httpx.get(f"http://127.0.0.1:{port}/metrics").text
        key = ApiKeys(redis).add("bob")
        refused(client.get("/metrics", headers=bearer(key)), 404, "no-such-path", "KERNELSCOPE_METRICS_BIND")


def test_a_worker_has_metrics_too(client: Client, hands: Hands) -> None:
    """Items by how they ended, and what they took."""
    post(client, kernels="3,9")
    post(client, kernels="3")
    hands.work()
    from prometheus_client import generate_latest

    found = metrics(generate_latest(hands.runner.telemetry.registry).decode())
    where = '"layer": "conv2_2", "model": "vgg_mini"'
    assert found[f'kernelscope_items_total{{{where}, "reused": "false", "status": "succeeded"}}'] == 1
    assert found[f'kernelscope_items_total{{{where}, "reused": "false", "status": "failed"}}'] == 1
    assert found[f'kernelscope_items_total{{{where}, "reused": "true", "status": "succeeded"}}'] == 1
    assert found[f"kernelscope_solver_seconds_count{{{where}}}"] == 1
    assert found['kernelscope_solver_stops_total{"stopped": "budget"}'] == 1


def test_the_documented_metrics_are_those_that_there_are(client: Client, hands: Hands) -> None:
    """docs/metrics.md and the alerts name none that does not exist, and leave none out."""
    from prometheus_client import generate_latest

    texts = client.get("/metrics").text + generate_latest(hands.runner.telemetry.registry).decode()
    names = set(re.findall(r"^# TYPE (kernelscope_\w+)", texts, re.MULTILINE))
    names = {name for name in names if not name.endswith("_created")}
    names |= set(re.findall(r'"(kernelscope_\w+)"', (ROOT / "worker" / "process.py").read_text()))
    documented = set(re.findall(r"`(kernelscope_\w+)`", (ROOT / "docs" / "metrics.md").read_text()))
    assert documented == names
    alerts = set(re.findall(r"kernelscope_[a-z_]+", (ROOT / "docs" / "alerts.yml").read_text()))
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in alerts} <= names


def test_every_answer_has_a_request_id_and_headers_that_browsers_heed(client: Client) -> None:
    """The caller's id where it is a decent one; else one of ours."""
    answer = client.get("/models", headers={"X-Request-ID": "lab-42.a_b"})
    assert answer.headers["x-request-id"] == "lab-42.a_b"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    policy = client.get("/docs").headers["content-security-policy"]
    (program,) = re.findall(r'<script src="(https://[^/]+)/', client.get("/docs").text)
    assert program in policy.partition("script-src")[2].partition(";")[0]
    for indecent in ("", "a b", "x" * 65, "<script>"):
        given = client.get("/nowhere", headers={"X-Request-ID": indecent}).headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", given)


def test_other_sites_may_call_where_they_are_allowed(settings: Settings, redis: Redis, client: Client) -> None:
    """By the setting, preflight included, with a key needed or not; nobody otherwise."""
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


def test_a_request_and_a_job_are_bound_to_their_log_lines(
    client: Client, hands: Hands, caplog: pytest.LogCaptureFixture
) -> None:
    """One line an event; the API's carries the request's id, the worker's the job's."""
    with caplog.at_level(logging.DEBUG):
        handler = caplog.handler
        handler.addFilter(logs._bind)
        job = post(client, headers={"X-Request-ID": "mine"}).json()
        hands.work()
        handler.removeFilter(logs._bind)
    lines = {record.getMessage().split(":")[0]: vars(record) for record in caplog.records}
    assert lines["POST /explain"]["fields"] == {"request_id": "mine"}
    assert lines[f"{job['id']}"]["fields"] == {"job_id": job["id"], "slice": "0"}


def test_log_lines_as_json_and_as_text() -> None:
    """One object a line with what is bound; the traceback is inside it."""
    program = (
        "import logging\nfrom shared import logs\nlogs.configure('INFO', {form!r})\n"
        "with logs.bound(job_id='j', request_id='r'):\n"
        "    logging.getLogger('api.x').warning('it is %s', 'late')\n"
        "    try: 1 / 0\n"
        "    except ZeroDivisionError: logging.getLogger('api.x').exception('bad')\n"
    )

    def run(form: str) -> str:
        command = [sys.executable, "-c", program.format(form=form)]
        return subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=True).stderr

    first, second = map(json.loads, io.StringIO(run("json")))
    assert {"level": "WARNING", "logger": "api.x", "event": "it is late", "job_id": "j"}.items() <= first.items()
    assert "ZeroDivisionError" in second["exc_info"]
    assert "fields" not in first
    assert re.match(r"\d{4}-\S+ \S+ WARNING api.x: it is late job_id=j request_id=r\n", run("text"))
