"""Behind nginx and Caddy as docs/deployment.md has them, over TLS, at the root of a host and under a path."""

from __future__ import annotations

import os
import re
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from kernelscope.client import Client
from kernelscope.stack import free_port
from shared.jobs import connect
from shared.keys import ApiKeys
from tests.chaos.conftest import Plant, until
from tests.chaos.conftest import picture as fresh
from tests.web.conftest import ROOT, Arriving

pytestmark = [pytest.mark.web, pytest.mark.timeout(300)]

DOCUMENT = (ROOT / "docs" / "deployment.md").read_text()
NGINX = """
{user} daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ }}
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    {server}
}}
"""
CADDY = "{{\n    admin off\n    auto_https off\n}}\n{server}"


@dataclass(frozen=True)
class Site:
    """A service as the world sees it."""

    plant: Plant
    url: str
    key: str
    certificate: Path

    @property
    def client(self) -> httpx.Client:
        """Of somebody who has a key."""
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.Client(
            verify=ssl.create_default_context(cafile=self.certificate), headers=headers, timeout=80, trust_env=False
        )


def configured(proxy: str, path: str, folder: Path, ports: tuple[int, int]) -> list[str]:
    """The command that runs the proxy with the document's lines, of which only places are changed."""
    (lines,) = re.findall(rf"```{proxy}\n(.*?)```", DOCUMENT, re.DOTALL)
    inside, outside = ports
    if not path:
        lines = lines.replace("location /kernelscope/", "location /").replace("handle /kernelscope*", "handle")
    lines = lines.replace("127.0.0.1:8000", f"127.0.0.1:{inside}")
    if proxy == "nginx":
        lines = lines.replace("listen 443", f"listen 127.0.0.1:{outside}").replace("lab.example", "localhost")
        lines = lines.replace("/etc/ssl/localhost", f"{folder}/localhost")
        user = "" if os.getuid() else "user root;"  # else nobody, who may not write into the folder
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder, server=lines, user=user))
        return ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "nginx.log")]
    tls = f"tls {folder}/localhost.pem {folder}/localhost.key"
    lines = lines.replace("lab.example {", f"https://localhost:{outside} {{\n    {tls}")
    (folder / "Caddyfile").write_text(CADDY.format(server=lines))
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]


@pytest.fixture(scope="module", params=["nginx", "caddy"])
def proxy(request: pytest.FixtureRequest) -> str:
    """Which one; test-slow installs them."""
    name: str = request.param
    assert shutil.which(name) or Path(f"/usr/sbin/{name}").exists(), f"make proxies installs {name}"
    return name


@pytest.fixture(scope="module", params=["", "/kernelscope"], ids=["root", "path"])
def site(request: pytest.FixtureRequest, proxy: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A service with a key and a worker behind it."""
    folder, outside = tmp_path_factory.mktemp(proxy), free_port()
    certificate = folder / "localhost.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*made, "-keyout", folder / "localhost.key", "-out", certificate], check=True, capture_output=True)
    url = f"https://localhost:{outside}{request.param}"
    plant = Plant(folder, KERNELSCOPE_PUBLIC_URL=url, KERNELSCOPE_TRUSTED_PROXIES="127.0.0.1")
    try:
        plant.start_redis()
        with connect(plant.redis_url) as redis:
            key = ApiKeys(redis).add("ada")
        plant.start_service()
        plant.start_worker("worker")
        plant.start(proxy, configured(proxy, request.param, folder, (plant.api_port, outside)), {"HOME": str(folder)})
        site = Site(plant, url, key, certificate)
        with site.client as client:
            until(lambda: _answers(client, f"{url}/healthz"), 20)
        yield site
    finally:
        plant.close()


def _answers(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(url).status_code == 200
    except httpx.TransportError:
        return False


def test_the_page_works(site: Site, arriving: Arriving, picture: Path) -> None:
    """From signing in to the pictures, with the events as they come; and the reference of the API."""
    visitor = arriving(f"{site.url}/", ignore_https_errors=True)
    visitor.expected = ("401",)
    page = visitor.page
    page.goto(visitor.url)
    dialog = page.get_by_role("dialog", name="This server needs an API key")
    expect(dialog).to_be_visible()
    page.get_by_label("Key", exact=True).fill(site.key)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_selector(".layer", timeout=20_000)
    (cookie,) = visitor.context.cookies()
    assert (cookie["name"], cookie["secure"], cookie["path"]) == ("__Host-kernelscope", True, "/")
    visitor.choose(picture)
    visitor.effort("quick")
    visitor.explain()
    assert visitor.done() == "Done: 2 explained."
    shown = page.locator("#detail img").first
    assert shown.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    assert page.get_by_role("link", name="Link to this result").get_attribute("href").startswith(f"{site.url}/#job=")  # type: ignore[union-attr]

    page.get_by_role("link", name="HTTP API").click()
    expect(page.get_by_role("heading", name=re.compile("Kernelscope"))).to_be_visible(timeout=20_000)
    expect(page.get_by_text("/explain", exact=True).first).to_be_visible()


def test_events_come_as_they_happen(site: Site) -> None:
    """Not all at the end, and each link leads through the proxy."""
    with Client(site.url, site.key) as ours, site.client as client:
        ours._http = client  # with the test's certificate
        client.base_url = site.url
        job = ours.explain(
            [fresh()], model="vgg_mini", layer="conv2_1", kernels=[1], solver="reference", iterations=60_000
        )
        came = []
        for _ in job.events():
            came.append(time.monotonic())
            if len(came) == 4:
                break
        assert max(after - before for before, after in pairwise(came)) < 30
        job.cancel()


def test_large_bodies_and_long_waits(site: Site) -> None:
    """32 MB arrive; more is refused with a sentence or the proxy's 413; a wait of 60 s is answered by us, not a 504."""
    noise = b"\x89PNG\r\n\x1a\n" + b"\x00" * 31_000_000
    fields = {"model": "vgg_mini", "layer": "conv2_1", "kernels": "1"}
    with site.client as client, ThreadPoolExecutor(1) as pool:
        long = {**fields, "solver": "reference", "iterations": "100000"}
        begin = time.monotonic()
        url, seconds = f"{site.url}/explain", 60 if httpx.URL(site.url).path.strip("/") else 5
        wait = {"Prefer": f"wait={seconds}"}
        waiting = pool.submit(client.post, url, files={"image": ("x", fresh())}, data=long, headers=wait)
        refused = client.post(url, files={"image": ("x", noise)}, data=fields)
        assert (refused.status_code, refused.json()["title"]) == (422, "Unusable image")
        assert client.post(url, json="x" * 40_000_000).status_code == 413
        answer = waiting.result()
        assert answer.status_code == 202
        assert answer.headers["preference-applied"] == wait["Prefer"]
        assert time.monotonic() - begin > seconds - 1
        assert answer.headers["location"].startswith(httpx.URL(site.url).path.rstrip("/") + "/jobs/")
        cancelled = client.post(httpx.URL(site.url).join(answer.json()["links"]["cancel"]))
        assert cancelled.json()["status"] in ("cancelled", "running")


def test_the_log_has_the_caller_s_address(site: Site) -> None:
    """Not one that the caller made up."""
    with site.client as client:
        client.get(f"{site.url}/jobs/none", headers={"X-Forwarded-For": "203.0.113.9"})
    until(lambda: "404 in" in (site.plant.folder / "api.log").read_text(), 5)
    lines = [line for line in (site.plant.folder / "api.log").read_text().splitlines() if "404 in" in line]
    assert "client=127.0.0.1" in lines[-1]
    assert "caller=ada" in lines[-1]
