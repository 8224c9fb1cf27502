"""Logs and traces."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys

import pytest
from httpx import Client
from pydantic import ValidationError
from redis import Redis

from shared import logs
from shared.settings import Settings
from tests.api.conftest import InlineWorker
from tests.api.test_explain import post
from tests.api.test_operation import ROOT


def test_log_lines_have_the_ids_of_their_request_and_job(
    client: Client, inline_worker: InlineWorker, caplog: pytest.LogCaptureFixture
) -> None:
    """One line per event: the API's has the request's id, the worker's the job's."""
    with caplog.at_level(logging.DEBUG):
        handler = caplog.handler
        handler.addFilter(logs._bind)
        job = post(client, headers={"X-Request-ID": "mine"}).json()
        inline_worker.work()
        handler.removeFilter(logs._bind)
    lines = {record.getMessage().split(":")[0]: vars(record) for record in caplog.records}
    assert lines["POST /explain"]["fields"] == {"request_id": "mine", "client": "127.0.0.1"}
    assert lines[f"{job['id']}"]["fields"] == {"job_id": job["id"], "slice": "0"}


def test_a_client_s_trace_is_in_the_log_lines_of_its_job(
    client: Client, inline_worker: InlineWorker, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Even if this server sends no traces; an invalid `traceparent` is ignored."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    given = f"00-{trace}-00f067aa0ba902b7-01"
    with caplog.at_level(logging.DEBUG):
        handler = caplog.handler
        handler.addFilter(logs._bind)
        job_id = post(client, headers={"traceparent": given}).json()["id"]
        inline_worker.work()
        handler.removeFilter(logs._bind)
    lines = {record.getMessage().split(":")[0]: vars(record)["fields"] for record in caplog.records}
    assert lines["POST /explain"]["trace_id"] == lines[job_id]["trace_id"] == trace
    assert redis.hget(f"ks:job:{job_id}", "traceparent") == given
    for wrong in ("", "x", given.replace(trace, "0" * 32), given.replace("00f067aa0ba902b7", "0" * 16), given + "-x"):
        job_id = post(client, headers={"traceparent": wrong}).json()["id"]
        assert redis.hget(f"ks:job:{job_id}", "traceparent") is None


def test_without_a_receiver_nothing_is_traced() -> None:
    """And the exporter is not imported, so it costs nothing."""
    program = (
        "import sys, api.housekeeping, worker.app\n"
        "from api.app import create_app\n"
        "app = create_app()\n"
        "print(app._native_telemetry.enabled(), any(name.startswith('opentelemetry.exporter') for name in sys.modules))"
    )
    environment = {**os.environ, "KERNELSCOPE_OTLP_ENDPOINT": "", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert ran.stdout.split() == ["False", "False"]


def test_a_receiver_s_address_is_checked() -> None:
    """The error has an example."""
    with pytest.raises(ValidationError, match="http://host:4318"):
        Settings(_env_file=None, otlp_endpoint="collector:4318")


def test_log_lines_as_json_and_as_text() -> None:
    """As JSON, one object per line, with its bound fields and traceback."""
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
