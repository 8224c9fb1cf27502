"""Other routes, and the framework's errors."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from base64 import b64encode
from pathlib import Path

import httpx
import pytest
from httpx import Client
from pydantic import SecretStr
from redis import Redis
from typer.testing import CliRunner

from api.services import READINESS_SECONDS, REDIS_TIMEOUT
from kernelscope.cli import app
from kernelscope.stack import free_port
from shared.catalogue import networks
from shared.errors import error_types
from shared.keys import ApiKeys, webhook_secrets
from shared.schemas import Preprocessing
from shared.settings import Settings
from shared.workers import NetworkState, WorkerState, publish, register, retire
from tests.api.conftest import serving
from tests.api.test_explain import MINI, post, refused
from tests.conftest import noise, png

ROOT = Path(__file__).parents[2]


def test_an_unknown_job(client: Client) -> None:
    """404, with the id."""
    refused(client.get("/jobs/nothing"), 404, "job-not-found", "nothing")
    refused(client.get("/jobs/nothing/artifacts/0/panel.png"), 404, "job-not-found", "nothing")


def test_artifacts_that_do_not_exist(client: Client) -> None:
    """An unknown name, an item without a result, an invalid number."""
    job = post(client).json()["id"]
    refused(client.get(f"/jobs/{job}/artifacts/0/cat.gif"), 404, "artifact-not-found", "optimized.png", "panel.png")
    refused(client.get(f"/jobs/{job}/artifacts/0/panel.png"), 404, "artifact-not-found", "no result 0 yet")
    refused(client.get(f"/jobs/{job}/artifacts/first/panel.png"), 422, "invalid-request", "item", "first")


def test_unknown_paths_and_methods_are_problems_too(client: Client) -> None:
    """The framework's own errors have the same form."""
    refused(client.get("/nowhere"), 404, "no-such-path", "/nowhere", "/docs")
    answer = client.delete("/explain")
    refused(answer, 405, "method-not-allowed", "DELETE", "POST")
    assert answer.headers["allow"] == "OPTIONS, POST"


def test_every_problem_type_has_a_page(client: Client) -> None:
    """The `type` of an error is a URL of this server."""
    for slug, kind in error_types().items():
        answer = client.get(f"/problems/{slug}")
        assert answer.status_code == 200
        assert kind.title in answer.text
        assert str(kind.status) in answer.text
    refused(client.get("/problems/none"), 404, "no-such-path", "silent-kernel")


def test_models_without_a_worker(client: Client) -> None:
    """The networks are known, but not whether they can run."""
    models = {model["name"]: model for model in client.get("/models").json()}
    assert set(models) >= {"vgg16", "vgg19_bn", "alexnet", "squeezenet1_1", "vgg_mini"}
    assert models["vgg16"]["available"] is None
    assert "no worker" in models["vgg16"]["reason"]
    last = models["vgg16"]["layers"][-1]
    assert last == {
        "name": "conv5_3",
        "node": "features.29",
        "kernels": 512,
        "height": 14,
        "width": 14,
        "receptive_field": 196,
        "stride": 16,
        "middle": 8.0,
        "signed": False,
        "block": "block 5",
        "without": {},
        "available": None,
    }


def test_models_with_a_worker(client: Client, worker: WorkerState) -> None:
    """Availability of each layer, with the weights file and the reason."""
    vgg16 = client.get("/models/vgg16").json()
    assert vgg16["available"] is True
    assert vgg16["weights"] == "vgg16-part.safetensors"
    assert [layer["available"] for layer in vgg16["layers"]] == [True] * 4 + [False] * 9
    alexnet = client.get("/models/alexnet").json()
    assert alexnet["available"] is False
    assert alexnet["reason"] == "no weights for alexnet"
    refused(client.get("/models/resnet"), 404, "model-not-found", "resnet", "vgg16")


def test_a_registered_network(client: Client, worker: WorkerState, redis: Redis) -> None:
    """As workers have reported it. If none has it any more, it is listed, but jobs are refused."""
    birds = networks()["vgg_mini"].model_copy(update={"name": "birds", "title": "Birds", "architecture": "vgg_mini"})
    body = {
        "images": [{"data": b64encode(png(noise())).decode()}],
        "model": "birds",
        "layer": "conv1_1",
        "kernels": [1],
    }
    refused(client.post("/explain", json=body), 422, "unknown-model", "birds", "vgg16")
    register(redis, [birds])
    fed = Preprocessing(mean=(1, 2, 3), std=(4, 5, 6), range="0-255", order="bgr")
    layers = [layer.name for layer in birds.layers]
    worker.networks["birds"] = NetworkState(available=True, reason="folder", layers=layers, preprocessing=fed)
    publish(redis, worker)
    shown = client.get("/models/birds").json()
    assert (shown["title"], shown["architecture"], shown["available"]) == ("Birds", "vgg_mini", True)
    assert Preprocessing.model_validate(shown["preprocessing"]) == fed
    assert client.get("/models").json()[-1] == shown | {"nodes": []}
    job = client.post("/explain", json=body).json()
    assert (job["request"]["model"], job["request"]["layer"]) == ("birds", "conv1_1")
    del worker.networks["birds"]
    publish(redis, worker)
    refused(client.post("/explain", json=body), 422, "model-unavailable", "no connected worker has it")
    assert client.get("/models/birds").json()["available"] is False
    retire(redis, worker.id)
    assert client.get("/models/birds").json()["available"] is None
    assert client.post("/explain", json=body).status_code == 202


def test_models_list_refused_weights_files(client: Client, worker: WorkerState, redis: Redis) -> None:
    """As the worker reports them; `kernelscope models` lists them too."""
    line = "vgg16_finetuned.pth: no network has this name; name it vgg16-finetuned.pth to use it as vgg16"
    worker.networks["vgg16"].refused.append(line)
    publish(redis, worker)
    models = {model["name"]: model["weights_refused"] for model in client.get("/models").json()}
    assert models["vgg16"] == [line]
    assert models["alexnet"] == []
    listed = CliRunner().invoke(app, ["models", "--url", str(client.base_url)]).stdout
    assert listed.splitlines()[-1] == f"not used: {line}"


def test_health_and_readiness(client: Client, worker: WorkerState) -> None:
    """Liveness of the process; readiness of Redis and the store, with the workers."""
    assert client.get("/healthz").json() == {"status": "alive"}
    ready = client.get("/readyz").json()
    assert ready["status"] == "ready"
    shown = {"id": "w1", "device": "cpu", "ready": True, "networks": ["vgg16", "vgg_mini"], "version": worker.version}
    assert ready["workers"] == [shown]


def test_without_redis_responses_are_503_within_a_second(settings: Settings) -> None:
    """Readiness, polling and submitting, with `Retry-After`; the process stays alive."""
    url = SecretStr(f"redis://127.0.0.1:{free_port()}/0")
    with serving(settings.model_copy(update={"redis_url": url})) as client:
        assert client.get("/healthz").status_code == 200
        asks = [("GET", "/readyz"), ("GET", f"/jobs/{'0' * 32}"), ("POST", "/explain")]
        for method, path in asks:
            begin = time.monotonic()
            answer = post(client) if method == "POST" else client.get(path)
            assert time.monotonic() - begin < 1.0
            refused(answer, 503, "store-unavailable", "Redis")
            assert answer.headers["retry-after"] == "2"


def test_with_a_redis_that_does_not_respond_it_is_503_too(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that accepts connections and sends nothing: 503 within seconds."""
    monkeypatch.setattr("api.services.REDIS_TIMEOUT", REDIS_TIMEOUT)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = SecretStr(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        with serving(settings.model_copy(update={"redis_url": url})) as client:
            begin = time.monotonic()
            refused(client.get("/readyz"), 503, "store-unavailable")
            assert time.monotonic() - begin < 5


def test_the_store_is_part_of_readiness(settings: Settings, redis: Redis, tmp_path: Path) -> None:
    """503 if it cannot be read."""
    with serving(settings) as client:
        assert client.get("/readyz").status_code == 200
        blobs = tmp_path / "store" / "blobs"
        shutil.rmtree(blobs)
        blobs.write_text("a file where the folder should be")
        time.sleep(READINESS_SECONDS)
        refused(client.get("/readyz"), 503, "store-unavailable", "object store")


def test_the_page_and_its_files(client: Client) -> None:
    """Served by the API, with a strict content security policy; no other files are served."""
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'; script-src 'self'" in page.headers["content-security-policy"]
    for name in ("app.js", "style.css"):
        assert f"web/{name}" in page.text
        assert client.get(f"/web/{name}").status_code == 200
        etag = client.get(f"/web/{name}").headers["etag"]
        assert client.get(f"/web/{name}", headers={"If-None-Match": etag}).status_code == 304
    refused(client.get("/web/..%2fapp.py"), 404, "no-such-path")
    refused(client.get("/web/none.js"), 404, "no-such-path", "none.js")


def test_the_page_is_light(client: Client) -> None:
    """300 kB with everything that the start page may load: scripts, styles, the plotting library, the samples."""
    served, new = {"/": client.get("/")}, {"/"}
    while new:
        text = "".join(served[path].text for path in new)
        named = re.findall(r'"(?:\./|web/)?([\w.]+\.(?:js|css|png|jpg|svg))"', text)
        answers = {f"/web/{name}": client.get(f"/web/{name}") for name in named}
        new = {path for path, answer in answers.items() if path not in served and answer.status_code == 200}
        served |= {path: answers[path] for path in new}
    assert {"/web/app.js", "/web/uPlot.min.js", "/web/astronaut.jpg", "/web/shapes.png"} <= set(served)
    assert sum(len(found.content) for found in served.values()) <= 300_000


def test_the_openapi_document_describes_both_bodies(client: Client) -> None:
    """`/docs` and generated clients see JSON and multipart."""
    document = client.get("/openapi.json").json()
    content = document["paths"]["/explain"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "multipart/form-data"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_api_process_stays_small(settings: Settings, redis: Redis) -> None:
    """Under 150 MB when idle, before and after drawing a figure; without torch."""
    port = free_port()
    environment = {
        **os.environ,
        "KERNELSCOPE_REDIS_URL": settings.redis_url.get_secret_value(),
        "KERNELSCOPE_DATA_DIR": str(settings.data_dir),
        "KERNELSCOPE_PORT": str(port),
    }
    command = [sys.executable, "-m", "api"]
    with subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(100):
                try:
                    httpx.get(f"{url}/healthz")
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            httpx.post(f"{url}/explain", files={"image": png(noise())}, data=MINI).raise_for_status()
            status = Path(f"/proc/{process.pid}/status").read_text()
            resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
            libraries = Path(f"/proc/{process.pid}/maps").read_text()
            assert resident < 150_000, f"{resident} kB"
            assert "libtorch" not in libraries
        finally:
            process.terminate()


def test_llms_txt_is_correct(client: Client) -> None:
    """Every route in `/llms.txt` exists, and the file needs no key."""
    text = client.get("/llms.txt", headers={"Authorization": "Bearer nothing"}).raise_for_status().text
    paths = client.get("/openapi.json").json()["paths"]
    known = {
        f"{method.upper()} {re.sub(r'{.*?}', '{}', path)}" for path, methods in paths.items() for method in methods
    }
    named = {re.sub(r"{.*?}", "{}", one) for one in re.findall(r"`((?:GET|POST|DELETE) /[^`?]*)", text)}
    assert len(named) > 10
    assert named <= known, named - known


def test_callers_read_their_own_secret(settings: Settings, client: Client, redis: Redis) -> None:
    """With their key, or without one if there are none."""
    answer = client.get("/webhook-secret")
    assert answer.json() == {"secret": webhook_secrets(redis, "").secret, "previous": []}
    assert answer.headers["cache-control"] == "no-store"
    key = ApiKeys(redis).add("ada")
    with serving(settings) as guarded:
        refused(guarded.get("/webhook-secret"), 401, "unauthorized")
        shown = guarded.get("/webhook-secret", headers={"Authorization": f"Bearer {key}"}).json()
    assert shown["secret"] == webhook_secrets(redis, "ada").secret
