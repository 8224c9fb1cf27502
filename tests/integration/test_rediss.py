"""Redis by TLS: API, housekeeping, a worker, rate limits and the commands, by a plain `rediss://` URL."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis.exceptions import ConnectionError as RedisConnectionError
from typer.testing import CliRunner

from api.housekeeping.scheduler import Scheduler
from api.housekeeping.tasks import loops
from api.jobs.deliveries import WebhookSender
from api.services import Services
from kernelscope.cli import app
from kernelscope.doctor import _server
from kernelscope.stack import free_port, redis_server
from shared.connection import connect, redis_errors
from shared.errors import StoreUnavailable
from shared.queue import broker, make_celery
from shared.settings import Settings
from tests.api.conftest import serving
from tests.api.test_access import bearer
from tests.api.test_explain import post
from tests.conftest import PASSWORD
from tests.integration.test_worker_life import worker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority of our own, and what it has signed for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    for words in (
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=authority",
        "req -newkey rsa:2048 -nodes -keyout redis.key -out redis.csr -subj /CN=x -addext subjectAltName=IP:127.0.0.1",
        "x509 -req -in redis.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out redis.pem -days 2 -copy_extensions copy",
    ):
        subprocess.run(["openssl", *words.split()], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def plain(folder: Path) -> Iterator[str]:
    """The URL of a Redis that speaks TLS alone, without a word on whom to trust."""
    port = str(free_port())
    own = ["--port", "0", "--tls-port", port, "--bind", "127.0.0.1", "--save", "", "--requirepass", PASSWORD]
    keys = ["--tls-cert-file", "redis.pem", "--tls-key-file", "redis.key", "--tls-ca-cert-file", "ca.pem"]
    command = [redis_server(), *own, *keys, "--tls-auth-clients", "no"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            if "Ready to accept connections" in line:
                break
        else:
            pytest.skip("this redis-server was built without TLS")
        try:
            yield f"rediss://:{PASSWORD}@127.0.0.1:{port}/0"
        finally:
            process.kill()


@pytest.fixture
def url(plain: str, folder: Path) -> str:
    """The same, with the authority."""
    return f"{plain}?ssl_ca_certs={folder / 'ca.pem'}"


@pytest.fixture
def tls(settings: Settings, url: str) -> Settings:
    """Settings with that URL, where keys are needed: each request is counted in Redis."""
    return settings.model_copy(update={"redis_url": SecretStr(url), "access": "keys"})


def test_a_job_from_its_submission_to_its_end(tls: Settings, url: str) -> None:
    """The API's two clients and its limits, the queue at both ends, housekeeping and the commands."""
    environment = {"KERNELSCOPE_REDIS_URL": url, "KERNELSCOPE_DATA_DIR": str(tls.data_dir)}
    made = CliRunner().invoke(app, ["keys", "add", "lab"], env=environment)
    assert made.exit_code == 0, made.output
    key = made.output.split()[0]
    services = Services.open(tls)
    scheduler = Scheduler(services.redis, loops(services, WebhookSender(services.webhooks, private=False)))
    with serving(tls) as client, worker(services) as process:
        client.headers.update(bearer(key))
        job = post(client, layer="conv2_2").json()["id"]
        events = client.get(f"/jobs/{job}/events", timeout=60).text
        assert '"status": "succeeded"' in events
        scheduler.round()
        assert services.redis.exists("ks:housekeeping:lock:reaper")
        assert "RateLimit" in client.get(f"/jobs/{job}").headers
        assert all(one.state == "ok" for one in _server(str(client.base_url), key))
        assert process.poll() is None
    scheduler.stop()


def test_who_is_not_trusted_is_not_spoken_to(plain: str, url: str) -> None:
    """Without the authority, neither record nor queue: a plain URL verifies."""
    with connect(plain) as redis, pytest.raises(StoreUnavailable, match="ssl_ca_certs"), redis_errors():
        redis.ping()
    with make_celery(plain).connection_for_write() as queue, pytest.raises(RedisConnectionError, match="CERTIFICATE"):
        queue.connect()  # not one of the pool, which does not tell connections by their authority
    with make_celery(url).connection_for_write() as queue:
        queue.connect()


def test_what_the_queue_makes_of_a_url() -> None:
    """TLS is verified unless the URL says otherwise; its database is that of the records."""
    assert broker("redis://h:1/2") == ("redis://h:1/2", None)
    assert broker("redis://h") == ("redis://h/0", None)
    assert broker("rediss://:p%40@h/0") == ("rediss://:p%40@h/0", {"ssl_cert_reqs": "required"})
    found = broker("rediss://h:1?db=3&ssl_ca_certs=/a/b.pem&ssl_cert_reqs=none&ssl_check_hostname=false")
    wanted = {"ssl_ca_certs": "/a/b.pem", "ssl_cert_reqs": "none", "ssl_check_hostname": False}
    assert found == ("rediss://h:1/3", wanted)
