"""How the server is reached: proxies, host names, the path under which it is served. Real proxies: tests/web."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from urllib.parse import urljoin

import pytest
from httpx import Client
from pydantic import ValidationError
from redis import Redis

from api.__main__ import check_access
from api.edge.site import is_reachable_by_others
from kernelscope.client import Client as OurClient
from shared import logs
from shared.errors import error_types
from shared.keys import ApiKeys
from shared.settings import Settings
from tests.api.conftest import InlineWorker, serving
from tests.api.test_explain import post, refused

PATH = "/kernelscope"
PUBLIC = f"https://lab.example{PATH}"


@pytest.fixture
def key(redis: Redis) -> str:
    """An API key."""
    return ApiKeys(redis).add("ada")


@pytest.fixture
def published(settings: Settings, key: str) -> Iterator[Client]:
    """A client with a key, of an API with a public URL."""
    reported = settings.model_copy(update={"public_url": PUBLIC, "trusted_proxies": ("127.0.0.1",)})
    with serving(reported) as client:
        client.headers["Authorization"] = f"Bearer {key}"
        yield client


@pytest.mark.parametrize("header", ["X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Forwarded", "Via"])
def test_requests_of_an_unknown_proxy_are_refused(client: Client, header: str) -> None:
    """Its clients would be regarded as local ones. The error says what to configure."""
    for path in ("/jobs", "/", "/healthz"):
        refused(client.get(path, headers={header: "x"}), 403, "unknown-proxy", "KERNELSCOPE_PUBLIC_URL", "keys add")


@pytest.mark.parametrize("reported", [{"public_url": PUBLIC}, {"trusted_proxies": ("10.0.0.1",)}])
def test_behind_a_proxy_a_key_is_required(settings: Settings, redis: Redis, reported: dict[str, object]) -> None:
    """Even on a loopback address, and nothing is served before there is one."""
    published = settings.model_copy(update=reported)
    assert "kernelscope keys add" in (check_access(published) or "")
    with serving(published) as client:
        refused(client.get("/jobs"), 401, "unauthorized")
        refused(client.get("/jobs", headers={"X-Forwarded-For": "127.0.0.1"}), 401, "unauthorized")
        assert client.get("/").status_code == 200


def test_forwarding_headers_are_trusted_from_configured_proxies(
    settings: Settings, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The address in the log line, and the scheme; from other clients neither."""
    headers = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https", "Authorization": f"Bearer {key}"}
    caplog.handler.addFilter(logs._bind)
    for proxy, address in (("127.0.0.1", "203.0.113.7"), ("10.0.0.1", "127.0.0.1")):
        caplog.clear()
        with serving(settings.model_copy(update={"trusted_proxies": (proxy,)})) as client:
            caplog.set_level(logging.INFO)
            cookie = client.post("/session", headers=headers).headers["set-cookie"]
        assert ("Secure" in cookie) is cookie.startswith("__Host-") is (proxy == "127.0.0.1")
        (line,) = [record for record in caplog.records if "POST /session: 204" in record.message]
        assert (line.client, line.caller) == (address, "ada")  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", ["", PATH])
def test_every_url_is_under_the_public_one(published: Client, inline_worker: InlineWorker, path: str) -> None:
    """Whether the proxy strips the path or not; all URLs in responses can be requested unchanged."""
    answer = post(published, path=f"{path}/explain")
    job = answer.json()
    here = f"{PATH}/jobs/{job['id']}"
    assert answer.headers["location"] == job["links"]["self"] == here
    inline_worker.work()
    ended = published.get(here).json()
    result = ended["results"][0]
    assert all(url.startswith(here) for url in (*ended["links"].values(), *result["artifacts"].values()))
    assert published.get(result["artifacts"]["optimized.png"]).status_code == 200
    assert f'"{here}/artifacts/0/optimized.png"' in published.get(ended["links"]["events"]).text
    missing = published.get(f"{path}/jobs/{'0' * 32}").json()
    assert missing["type"] == f"{PATH}/problems/job-not-found"
    assert error_types()["job-not-found"].title in published.get(missing["type"]).text
    listed = published.get(f"{path}/jobs?limit=1")
    assert listed.json()["jobs"][0]["links"]["self"] == here
    post(published, kernels="7")
    assert published.get(f"{path}/jobs?limit=1").headers["link"].startswith(f"<{PATH}/jobs?")


def test_the_problem_that_ends_a_stream_links_under_the_path(published: Client, redis: Redis) -> None:
    """Like every problem."""
    links = post(published).json()["links"]
    with published.stream("GET", links["events"]) as answer:
        lines = answer.iter_lines()
        next(line for line in lines if line.startswith("event: status"))
        job_id = links["self"].rsplit("/", 1)[-1]
        redis.delete(f"ks:job:{job_id}", f"ks:job:{job_id}:log")
        redis.publish("ks:events", f"{job_id} gone")
        rest = list(lines)
    assert "event: gone" in rest
    assert any(f'"type":"{PATH}/problems/job-expired"' in line for line in rest)


def test_the_page_has_relative_links(published: Client) -> None:
    """So that it works under any path; its URL without a slash redirects to that with one."""
    redirect = published.get(PATH)
    assert (redirect.status_code, redirect.headers["location"]) == (308, f"{PATH}/")
    for base in ("/", f"{PATH}/"):
        for page in (".", "docs"):
            html = published.get(urljoin(base, page)).raise_for_status().text
            files = [part for part in html.split('"')[1::2] if part.startswith("web/")]
            assert files
            assert all(published.get(urljoin(base, file)).status_code == 200 for file in files)
            assert 'src="/' not in html
            assert 'href="/' not in html
    assert published.get(f"{PATH}/openapi.json").json()["servers"] == [{"url": PATH}]


@pytest.mark.parametrize("path", ["", PATH])
def test_the_client_works_under_a_path(published: Client, key: str, inline_worker: InlineWorker, path: str) -> None:
    """And without the proxy."""
    job_id = post(published).json()["id"]
    inline_worker.work()
    with OurClient(f"http://{published.base_url.netloc.decode()}{path}", key) as ours:
        job = ours.job(job_id)
        assert job.results[0].file("optimized.png")[:4] == b"\x89PNG"
        assert list(job.events())


@pytest.mark.parametrize("origin", ["https://lab.example", "http://127.0.0.1:8123"])
def test_the_page_behind_a_proxy_may_post(published: Client, origin: str) -> None:
    """With the site's Origin, whatever Host the proxy sends; pages of other sites are refused."""
    name, _, token = published.post("/session").headers["set-cookie"].partition(";")[0].partition("=")
    headers = {"Cookie": f"{name}={token}", "Host": "127.0.0.1:8123", "Authorization": "Basic YTpi"}
    assert post(published, headers={**headers, "Origin": origin}).status_code == 202
    refused(post(published, headers={**headers, "Origin": "https://evil.example"}), 403, "cross-origin")


def test_a_server_without_keys_accepts_only_its_own_names(settings: Settings, redis: Redis) -> None:
    """Also with `open` (compose), because of DNS rebinding. IP addresses are accepted."""
    everywhere = settings.model_copy(update={"access": "open", "host": "0.0.0.0"})  # noqa: S104 - as in a container
    with serving(everywhere) as client:
        for host in ("localhost:8000", "127.0.0.1", "192.168.1.5:8000", "[::1]:80"):
            assert client.get("/jobs", headers={"Host": host}).status_code == 200, host
        for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example"):
            refused(client.get("/jobs", headers={"Host": host}), 403, "cross-origin", "KERNELSCOPE_ALLOWED_HOSTS")
        assert client.get("/healthz", headers={"Host": "probe"}).status_code == 200
    with serving(everywhere.model_copy(update={"allowed_hosts": ("gpubox",), "public_url": PUBLIC})) as client:
        for host in ("gpubox:8000", "lab.example", "GPUBOX"):
            assert client.get("/jobs", headers={"Host": host}).status_code == 200, host
    with serving(everywhere.model_copy(update={"allowed_hosts": ("*",)})) as client:
        assert client.get("/jobs", headers={"Host": "any.example"}).status_code == 200


@pytest.mark.parametrize(
    "wrong",
    [
        {"public_url": "lab.example"},
        {"public_url": "ftp://lab.example"},
        {"public_url": "https://lab.example/a b"},
        {"public_url": "https://lab.example/?a=b"},
        {"trusted_proxies": "lab"},
        {"keep_alive_s": 0},
    ],
)
def test_invalid_settings(wrong: dict[str, str]) -> None:
    """Refused at the start, with the setting's name."""
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Settings(_env_file=None, **wrong)  # type: ignore[arg-type]


def test_a_slash_at_the_end_of_the_public_url_does_not_matter() -> None:
    """The path is optional."""
    assert Settings(_env_file=None, public_url=f"{PUBLIC}/").root == PATH
    assert Settings(_env_file=None, public_url="https://lab.example/").root == ""


def test_a_public_address_without_keys_is_not_served(settings: Settings, redis: Redis) -> None:
    """Unless a setting allows it or there are keys; loopback addresses are served."""
    public = settings.model_copy(update={"host": "0.0.0.0"})  # noqa: S104 - that is the case
    reason = check_access(public)
    assert reason
    assert "kernelscope keys add" in reason
    assert "KERNELSCOPE_ACCESS=open" in reason
    assert check_access(settings) is None
    assert check_access(public.model_copy(update={"access": "open"})) is None
    ApiKeys(redis).add("ada")
    assert check_access(public) is None
    with serving(public) as client:
        refused(client.get("/jobs"), 401, "unauthorized")


REACHABLE = ["0.0.0.0", "::", "10.0.0.1", "lab.example", ""]  # noqa: S104 - addresses to tell apart
LOOPBACK = ["127.0.0.1", "127.9.9.9", "::1", "localhost"]


@pytest.mark.parametrize("host", [*REACHABLE, *LOOPBACK])
def test_which_addresses_others_can_reach(host: str) -> None:
    """All but loopback addresses."""
    assert is_reachable_by_others(host) is (host in REACHABLE)


def test_requests_of_another_site_s_page_are_refused(client: Client, settings: Settings, redis: Redis) -> None:
    """Both with a host name that resolves to this machine (DNS rebinding) and by a form."""
    refused(client.get("/jobs", headers={"Host": "evil.example:8000"}), 403, "cross-origin", "evil.example")
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000"):
        assert client.get("/jobs", headers={"Host": host}).status_code == 200
    refused(post(client, headers={"Origin": "https://evil.example"}), 403, "cross-origin", "another site")
    own = f"http://{client.base_url.netloc.decode()}"
    assert post(client, headers={"Origin": own}).status_code == 202
    assert client.get("/jobs", headers={"Origin": "https://evil.example"}).status_code == 200  # unreadable without CORS
    with serving(settings.model_copy(update={"cors_origins": ("https://lab.example",), "access": "open"})) as other:
        assert post(other, headers={"Origin": "https://lab.example"}).status_code == 202
        assert other.get("/jobs").status_code == 200
