"""Redis in states in which it refuses commands: routes return 503 with the reason, and everything recovers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from httpx import Client, Response
from pydantic import SecretStr

from api.services import READINESS_SECONDS
from kernelscope.stack import free_port
from shared.connection import REASONS, connect
from shared.keys import ApiKeys
from shared.settings import Settings
from tests.api.conftest import InlineWorker, serving
from tests.api.test_access import bearer
from tests.api.test_explain import post, refused
from tests.conftest import own_redis
from tests.redis_states import ALL, STATES, Operator, options

pytestmark = pytest.mark.slow

OPEN = ("/healthz", "/readyz", "/metrics", "/problems/{slug}")
IN_THE_STORE = ("/datasets", "/surveys", "/kernels")
STREAMED = "/jobs/{job_id}/bundle.zip"  # it has begun when a command is refused, so it is cut off


@contextmanager
def at(settings: Settings, folder: Path, **changes: object) -> Iterator[tuple[Client, InlineWorker, Operator]]:
    """An API with its own Redis, a worker, and an operator who changes the state of that Redis."""
    folder.mkdir()
    with own_redis(folder, *options()) as url, connect(url) as redis, closing(Operator.of(url)) as operator:
        changed = settings.model_copy(update={"redis_url": SecretStr(url), **changes})
        inline_worker = InlineWorker(changed, redis)
        try:
            with serving(changed) as client:
                yield client, inline_worker, operator
        finally:
            inline_worker.close()


def said(answer: Response, code: str) -> None:
    """Check that a response is 503 with the meaning and `Retry-After`."""
    refused(answer, 503, "store-unavailable", f"({code})", REASONS[code])
    assert int(answer.headers["Retry-After"]) > 0


def reading(client: Client, job_id: str, *without: str) -> dict[str, Response]:
    """The responses of all GET routes but these, and but those that read the store first."""
    paths = client.get("/openapi.json").json()["paths"]
    known = {"job_id": job_id, "item": "0", "name": "vgg_mini", "slug": "job-not-found"}
    return {
        path: client.get(path.format(**{**known, "name": "panel.png"} if "item" in path else known))
        for path, methods in paths.items()
        if "get" in methods and path not in (*OPEN, *without) and not path.startswith(IN_THE_STORE)
    }


@pytest.mark.parametrize("code", STATES)
def test_each_state(settings: Settings, tmp_path: Path, code: str) -> None:
    """Refused commands are 503 with the reason, reads succeed, a stream waits, a job continues."""
    state, refuses = STATES[code]
    with (
        ThreadPoolExecutor(1) as threads,
        at(settings, tmp_path / "redis", access="open") as (client, inline_worker, operator),
    ):
        done = post(client).json()["id"]
        inline_worker.work()
        other = post(client, kernels="7").json()["id"]
        job = post(client).json()["id"]
        follower = threads.submit(lambda: client.get(f"/jobs/{job}/events", timeout=60).text)
        before = reading(client, done)
        assert {answer.status_code for answer in before.values()} <= {200, 404, 422}
        with state(operator):
            said(post(client, kernels="5"), code)
            for answer in (client.post(f"/jobs/{other}/cancel"), client.delete(f"/jobs/{other}")):
                if code != "OOM" or answer.status_code >= 400:  # commands that need no memory may succeed
                    said(answer, code)
            for path, answer in reading(client, done, *([STREAMED] if code == "OOM" else [])).items():
                if refuses == ALL or (code == "OOM" and answer.status_code == 503):  # it refuses transactions too
                    said(answer, code)
                else:
                    assert answer.status_code == before[path].status_code, path
            assert client.get("/healthz").status_code == 200
            assert client.get("/metrics").status_code == 200
            time.sleep(READINESS_SECONDS)
            if code == "OOM":  # deleting frees memory
                assert "no more jobs are accepted" in client.get("/readyz").json()["warnings"][0]
            else:
                said(client.get("/readyz"), "READONLY" if code == "MASTERDOWN" else code)  # it tries to write
        time.sleep(READINESS_SECONDS)
        assert client.get("/readyz").status_code == 200
        inline_worker.work()
        assert client.get(f"/jobs/{job}").json()["status"] == "succeeded"
        assert '"status": "succeeded"' in follower.result(30)
        assert post(client, kernels="5").status_code == 202


@pytest.mark.parametrize("code", STATES)
def test_each_state_with_keys(settings: Settings, tmp_path: Path, code: str) -> None:
    """No request passes without the rate limit: 503 with the reason on every route; later the same key is valid."""
    state, _ = STATES[code]
    with at(settings, tmp_path / "redis", access="keys") as (client, inline_worker, operator):
        key = ApiKeys(inline_worker.transitions.redis).add("lab")
        client.headers.update(bearer(key))
        job = post(client).json()["id"]
        assert client.post("/session").status_code < 300
        with state(operator):
            for answer in [*reading(client, job).values(), post(client), client.post("/session")]:
                said(answer, code)
        inline_worker.work()
        assert client.get(f"/jobs/{job}").json()["status"] == "succeeded"


def test_a_missing_password(settings: Settings, tmp_path: Path) -> None:
    """NOAUTH: the URL has none."""
    with own_redis(tmp_path, password="set") as url:
        bare = settings.model_copy(update={"redis_url": SecretStr(url.replace(":set@", ""))})
        with serving(bare) as client:
            said(post(client), "NOAUTH")
            said(client.get("/jobs"), "NOAUTH")


def test_no_redis(settings: Settings) -> None:
    """The error says so."""
    bare = settings.model_copy(update={"redis_url": SecretStr(f"redis://127.0.0.1:{free_port()}/0")})
    with serving(bare) as client:
        refused(client.get("/jobs"), 503, "store-unavailable", "Redis does not answer")
