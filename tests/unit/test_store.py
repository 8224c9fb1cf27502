"""The blob store."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from shared.errors import StoreUnavailable
from shared.store import BlobStore

JOB, OTHER = "a" * 32, "b" * 30 + "aa"


def test_blobs_are_content_addressed(tmp_path: Path) -> None:
    """Put, get, put again, remove with the job, remove again."""
    store = BlobStore(tmp_path.as_uri() + "/a/b")
    digest = store.put(JOB, b"bytes")
    assert digest == hashlib.sha256(b"bytes").hexdigest() == store.put(JOB, b"bytes")
    assert store.has(JOB, digest)
    assert store.get(JOB, digest) == b"bytes"
    assert store.get_start(JOB, digest, 3) == b"byt"
    assert store.get_start(JOB, digest, 99) == b"bytes"
    store.remove(JOB)
    store.remove(JOB)
    assert not store.has(JOB, digest)
    assert store.get(JOB, digest) is store.get_start(JOB, digest, 3) is None
    assert [path for path in tmp_path.rglob("*") if JOB in path.name] == []


def test_a_job_s_files_are_its_own(tmp_path: Path) -> None:
    """Copies remain when the source job is removed; missing files cannot be copied."""
    store = BlobStore(tmp_path.as_uri())
    digest = store.put(JOB, b"bytes")
    assert not store.has(OTHER, digest)
    assert store.copy(JOB, digest, OTHER)
    assert store.copy(JOB, digest, OTHER)
    assert not store.copy(JOB, "0" * 64, OTHER)
    assert not list(tmp_path.rglob("*#*"))
    assert store.put(OTHER, b"more", "drawn") == "drawn"
    assert {job: sorted(names) for job, names in store.jobs("aa")} == {JOB: [digest], OTHER: [digest, "drawn"]}
    assert list(store.jobs("ab")) == []
    store.remove(JOB)
    assert [job for job, _ in store.jobs("aa")] == [OTHER]
    assert store.get(OTHER, digest) == b"bytes"


def test_blobs_of_earlier_versions_are_found(tmp_path: Path) -> None:
    """For any job."""
    digest = hashlib.sha256(b"old").hexdigest()
    place = tmp_path / "blobs" / digest[:2] / digest
    place.parent.mkdir(parents=True)
    place.write_bytes(b"old")
    store = BlobStore(tmp_path.as_uri())
    assert store.has(JOB, digest)
    assert store.get(JOB, digest) == b"old"
    assert store.copy(JOB, digest, OTHER)
    store.remove_old(digest)
    assert not store.has(JOB, digest)
    assert store.get(OTHER, digest) == b"old"


def test_paths_with_spaces_and_umlauts(tmp_path: Path) -> None:
    """A user's folder may be named anything."""
    folder = tmp_path / "böse Daten"
    digest = BlobStore(folder.as_uri()).put(JOB, b"x")
    assert (folder / "jobs" / "aa" / JOB / digest).read_bytes() == b"x"


def test_a_store_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    """StoreUnavailable is raised, not an error of the library."""
    store = BlobStore(tmp_path.as_uri())
    (tmp_path / "jobs").write_text("in the way")
    with pytest.raises(StoreUnavailable, match="accepted no data"):
        store.put(JOB, b"x")


def test_a_blob_is_on_the_disk_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes and its folders are synced before `put` returns, so a power failure loses no file of a record."""
    synced: list[int] = []
    fsync = os.fsync

    def noted(handle: int) -> None:
        synced.append(os.fstat(handle).st_ino)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    digest = BlobStore(tmp_path.as_uri()).put(JOB, b"bytes")
    file = tmp_path / "jobs" / "aa" / JOB / digest
    assert synced == [path.stat().st_ino for path in (file, *file.parents) if tmp_path in (path, *path.parents)]
    assert file.read_bytes() == b"bytes"


class Bucket(BaseHTTPRequestHandler):
    """An S3 server for a client that may get and put, but not list: missing objects are reported as forbidden."""

    blobs: dict[str, bytes]
    readable = True

    def do_PUT(self) -> None:
        """Taken."""
        self.blobs[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200, headers={"ETag": '"e"'})

    def do_GET(self) -> None:
        """What is there."""
        known = self.readable and self.path in self.blobs
        dated = {"ETag": '"e"', "Last-Modified": "Mon, 02 Nov 2026 10:00:00 GMT"}
        self._answer(200 if known else 403, self.blobs[self.path] if known else b"", dated)

    def do_POST(self) -> None:
        """Several are removed."""
        sent = self.rfile.read(int(self.headers["Content-Length"])).decode()
        for key in re.findall(r"<Key>(.*?)</Key>", sent):
            self.blobs.pop(f"/b/{key}")
        self._answer(200, b"<DeleteResult><Deleted><Key>k</Key></Deleted></DeleteResult>")

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, status: int, data: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command in ("GET", "POST"):
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Bucket]]:
    """A bucket of the test's own, named `b`."""
    own = type("Own", (Bucket,), {"blobs": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), own)
    thread = Thread(target=server.serve_forever)
    thread.start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    yield own
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_bucket_that_may_not_be_listed(bucket: type[Bucket]) -> None:
    """Forbidden objects are regarded as missing if written objects can be read."""
    store = BlobStore("s3://b")
    assert not store.has(JOB, "0" * 64)
    assert store.get(JOB, "0" * 64) is None
    digest = store.put(JOB, b"bytes")
    assert store.has(JOB, digest)
    assert store.get(JOB, digest) == b"bytes"
    store.remove(JOB, [digest])
    assert list(bucket.blobs) == ["/b/blobs/identity"]
    assert list(store.jobs("aa")) == []


def test_a_bucket_that_may_not_be_read(bucket: type[Bucket]) -> None:
    """StoreUnavailable is raised."""
    bucket.readable = False
    store = BlobStore("s3://b")
    with pytest.raises(StoreUnavailable, match="does not answer"):
        store.has(JOB, "0" * 64)
    with pytest.raises(StoreUnavailable, match="does not answer"):
        store.get(JOB, "0" * 64)


def test_a_store_has_an_identity(tmp_path: Path) -> None:
    """The same for all clients of this store; a different one elsewhere."""
    here, again, there = (BlobStore((tmp_path / name).as_uri()) for name in ("here", "here", "there"))
    assert here.identity() == again.identity() == here.identity()
    assert here.identity() != there.identity()
