"""HEAD, OPTIONS and query parameters on every route."""

from __future__ import annotations

import time
from io import BytesIO

import pytest
from httpx import Client

from tests.api.conftest import InlineWorker
from tests.api.test_explain import post, refused
from tests.conftest import noise, png

PAGES = ("/", "/web/app.js", "/healthz", "/readyz", "/models", "/models/vgg16", "/jobs", "/problems/silent-kernel")


@pytest.mark.parametrize("path", [*PAGES, "/docs", "/openapi.json"])
def test_head_is_get_without_the_body(client: Client, path: str) -> None:
    """Status, type, length and ETag are those of GET. Monitors and download tools use it."""
    got, asked = client.get(path), client.head(path)
    assert asked.status_code == 200
    assert asked.content == b""
    for name in ("content-type", "content-length", "etag"):
        assert asked.headers.get(name) == got.headers.get(name)


def test_head_of_a_job_and_its_files(client: Client, inline_worker: InlineWorker) -> None:
    """An artifact has its length and ETag; an unknown one is 404 without a body."""
    job = post(client).json()["id"]
    inline_worker.work()
    for path in (f"/jobs/{job}", f"/jobs/{job}/artifacts/0/optimized.png"):
        got, asked = client.get(path), client.head(path)
        assert (asked.status_code, asked.content) == (200, b"")
        assert asked.headers["content-length"] == str(len(got.content))
        assert asked.headers.get("etag") == got.headers.get("etag")
    missing = client.head(f"/jobs/{'0' * 32}")
    assert (missing.status_code, missing.content) == (404, b"")
    assert missing.headers["content-type"] == "application/problem+json"


def test_head_starts_no_stream(client: Client) -> None:
    """The events of a queued job would never end; no archive is made."""
    job = post(client).json()["id"]
    for path, media_type in (("events", "text/event-stream"), ("bundle.zip", "application/zip")):
        begin = time.monotonic()
        asked = client.head(f"/jobs/{job}/{path}")
        assert time.monotonic() - begin < 5
        assert asked.status_code == 200
        assert asked.headers["content-type"].startswith(media_type)
    assert client.get("/healthz").status_code == 200  # on the same connection


def test_options_lists_the_methods_of_a_path(client: Client) -> None:
    """Like 405, with HEAD wherever there is GET."""
    for path, methods in (
        ("/explain", "OPTIONS, POST"),
        ("/jobs", "GET, HEAD, OPTIONS"),
        (f"/jobs/{'0' * 32}", "DELETE, GET, HEAD, OPTIONS"),
        ("/session", "DELETE, OPTIONS, POST"),
        ("/", "GET, HEAD, OPTIONS"),
    ):
        answer = client.options(path)
        assert (answer.status_code, answer.content) == (204, b"")
        assert answer.headers["allow"] == methods
        assert client.patch(path).headers["allow"] == methods
    refused(client.options("/nowhere"), 404, "no-such-path", "/nowhere")
    assert client.head("/explain").status_code == 405
    assert client.head("/explain").headers["allow"] == "OPTIONS, POST"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/jobs?state=failed", ["state: no such query parameter", "status, model, layer, limit, cursor"]),
        ("/jobs?Status=failed", ["Status: no such query parameter"]),
        ("/jobs?status=failed&status=queued", ["status: given 2 times"]),
        ("/models?name=vgg16", ["name: no such query parameter", "has none"]),
        ("/healthz?verbose", ["verbose"]),
        (f"/jobs/{'0' * 32}/events?preview=true", ["preview: no such", "previews"]),
        (f"/jobs?{'x' * 5000}=1", ["xxx…: no such query parameter"]),
        ("/jobs?limit=1_0", ["limit"]),
        ("/jobs?limit=٣", ["limit"]),
    ],
)
def test_unknown_query_parameters_are_refused(client: Client, path: str, said: list[str]) -> None:
    """By name, with the known ones, like unknown fields of a body."""
    answer = client.get(path)
    problem = refused(answer, 422, "invalid-request", *said)
    assert len(problem["detail"]) < 300


def test_routes_with_a_body_refuse_them_too(client: Client) -> None:
    """Before the body is read."""
    answer = client.post("/explain?layer=conv2_2", files={"image": BytesIO(png(noise()))})
    refused(answer, 422, "invalid-request", "layer: no such query parameter")


def test_the_page_accepts_any(client: Client) -> None:
    """Other sites add parameters to links."""
    assert client.get("/?utm_source=mail").status_code == 200
    assert client.get("/web/app.js?v=2").status_code == 200
