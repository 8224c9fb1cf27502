"""An S3 store of a test's own: SeaweedFS, the server that compose.s3.yml runs."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from kernelscope.stack import free_port
from shared.errors import StoreUnavailable
from shared.store import BlobStore
from tests.chaos.conftest import Plant, until

BUCKET = "kernelscope"
JOB = "0" * 32  # whose files are checked


class S3:
    """The server as a process; stopped, it takes connections and says nothing.

    Args:
        folder: of its files.
        host: the address that it listens on.
        inside: words before its command, which run it somewhere else.
    """

    def __init__(self, folder: Path, host: str = "127.0.0.1", inside: Sequence[str] = ()) -> None:
        folder.mkdir()
        ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
        internal = {f"{name}.port.grpc": free_port() for name in ports}
        options = {
            "dir": folder,
            "ip": host,
            "ip.bind": host,
            "volume.max": 0,
            "master.volumeSizeLimitMB": 64,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            **{f"{name}.port": port for name, port in ports.items()},
            **internal,
        }
        self.filer = f"http://{host}:{ports['filer']}"
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://{host}:{ports['s3']}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "KERNELSCOPE_STORE_URL": f"s3://{BUCKET}/lab",
        }
        weed = Path(sys.executable).with_name("weed")
        command = [*inside, str(weed), "server", "-s3", *(f"-{name}={value}" for name, value in options.items())]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def wait(self, store: BlobStore) -> None:
        """Wait until it accepts data."""
        until(lambda: _takes(store), 60)

    def other_view(self, digest: str) -> bytes:
        """A blob, read by SeaweedFS's own protocol."""
        path = f"/buckets/{BUCKET}/lab/jobs/{JOB[-2:]}/{JOB}/{digest}"
        return httpx.get(self.filer + path, timeout=30).raise_for_status().content

    def stop(self) -> None:
        """Stop responding."""
        self.process.send_signal(signal.SIGSTOP)
        until(lambda: psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED, 5)

    def go_on(self) -> None:
        """Respond again."""
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()


def _takes(store: BlobStore) -> bool:
    try:
        store.put("0" * 32, b"is anybody there?")
    except StoreUnavailable:
        return False
    return True


@contextmanager
def planted(folder: Path, monkeypatch: pytest.MonkeyPatch, *workers: str) -> Iterator[Plant]:
    """Redis, a SeaweedFS, API and housekeeping, and workers, which are started again when they end."""
    s3 = S3(folder / "s3")
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    plant = Plant(folder, **s3.environment)
    try:
        s3.wait(BlobStore(s3.environment["KERNELSCOPE_STORE_URL"]))
        plant.start_redis()
        plant.start_service()
        for name in workers:
            plant.start_worker(name, supervised=True)
        yield plant
    finally:
        plant.close()
        s3.close()
