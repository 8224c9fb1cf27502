"""Durable files: contents and names are synced to the disk before a record in Redis, which is durable, refers to them.

A file needs an fsync of its own and one of each folder that leads to it. Threads that write at the same time share the
fsyncs of folders (group commit): one thread makes them for all threads that arrived during the previous ones.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock

MOST_KNOWN = 10_000  # folders


@dataclass(eq=False)
class _Batch:
    folders: dict[Path, None] = field(default_factory=dict)
    synced: set[Path] = field(default_factory=set)
    errors: dict[Path, OSError] = field(default_factory=dict)
    done: Event = field(default_factory=Event)


class Durable:
    """The files below one folder; thread-safe. Names are synced on POSIX systems only.

    All files that are new in a folder share one fsync of it. The folder's own name, and those of the folders above it,
    are synced once.

    Args:
        root: that folder. Its own name is not synced. A folder below it that was removed must not be created again
            during the lifetime of this object; folders named by a job's id never are.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = Lock()
        self._syncing = Lock()
        self._next: _Batch | None = None
        self._known: set[Path] = set()  # folders whose names are on the disk

    def write(self, files: Mapping[Path, bytes]) -> None:
        """Write files, each atomically, replacing existing ones; return once they are on the disk.

        The bytes are synced before the file is renamed to its name, so a file is never seen incomplete.

        Raises:
            OSError: a file was not written, or may be lost in a power failure.
        """
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
            try:
                with part.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                part.replace(path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
        self._name(files)

    def sync(self, paths: Collection[Path]) -> None:
        """Return once these existing files are on the disk.

        Raises:
            OSError: as `write`.
        """
        if os.name == "posix":
            for path in paths:
                _fsync(path)
        self._name(paths)

    def _name(self, paths: Iterable[Path]) -> None:
        """Sync the folders that lead to these files, in one batch with those of other threads."""
        if os.name != "posix":
            return
        own = dict.fromkeys(folder for path in paths for folder in self._leading_to(path))
        with self._lock:
            leads = self._next is None
            batch = self._next = self._next or _Batch()
            batch.folders.update(own)
        if leads:
            self._lead(batch)
        batch.done.wait()
        for folder in own:
            if folder not in batch.synced:
                raise batch.errors.get(folder) or OSError(errno.EINTR, os.strerror(errno.EINTR), str(folder))
        if len(self._known) > MOST_KNOWN:
            self._known = {self.root}
        self._known.update(own)

    def _leading_to(self, path: Path) -> Iterator[Path]:
        """The folders to sync so that a new file's name is on the disk, the innermost first."""
        for folder in path.parents:
            yield folder
            if folder in self._known or folder == self.root:
                return

    def _lead(self, batch: _Batch) -> None:
        """Sync a batch once the previous one is done; threads that arrive later join the next batch."""
        try:
            with self._syncing:
                self._close(batch)
                for folder in batch.folders:
                    try:
                        _fsync(folder)
                        batch.synced.add(folder)
                    except OSError as error:  # the folder was removed, say; other files of the batch are not affected
                        batch.errors[folder] = error
        finally:
            self._close(batch)  # also if this thread was interrupted while it waited
            batch.done.set()

    def _close(self, batch: _Batch) -> None:
        with self._lock:
            if self._next is batch:
                self._next = None


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
