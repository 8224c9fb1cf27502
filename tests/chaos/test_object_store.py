"""A real S3 server: files are read back unchanged, and an outage loses nothing and fails no job."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from kernelscope.client import Client, ServerError
from shared.errors import StoreUnavailable
from shared.schemas import Status
from shared.store import BlobStore
from tests.chaos.conftest import ROOT, picture, running, until, whole
from tests.chaos.s3 import JOB, S3
from tests.conftest import FULL

pytestmark = pytest.mark.chaos

OUTAGE_SECONDS = 60 if FULL else 25  # longer than a lease


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3]:
    """A server of the test's own."""
    server = S3(tmp_path / "s3")
    yield server
    server.close()


@pytest.fixture
def store(s3: S3, monkeypatch: pytest.MonkeyPatch) -> BlobStore:
    """A store there."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    store = BlobStore(s3.environment["KERNELSCOPE_STORE_URL"], patience=2)
    s3.wait(store)
    return store


def test_files_are_read_back_unchanged(s3: S3, store: BlobStore) -> None:
    """Files of 0, 1 and 20 million bytes; another program reads the same; removed files no longer exist."""
    for data in (b"", b"x", os.urandom(20_000_000)):
        digest = store.put(JOB, data)
        assert store.get(JOB, digest) == data
        assert s3.other_view(digest) == data
        store.remove(JOB)
        store.remove(JOB)
        assert not store.has(JOB, digest)
        assert store.get(JOB, digest) is None


def test_an_unavailable_store_is_detected_quickly(s3: S3, store: BlobStore) -> None:
    """Whether it does not respond or is not there; StoreUnavailable is raised."""
    digest = store.put(JOB, b"x")
    s3.stop()
    for action in (lambda: store.has(JOB, digest), lambda: store.get(JOB, digest), lambda: store.put(JOB, b"y")):
        begin = time.monotonic()
        with pytest.raises(StoreUnavailable):
            action()
        assert time.monotonic() - begin < 6
    s3.go_on()
    until(lambda: store.get(JOB, digest) == b"x", 10)
    s3.close()
    begin = time.monotonic()
    with pytest.raises(StoreUnavailable):
        store.has(JOB, digest)
    assert time.monotonic() - begin < 2


def test_an_outage_loses_nothing_and_fails_nothing(
    s3: S3, store: BlobStore, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """60 s (25 in a reduced run) in the middle of work: jobs wait, none is tried twice, the API says 503 meanwhile."""
    with running(tmp_path, "worker", **s3.environment) as plant:
        jobs = [plant.submit("1,2,3", effort="standard") for _ in range(4)]
        until(lambda: any(plant.job(job).progress.completed for job in jobs), 60)
        s3.stop()
        down = time.monotonic()
        until(lambda: plant.ready() == 503, 10)
        with Client(plant.url, patience=0, timeout=30) as client, pytest.raises(ServerError, match="object store"):
            client.explain([picture()], layer="conv1_1", kernels="1", model="vgg_mini")
        time.sleep(max(0.0, OUTAGE_SECONDS - (time.monotonic() - down)))
        s3.go_on()
        up = time.monotonic()
        until(lambda: plant.ready() == 200, 20)
        ended = plant.wait(jobs, 120)
        record_property("outage_seconds", round(up - down))
        record_property("done_after_seconds", round(time.monotonic() - up, 1))
        for job in ended:
            whole(job, 3)
            assert job.status is Status.SUCCEEDED
            assert job.attempt == 1
            for result in job.results:
                assert httpx.get(plant.url + result.artifacts["panel.png"], timeout=30).content.startswith(b"\x89PNG")


# The compose file's command as its container runs it: a user of its own, nothing to write but /data and /tmp, no
# capabilities; and then what is reached from another address. The repository stays, also where it is in /tmp.
# Arguments: data, repository, program, command.
CONFINED = r"""
ip link set lo up && ip address add 10.9.9.9/32 dev lo && mount --bind "$1" /mnt || exit 1
exec 9< "$2"
mount -t tmpfs tmpfs /tmp && mkdir -p "$2" && mount -c --bind /proc/self/fd/9 "$2" || exit 1
mount -o remount,bind,ro / || exit 1
exec 9<&-
program=$3 && shift 3
setpriv --reuid 1000 --regid 1000 --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all "$@" &
exec "$program" -c "$PROBE"
"""
PROBE = """
import json, time, psutil
from shared.errors import StoreUnavailable
from shared.store import BlobStore
store, end = BlobStore("s3://kernelscope"), time.monotonic() + 60
while True:
    try:
        kept = store.get("0" * 32, store.put("0" * 32, b"bytes")) == b"bytes"
        break
    except StoreUnavailable:
        assert time.monotonic() < end
        time.sleep(0.2)
heard = [one.laddr for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
print(json.dumps([kept, sorted({address.port for address in heard if not address.ip.startswith("127.")})]))
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and iproute2")
def test_compose_s_server_is_confined_and_shows_s3_alone(tmp_path: Path) -> None:
    """Its master, filer and volume servers, which need no password, cannot be reached."""
    service = yaml.safe_load((ROOT / "compose.s3.yml").read_text())["services"]["s3"]
    data = tmp_path / "data"
    data.mkdir()
    os.chown(data, *map(int, service["user"].split(":")))
    words = [word.replace("=/data", "=/mnt") for word in service["command"]]
    weed = str(Path(sys.executable).with_name("weed"))
    access = {"AWS_ACCESS_KEY_ID": "kernelscope", "AWS_SECRET_ACCESS_KEY": "a/b#c", "AWS_REGION": "us-east-1"}
    own = {"AWS_ENDPOINT_URL": "http://10.9.9.9:8333", "PROBE": PROBE, "PYTHONPATH": str(ROOT)}
    apart = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    ran = subprocess.run(
        [*apart, "sh", "-c", CONFINED, "-", str(data), str(ROOT), sys.executable, weed, *words],
        env={**os.environ, **access, **own},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1]) == [True, [8333, 18333]]
