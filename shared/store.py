"""Files of jobs in one URL-configured object store: `file://` on one machine, `s3://` on many.

Every job has a folder of its own, in which a blob is named by its SHA-256: removing a job removes its folder, and
nobody has to know who else refers to what. What two jobs share is copied within the store (in a local one: linked).

Where an S3 store is and who one is to it comes from the environment, as of every other program that speaks S3:
`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, or a role of the machine.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import obstore
from obstore.exceptions import BaseError, NotModifiedError, PermissionDeniedError
from obstore.store import LocalStore, ObjectStore, from_url
from prometheus_client import Counter, Histogram

from shared import telemetry
from shared.durable import Durable
from shared.errors import StoreUnavailable

OPERATIONS = ("put", "get", "has", "copy", "remove", "list")
SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30)
GLANCE_SECONDS = 2.0  # that a question without an answer of any size may take
FETCHED_BYTES = 16_000_000  # of a large file at a time
IDENTITY = "blobs/identity"
SHARDS = tuple(f"{number:02x}" for number in range(256))  # folders of jobs lie in, by the last two digits of their ids
DIGEST = re.compile(r"[0-9a-f]{64}")


class BlobStore:
    """Immutable bytes of jobs, by names. Writing the same bytes twice is harmless.

    S3 tells who may not list a bucket that what is not there is forbidden. So it is taken for missing, if what this
    class has written itself can be read.

    Args:
        patience: seconds that writing or reading one file may take; a store that is away is found out sooner.
    """

    def __init__(self, url: str, patience: float = 30.0) -> None:
        self._store = _open(url, patience)
        self._glance = _open(url, GLANCE_SECONDS)
        self._folder = _local(url)
        # On the disk before a record refers to it: Redis's is there after a power cut, so must this be.
        self._durable = Durable(self._folder) if self._folder else None
        self.seconds = Histogram(
            "kernelscope_store_seconds",
            "Time that the object store took.",
            ["operation"],
            buckets=SECONDS,
            registry=None,
        )
        self.errors = Counter(
            "kernelscope_store_errors", "Operations that the object store failed.", ["operation"], registry=None
        )
        for operation in OPERATIONS:
            self.seconds.labels(operation)
            self.errors.labels(operation)

    @staticmethod
    def digest(data: bytes) -> str:
        """The name that bytes have in the store: their SHA-256, 64 hex digits."""
        return hashlib.sha256(data).hexdigest()

    def put(self, job_id: str, data: bytes, name: str = "") -> str:
        """Store bytes (atomically: a reader never sees half a file) and return their name, unless given the digest."""
        path = _path(job_id, name or self.digest(data))
        self._write(path, data)
        return path.rpartition("/")[2]

    def get(self, job_id: str, name: str) -> bytes | None:
        """The bytes of a job's file, or None where there is no such file."""
        data = self._read(_path(job_id, name))
        return self._read(_old(name)) if data is None and DIGEST.fullmatch(name) else data

    def unless(self, job_id: str, name: str, tag: str | None) -> tuple[bytes | None, str | None] | None:
        """The bytes of a job's file and their tag; no bytes where the tag is still this one; None: no such file."""
        with self._doing("get", "gave no data"), self._absent():
            try:
                found = obstore.get(self._store, _path(job_id, name), options={"if_none_match": tag} if tag else None)
            except NotModifiedError:
                return None, tag
            return bytes(found.bytes()), found.meta["e_tag"]
        return None

    def begin(self, job_id: str, name: str, size: int) -> bytes | None:
        """The first bytes of a job's file, `size` at most; None where there is no such file."""
        with self._doing("get", "gave no data"), self._absent():
            return bytes(obstore.get_range(self._store, _path(job_id, name), start=0, end=size))
        return None

    def has(self, job_id: str, name: str) -> bool:
        """Whether a job has this file."""
        return self._there(_path(job_id, name)) or (bool(DIGEST.fullmatch(name)) and self._there(_old(name)))

    def copy(self, source: str, name: str, job_id: str) -> bool:
        """Give a job a file of another job; False where that has no such file."""
        if self._there(_path(job_id, name)):
            return True  # a local store would leave the second link behind under another name
        for path in (_path(source, name), _old(name)):
            with self._doing("copy", "copied nothing"), self._absent():
                obstore.copy(self._store, path, _path(job_id, name))
                if self._folder and self._durable:
                    self._durable.sync([self._folder / _path(job_id, name)])
                return True
        return False

    def remove(self, job_id: str, names: Iterable[str] = ()) -> None:
        """Remove all files of a job.

        Args:
            names: some that it has, which is all that can be removed where the store may not be listed.
        """
        self.remove_folder(_path(job_id, ""), names)

    def remove_folder(self, folder: str, names: Iterable[str] = ()) -> None:
        """Remove everything in a folder; its path ends with a slash. The names are as for `remove`."""
        with self._doing("remove", "removed nothing"):
            if self._folder:
                shutil.rmtree(self._folder / folder, ignore_errors=True)
                return
            paths = list(self._listed(folder)) or [folder + name for name in names]
            if paths:
                with suppress(FileNotFoundError):
                    obstore.delete(self._store, paths)

    def jobs(self, shard: str) -> Iterator[tuple[str, list[str]]]:
        """The jobs that have files in one of `SHARDS`, and the names of these; nothing where one may not look."""
        job, names = "", list[str]()
        with self._doing("list", "told nothing"), self._absent():
            for path in self._listed(f"jobs/{shard}/"):
                _, _, own, name = path.split("/", 3)
                if own != job and names:
                    yield job, names
                    names = []
                job = own
                names.append(name)
        if names:
            yield job, names

    def _listed(self, folder: str, store: ObjectStore | None = None) -> Iterator[str]:
        """The paths of all files in a folder; none where the store may not be listed."""
        try:
            for files in obstore.list(store or self._store, folder, chunk_size=1000):
                yield from (file["path"] for file in files)
        except BaseError as error:
            if not isinstance(error, PermissionDeniedError) and "403 Forbidden" not in str(error):
                raise

    def put_at(self, place: str, data: bytes) -> None:
        """Store bytes that are no job's."""
        self._write(place, data)

    def get_at(self, place: str) -> bytes | None:
        """What `put_at` has stored there, or None."""
        return self._read(place)

    def note(self, place: str, text: str) -> None:
        """Write down a line that is no job's."""
        self._write(place, text.encode())

    def noted(self, place: str, *, soon: bool = False) -> str | None:
        """What was noted there; `soon`: within two seconds, or the store is taken to be away."""
        data = self._read(place, self._glance if soon else None)
        return None if data is None else data.decode()

    def forget_note(self, place: str) -> None:
        """Nothing is noted there any more."""
        with self._doing("remove", "removed nothing"), suppress(FileNotFoundError):
            obstore.delete(self._store, place)

    def names(self, folder: str) -> list[str]:
        """The names of what lies in a folder that is no job's, itself or in folders there."""
        with self._doing("list", "told nothing"), self._absent():
            return sorted(path.removeprefix(f"{folder}/") for path in self._listed(f"{folder}/", self._glance))
        return []

    def put_file(self, place: str, file: Path) -> None:
        """Store a file of any size that is no job's."""
        with self._doing("put", "took no data"):
            obstore.put(self._store, place, file)
            if self._folder and self._durable:
                self._durable.sync([self._folder / place])

    def fetch(self, place: str, file: Path) -> str | None:
        """Write what `put_file` has stored into a file. Returns its SHA-256; None where there is nothing.

        Raises:
            StoreUnavailable.
            OSError: the file cannot be written.
        """
        size, digest = self._size(place), hashlib.sha256()
        if size is None:
            return None
        with file.open("wb") as target:
            for start in range(0, size, FETCHED_BYTES):
                with self._doing("get", "gave no data"):
                    end = min(size, start + FETCHED_BYTES)
                    data = bytes(obstore.get_range(self._store, place, start=start, end=end))
                digest.update(data)
                target.write(data)
            target.flush()
            os.fsync(target.fileno())
        return digest.hexdigest()

    def _size(self, place: str) -> int | None:
        with self._doing("has", "does not answer"), self._absent():
            return int(obstore.head(self._store, place)["size"])
        return None

    def remove_old(self, digest: str) -> None:
        """Remove a blob of before jobs had folders; a missing one is no error."""
        with self._doing("remove", "removed nothing"), suppress(FileNotFoundError):
            obstore.delete(self._glance, _old(digest))

    def _write(self, path: str, data: bytes) -> None:
        with self._doing("put", "took no data"):
            if self._folder and self._durable:
                self._durable.write({self._folder / path: data})
            else:
                obstore.put(self._store, path, data)

    def _read(self, path: str, store: ObjectStore | None = None) -> bytes | None:
        with self._doing("get", "gave no data"), self._absent():
            return bytes(obstore.get(store or self._store, path).bytes())
        return None

    def _there(self, path: str) -> bool:
        with self._doing("has", "does not answer"), self._absent():
            obstore.head(self._glance, path)
            return True
        return False

    def identity(self) -> str:
        """What tells this store from every other: 32 hex digits, which the first process that asked has put there.

        Raises:
            StoreUnavailable: it does not answer, or lets us not read what we write.
        """
        try:
            with suppress(FileNotFoundError, PermissionDeniedError):
                return self._identity()
            obstore.put(self._glance, IDENTITY, secrets.token_hex(16).encode())
            return self._identity()
        except (BaseError, OSError) as error:
            raise StoreUnavailable(f"the object store does not answer ({_first_line(error)})") from error

    def _identity(self) -> str:
        return bytes(obstore.get(self._glance, IDENTITY).bytes()).decode()

    @contextmanager
    def _absent(self) -> Iterator[None]:
        """What is not there is passed over; an S3 store that may not be listed says that it is forbidden."""
        try:
            yield
        except FileNotFoundError:
            return
        except PermissionDeniedError:
            self.identity()

    @contextmanager
    def _doing(self, operation: str, failure: str) -> Iterator[None]:
        """Timed, counted where it fails, and a span of the trace that it belongs to; what fails is our error."""
        with (
            telemetry.span(f"store {operation}"),
            self.seconds.labels(operation).time(),
            self.errors.labels(operation).count_exceptions(StoreUnavailable),
        ):
            try:
                yield
            except (BaseError, OSError) as error:
                raise StoreUnavailable(f"the object store {failure} ({_first_line(error)})") from error


def _local(url: str) -> Path | None:
    return Path(url2pathname(urlsplit(url).path)) if url.startswith("file:") else None


def _open(url: str, patience: float) -> ObjectStore:
    if folder := _local(url):
        return LocalStore(folder, mkdir=True)
    plain = any(os.environ.get(f"AWS_ENDPOINT{suffix}", "").startswith("http:") for suffix in ("", "_URL", "_URL_S3"))
    return from_url(
        url,
        client_options={"timeout": timedelta(seconds=patience), "connect_timeout": "500ms", "allow_http": plain},
        retry_config={
            "max_retries": 1,
            "retry_timeout": timedelta(seconds=1),
            "backoff": {"init_backoff": timedelta(milliseconds=50), "max_backoff": timedelta(seconds=0.2), "base": 2},
        },
    )


def _path(job_id: str, name: str) -> str:
    return f"jobs/{job_id[-2:]}/{job_id}/{name}"


def _old(digest: str) -> str:
    """Where a blob lies of before jobs had folders."""
    return f"blobs/{digest[:2]}/{digest}"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
