"""API keys: authentication, isolation of callers, rate limits."""

from __future__ import annotations

import logging
import re
import statistics
import time
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import httpx
import pytest
from httpx import Client
from pydantic import ValidationError
from redis import Redis

from api.app import create_app
from shared.keys import KEYS, ApiKeys
from shared.settings import Settings
from tests.api.conftest import InlineWorker, serving
from tests.api.test_explain import post, post_json, refused
from tests.conftest import noise, png

OPEN = {"/", "/healthz", "/readyz", "/web/{name}", "/docs", "/openapi.json"}


def bearer(key: str) -> dict[str, str]:
    """The header with a key."""
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def keys(redis: Redis) -> dict[str, str]:
    """Two keys."""
    made = ApiKeys(redis)
    return {name: made.add(name) for name in ("ada", "bob")}


@pytest.fixture
def guarded(settings: Settings, keys: dict[str, str]) -> Iterator[Client]:
    """A client without a key, of an API that requires keys."""
    with serving(settings) as client:
        yield client


def test_every_route_but_health_and_the_page_needs_a_key(guarded: Client) -> None:
    """Existing and unknown routes: 401, with instructions."""
    document = create_app(Settings(_env_file=None)).openapi()
    paths = {path: list(methods) for path, methods in document["paths"].items()}
    paths |= {path: ["get"] for path in ("/docs", "/redoc", "/openapi.json", "/nowhere", "/docs/oauth2-redirect")}
    for path, methods in paths.items():
        for method in methods:
            answer = guarded.request(method, re.sub(r"\{\w+\}", "0", path))
            if path in OPEN:
                assert answer.status_code == 200, path
            elif path == "/problems/{slug}":
                refused(answer, 404, "no-such-path")
            else:
                refused(answer, 401, "unauthorized", "Authorization: Bearer")
                assert answer.headers["www-authenticate"] == 'Bearer realm="kernelscope"'
    assert guarded.get("/").status_code == guarded.get("/web/app.js").status_code == 200
    refused(guarded.get("/web/../jobs"), 401, "unauthorized")


def test_a_key_is_accepted_on_every_route(guarded: Client, keys: dict[str, str]) -> None:
    """In any case of the scheme's name; another scheme or a part of the key is refused."""
    assert guarded.get("/jobs", headers=bearer(keys["ada"])).status_code == 200
    assert guarded.get("/jobs", headers={"Authorization": f"bearer {keys['ada']}"}).status_code == 200
    for wrong in (keys["ada"][:-1], keys["ada"] + "x", "ks_", keys["ada"].upper()):
        refused(guarded.get("/jobs", headers=bearer(wrong)), 401, "unauthorized")
    refused(guarded.get("/jobs", headers={"Authorization": f"Basic {keys['ada']}"}), 401, "unauthorized")


def test_a_revoked_key_is_refused_at_once_and_the_server_stays_closed(
    guarded: Client, redis: Redis, keys: dict[str, str]
) -> None:
    """Without a restart, its sessions too. When the last key has been revoked, every request is refused."""
    guarded.post("/session", headers=bearer(keys["ada"])).raise_for_status()
    assert guarded.get("/jobs").status_code == 200
    made = ApiKeys(redis)
    assert [key.name for key in made.revoke("ada")] == ["ada"]
    refused(guarded.get("/jobs"), 401, "unauthorized")
    refused(guarded.get("/jobs", headers=bearer(keys["ada"])), 401, "unauthorized", "revoked")
    bob = next(key for key in made.all() if key.name == "bob")
    assert [key.name for key in made.revoke(bob.id)] == ["bob"]
    time.sleep(1.1)
    refused(guarded.get("/jobs", headers=bearer(keys["bob"])), 401, "unauthorized")


def test_a_second_key_of_a_name_has_the_same_rights(guarded: Client, redis: Redis, keys: dict[str, str]) -> None:
    """Keys can be rotated: jobs belong to the name."""
    job = post(guarded, headers=bearer(keys["ada"])).json()
    second = ApiKeys(redis).add("ada")
    first = next(key for key in ApiKeys(redis).all() if key.name == "ada")
    ApiKeys(redis).revoke(first.id)
    assert guarded.get(job["links"]["self"], headers=bearer(second)).status_code == 200


def test_keys_apply_to_a_running_server(client: Client, redis: Redis) -> None:
    """A server on a loopback address needs no key until the first one is made."""
    assert client.get("/jobs").status_code == 200
    key = ApiKeys(redis).add("ada")
    time.sleep(1.1)
    refused(client.get("/jobs"), 401, "unauthorized")
    assert client.get("/jobs", headers=bearer(key)).status_code == 200


def test_one_key_never_sees_anothers_jobs(guarded: Client, keys: dict[str, str], inline_worker: InlineWorker) -> None:
    """Neither in the list nor by id, nor its files, events or webhook; it can neither cancel nor delete it."""
    ada, bob = bearer(keys["ada"]), bearer(keys["bob"])
    job = post(guarded, headers=ada).json()["links"]
    inline_worker.work()
    assert [each["links"] for each in guarded.get("/jobs", headers=ada).json()["jobs"]] == [job]
    assert guarded.get("/jobs", headers=bob).json()["jobs"] == []
    reads = [job["self"], *(f"{job['self']}/{part}" for part in ("events", "bundle.zip", "webhook"))]
    reads += [f"{job['self']}/artifacts/0/{name}" for name in ("optimized.png", "panel.png")]
    for path in reads:
        assert guarded.get(path, headers=ada).status_code == 200, path
        refused(guarded.get(path, headers=bob), 404, "job-not-found")
    refused(guarded.post(job["cancel"], headers=bob), 404, "job-not-found")
    refused(guarded.delete(job["self"], headers=bob), 404, "job-not-found")
    assert guarded.delete(job["self"], headers=ada).status_code == 204
    refused(guarded.get(job["self"], headers=ada), 410, "job-expired")
    refused(guarded.get(job["self"], headers=bob), 404, "job-not-found")


def test_one_key_never_sees_anothers_images_results_or_idempotency_keys(
    guarded: Client, keys: dict[str, str], inline_worker: InlineWorker
) -> None:
    """A digest refers only to images sent with a key of the same name; each name has its own cached results."""
    ada, bob = bearer(keys["ada"]), bearer(keys["bob"])
    once = {"Idempotency-Key": "one"}
    first = post(guarded, headers={**ada, **once}).json()
    inline_worker.work()
    digest = first["request"]["images"][0]
    assert digest == sha256(png(noise())).hexdigest()

    def by_digest(key: dict[str, str]) -> httpx.Response:
        body: dict[str, Any] = {"images": [{"sha256": digest}], "model": "vgg_mini", "layer": "conv2_2", "kernels": [3]}
        return guarded.post("/explain", json=body, headers=key)

    assert by_digest(ada).status_code == 202
    refused(by_digest(bob), 422, "unknown-image", digest)
    again, others = post(guarded, headers=ada).json(), post(guarded, headers={**bob, **once}).json()
    assert others["id"] != first["id"]
    inline_worker.work()
    results = guarded.get(again["links"]["self"], headers=ada).json()["results"]
    assert [result["reused"] for result in results] == [True, True]
    results = guarded.get(others["links"]["self"], headers=bob).json()["results"]
    assert [result["reused"] for result in results] == [False, False]


def test_the_page_has_a_session(guarded: Client, keys: dict[str, str]) -> None:
    """A cookie that scripts cannot read and other sites cannot use; it can be ended."""
    refused(guarded.post("/session"), 401, "unauthorized")
    answer = guarded.post("/session", headers=bearer(keys["ada"]))
    assert answer.status_code == 204
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert keys["ada"].lower() not in cookie
    job = post(guarded).json()
    assert guarded.get("/jobs").json()["jobs"][0]["id"] == job["id"]
    name = f"kernelscope-{guarded.base_url.port}"
    token = guarded.cookies[name]
    assert guarded.delete("/session").status_code == 204
    refused(guarded.get("/jobs", headers={"Cookie": f"{name}={token}"}), 401, "unauthorized")


def test_a_key_has_a_rate_limit(guarded: Client, redis: Redis) -> None:
    """429 with the time to wait; every response has the remaining requests. Other keys are not affected."""
    slow, other = ApiKeys(redis).add("slow", rate="5/minute"), ApiKeys(redis).add("other")
    left = []
    for _ in range(5):
        answer = guarded.get("/models/vgg16", headers=bearer(slow))
        assert answer.status_code == 200
        assert answer.headers["ratelimit-policy"] == '"key";q=5;w=60'
        found = re.fullmatch(r'"key";r=(\d+);t=(\d+)', answer.headers["ratelimit"])
        assert found
        left.append(int(found[1]))
    assert left == [4, 3, 2, 1, 0]
    answer = guarded.get("/models/vgg16", headers=bearer(slow))
    refused(answer, 429, "rate-limited", "5 per 1 minute")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert answer.headers["ratelimit"].startswith('"key";r=0;t=')
    assert guarded.get("/models/vgg16", headers=bearer(other)).status_code == 200


def test_a_key_has_a_quota_of_unfinished_work(guarded: Client, redis: Redis, inline_worker: InlineWorker) -> None:
    """429 with an estimate, until work has ended."""
    key = bearer(ApiKeys(redis).add("small", max_open=2))
    jobs = [post(guarded, headers=key).json() for _ in range(2)]
    answer = post(guarded, headers=key)
    refused(answer, 429, "quota-exceeded", "2 unfinished")
    assert answer.headers["retry-after"] == "60"
    guarded.post(jobs[0]["links"]["cancel"], headers=key).raise_for_status()
    assert post(guarded, headers=key).status_code == 202
    inline_worker.work()
    assert post(guarded, headers=key).status_code == 202


def test_the_queue_is_bounded(settings: Settings, redis: Redis, inline_worker: InlineWorker) -> None:
    """503 with an estimate from the recent throughput."""
    with serving(settings.model_copy(update={"max_queued": 3})) as client:
        assert [post(client).status_code for _ in range(4)] == [202, 202, 202, 503]
        answer = post(client)
        refused(answer, 503, "queue-full", "3 parts of jobs", "60 s")
        inline_worker.work()
        assert [post(client).status_code for _ in range(4)] == [202, 202, 202, 503]
        answer = post(client, kernels=",".join(map(str, range(17))))
        assert 60 <= int(answer.headers["retry-after"]) <= 210  # two slices, where three were done within five minutes


def test_the_time_of_a_refusal_does_not_depend_on_how_much_of_a_key_is_right(
    guarded: Client, redis: Redis, keys: dict[str, str]
) -> None:
    """SHA-256 digests are compared, so a correct prefix has no effect: the medians are equal within noise."""
    assert set(redis.hkeys(KEYS)) == {sha256(key.encode()).hexdigest() for key in keys.values()}
    right = keys["ada"]
    wrong = {"nothing": "ks_" + "!" * (len(right) - 3), "nearly all": right[:-1] + ("A" if right[-1] != "A" else "B")}
    times: dict[str, list[float]] = {name: [] for name in wrong}
    for _ in range(150):
        for name, key in wrong.items():
            begin = time.perf_counter()
            assert guarded.get("/models", headers=bearer(key)).status_code == 401
            times[name].append(time.perf_counter() - begin)
    few, much = (statistics.median(times[name]) for name in wrong)
    assert 0.5 < few / much < 2


def test_a_key_never_appears_in_a_log(
    guarded: Client, keys: dict[str, str], caplog: pytest.LogCaptureFixture, inline_worker: InlineWorker
) -> None:
    """Nor does an image: valid and invalid keys, sessions, bad requests."""
    with caplog.at_level(logging.DEBUG):
        post(guarded, headers=bearer(keys["ada"]))
        post_json(guarded, layer="none")
        guarded.get(f"/jobs/{keys['ada']}", headers=bearer(keys["ada"]))
        guarded.get(f"/nowhere?key={keys['ada']}", headers=bearer(keys["ada"] + "x"))
        guarded.post("/session", headers=bearer(keys["ada"])).raise_for_status()
        inline_worker.work()
    ours = "\n".join(
        record.getMessage() for record in caplog.records if record.name.startswith(("api", "shared", "worker"))
    )
    assert "POST /explain: 202" in ours
    assert keys["ada"] not in ours
    assert keys["ada"][3:20] not in ours
    assert guarded.cookies[f"kernelscope-{guarded.base_url.port}"] not in ours
    assert max(map(len, ours.splitlines())) < 300


@pytest.mark.parametrize(
    "wrong", [{"rate_limit": "many"}, {"rate_limit": "0/second"}, {"metrics_bind": "9100"}, {"access": "maybe"}]
)
def test_invalid_settings_are_refused(wrong: dict[str, str]) -> None:
    """At the start, with the setting's name."""
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Settings(_env_file=None, **wrong)  # type: ignore[arg-type]


def test_a_session_cannot_prolong_itself(guarded: Client, keys: dict[str, str]) -> None:
    """Only the key itself can begin one."""
    guarded.post("/session", headers=bearer(keys["ada"])).raise_for_status()
    assert guarded.get("/jobs").status_code == 200
    refused(guarded.post("/session"), 401, "unauthorized", "the API key itself")


def test_a_refused_request_stores_no_image(settings: Settings, redis: Redis) -> None:
    """Only the image of the accepted request can be referred to."""
    with serving(settings.model_copy(update={"max_queued": 1})) as client:
        assert post(client).status_code == 202
        refused(post(client, png(noise(seed=5))), 503, "queue-full")
    (end,) = [end - time.time() for _, end in redis.zrange("ks:expiry", 0, -1, withscores=True)]
    assert end > 29 * 86400


def test_invalid_ids_and_invalid_text(client: Client) -> None:
    """An id never becomes another Redis key; half of a surrogate pair is 400."""
    job = post(client).json()["id"]
    for part in ("results", "events", "blobs", "webhook"):
        refused(client.get(f"/jobs/{job}:{part}"), 404, "job-not-found")
        refused(client.delete(f"/jobs/{job}:{part}"), 404, "job-not-found")
    body = b'{"images": [{"sha256": "\\ud800"}], "layer": "conv1_1", "kernels": [1]}'
    refused(client.post("/explain", content=body, headers={"Content-Type": "application/json"}), 400, "malformed-body")
