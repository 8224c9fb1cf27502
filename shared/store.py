"""The object store, configured by a URL: `file://` for one machine, `s3://` for several.

Every job has its own folder, in which blobs are named by their SHA-256. Removing a job removes its folder. There are no
reference counts: what two jobs share is copied within the store (as a hard link in a local one).

The endpoint and the credentials of an S3 store come from the usual environment variables, `AWS_ENDPOINT_URL`,
`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_REGION`, or from a role of the machine.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import obstore
from obstore.exceptions import BaseError, NotModifiedError, PermissionDeniedError
from obstore.store import ObjectStore
from prometheus_client import Counter, Histogram

from shared import telemetry
from shared.durable import Durable
from shared.errors import StoreUnavailable, first_line
from shared.object_store import job_path, legacy_path, local_folder, open_store

OPERATIONS = ("put", "get", "has", "copy", "remove", "list")
SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30)
GLANCE_SECONDS = 2.0  # timeout of requests with small responses
FETCHED_BYTES = 16_000_000  # read of a large file at a time
IDENTITY = "blobs/identity"
SHARDS = tuple(f"{number:02x}" for number in range(256))  # folders of jobs, by the last two digits of their ids
DIGEST = re.compile(r"[0-9a-f]{64}")


class BlobStore:
    """Files of jobs and other files, by name. Writing the same bytes twice is harmless.

    S3 reports missing objects as forbidden to clients that may not list the bucket. Such an object is regarded as
    missing if an object that this class has written itself can be read.

    Args:
        patience: timeout in seconds for reading or writing one file; an unreachable store is detected earlier.
    """

    def __init__(self, url: str, patience: float = 30.0) -> None:
        self._store = open_store(url, patience)
        self._quick = open_store(url, GLANCE_SECONDS)
        self._folder = local_folder(url)
        # A record in Redis survives a power failure, so the files that it refers to must do so too.
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
        """The name of a blob: its SHA-256, 64 hex digits."""
        return hashlib.sha256(data).hexdigest()

    def put(self, job_id: str, data: bytes, name: str = "") -> str:
        """Store a file atomically and return its name, which is its digest by default."""
        path = job_path(job_id, name or self.digest(data))
        self._write(path, data)
        return path.rpartition("/")[2]

    def get(self, job_id: str, name: str) -> bytes | None:
        """A file of a job, or None if there is no such file."""
        data = self._read(job_path(job_id, name))
        return self._read(legacy_path(name)) if data is None and DIGEST.fullmatch(name) else data

    def get_if_changed(self, job_id: str, name: str, tag: str | None) -> tuple[bytes | None, str | None] | None:
        """A file of a job and its ETag; no bytes if the ETag is still `tag`; None if there is no such file."""
        with self._operation("get", "returned no data"), self._ignore_missing():
            try:
                found = obstore.get(
                    self._store, job_path(job_id, name), options={"if_none_match": tag} if tag else None
                )
            except NotModifiedError:
                return None, tag
            return bytes(found.bytes()), found.meta["e_tag"]
        return None

    def get_start(self, job_id: str, name: str, size: int) -> bytes | None:
        """Up to `size` bytes from the start of a job's file; None if there is no such file."""
        with self._operation("get", "returned no data"), self._ignore_missing():
            return bytes(obstore.get_range(self._store, job_path(job_id, name), start=0, end=size))
        return None

    def has(self, job_id: str, name: str) -> bool:
        """Whether a job has this file."""
        return self._exists(job_path(job_id, name)) or (
            bool(DIGEST.fullmatch(name)) and self._exists(legacy_path(name))
        )

    def copy(self, source: str, name: str, job_id: str) -> bool:
        """Copy a file from another job; False if that has no such file."""
        if self._exists(job_path(job_id, name)):
            return True  # in a local store, a second copy would leave a temporary link behind
        for path in (job_path(source, name), legacy_path(name)):
            with self._operation("copy", "copied nothing"), self._ignore_missing():
                obstore.copy(self._store, path, job_path(job_id, name))
                if self._folder and self._durable:
                    self._durable.sync([self._folder / job_path(job_id, name)])
                return True
        return False

    def remove(self, job_id: str, names: Iterable[str] = ()) -> None:
        """Remove all files of a job.

        Args:
            names: known files; only these can be removed where the store may not be listed.
        """
        self.remove_folder(job_path(job_id, ""), names)

    def remove_folder(self, folder: str, names: Iterable[str] = ()) -> None:
        """Remove everything in a folder, whose path ends with a slash. `names` as in `remove`."""
        with self._operation("remove", "removed nothing"):
            if self._folder:
                shutil.rmtree(self._folder / folder, ignore_errors=True)
                return
            paths = list(self._listed(folder)) or [folder + name for name in names]
            if paths:
                with suppress(FileNotFoundError):
                    obstore.delete(self._store, paths)

    def jobs(self, shard: str) -> Iterator[tuple[str, list[str]]]:
        """The jobs with files in one of `SHARDS`, with the names of the files; empty if the store may not be listed."""
        job, names = "", list[str]()
        with self._operation("list", "cannot be listed"), self._ignore_missing():
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
        """The paths of all files in a folder; empty if the store may not be listed."""
        try:
            for files in obstore.list(store or self._store, folder, chunk_size=1000):
                yield from (file["path"] for file in files)
        except BaseError as error:
            if not isinstance(error, PermissionDeniedError) and "403 Forbidden" not in str(error):
                raise

    def put_at(self, place: str, data: bytes) -> None:
        """Store a file that belongs to no job."""
        self._write(place, data)

    def get_at(self, place: str) -> bytes | None:
        """A file that `put_at` has stored, or None."""
        return self._read(place)

    def note(self, place: str, text: str) -> None:
        """Store a short text."""
        self._write(place, text.encode())

    def noted(self, place: str, *, soon: bool = False) -> str | None:
        """A text that `note` has stored, or None; `soon`: with a timeout of two seconds."""
        data = self._read(place, self._quick if soon else None)
        return None if data is None else data.decode()

    def forget_note(self, place: str) -> None:
        """Delete a text."""
        with self._operation("remove", "removed nothing"), suppress(FileNotFoundError):
            obstore.delete(self._store, place)

    def names(self, folder: str) -> list[str]:
        """The paths, relative to a folder that belongs to no job, of all files below it."""
        with self._operation("list", "cannot be listed"), self._ignore_missing():
            return sorted(path.removeprefix(f"{folder}/") for path in self._listed(f"{folder}/", self._quick))
        return []

    def put_file(self, place: str, file: Path) -> None:
        """Store a file of any size that belongs to no job."""
        with self._operation("put", "accepted no data"):
            obstore.put(self._store, place, file)
            if self._folder and self._durable:
                self._durable.sync([self._folder / place])

    def fetch(self, place: str, file: Path) -> str | None:
        """Download what `put_file` has stored. Returns its SHA-256; None if there is nothing.

        Raises:
            StoreUnavailable.
            OSError: the file cannot be written.
        """
        size, digest = self._size(place), hashlib.sha256()
        if size is None:
            return None
        with file.open("wb") as target:
            for start in range(0, size, FETCHED_BYTES):
                with self._operation("get", "returned no data"):
                    end = min(size, start + FETCHED_BYTES)
                    data = bytes(obstore.get_range(self._store, place, start=start, end=end))
                digest.update(data)
                target.write(data)
            target.flush()
            os.fsync(target.fileno())
        return digest.hexdigest()

    def _size(self, place: str) -> int | None:
        with self._operation("has", "does not answer"), self._ignore_missing():
            return int(obstore.head(self._store, place)["size"])
        return None

    def remove_old(self, digest: str) -> None:
        """Remove a blob in the location of earlier versions, if it exists."""
        with self._operation("remove", "removed nothing"), suppress(FileNotFoundError):
            obstore.delete(self._quick, legacy_path(digest))

    def _write(self, path: str, data: bytes) -> None:
        with self._operation("put", "accepted no data"):
            if self._folder and self._durable:
                self._durable.write({self._folder / path: data})
            else:
                obstore.put(self._store, path, data)

    def _read(self, path: str, store: ObjectStore | None = None) -> bytes | None:
        with self._operation("get", "returned no data"), self._ignore_missing():
            return bytes(obstore.get(store or self._store, path).bytes())
        return None

    def _exists(self, path: str) -> bool:
        with self._operation("has", "does not answer"), self._ignore_missing():
            obstore.head(self._quick, path)
            return True
        return False

    def identity(self) -> str:
        """A unique id of this store, 32 hex digits, which is created on first use.

        Raises:
            StoreUnavailable: it does not respond, or may be written but not read.
        """
        try:
            with suppress(FileNotFoundError, PermissionDeniedError):
                return self._identity()
            obstore.put(self._quick, IDENTITY, secrets.token_hex(16).encode())
            return self._identity()
        except (BaseError, OSError) as error:
            raise StoreUnavailable(f"the object store does not answer ({first_line(error)})") from error

    def _identity(self) -> str:
        return bytes(obstore.get(self._quick, IDENTITY).bytes()).decode()

    @contextmanager
    def _ignore_missing(self) -> Iterator[None]:
        """Ignores missing objects, also those that an S3 store reports as forbidden since it may not be listed."""
        try:
            yield
        except FileNotFoundError:
            return
        except PermissionDeniedError:
            self.identity()

    @contextmanager
    def _operation(self, operation: str, failure: str) -> Iterator[None]:
        """An operation: measures its time, counts failures, adds a span, and raises StoreUnavailable on failure."""
        with (
            telemetry.span(f"store {operation}"),
            self.seconds.labels(operation).time(),
            self.errors.labels(operation).count_exceptions(StoreUnavailable),
        ):
            try:
                yield
            except (BaseError, OSError) as error:
                raise StoreUnavailable(f"the object store {failure} ({first_line(error)})") from error
