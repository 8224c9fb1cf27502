"""Files that are on the disk, with their names, before a record refers to them: Redis's is there after a power cut.

A file needs a sync of its own, and one of each folder on the way to it. Those who write at the same time share the
syncs of folders (group commit): one of them makes them for all that came while the last ones ran.
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
    """The files below one folder, for any number of threads. Names are not synced where the system is not POSIX.

    A folder whose own name is on the disk needs one sync for all files that are new in it; its name, and those of the
    folders above it, are synced once.

    Args:
        root: that folder. Its own name, and those of the folders above it, are left alone. Of the folders below it,
            those that are removed must not come back while this object lives, as folders named by a job's id do not.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = Lock()
        self._syncing = Lock()
        self._next: _Batch | None = None
        self._known: set[Path] = set()  # folders whose names are on the disk

    def write(self, files: Mapping[Path, bytes]) -> None:
        """Write files, each as a whole or not at all, also over what is there; return once they are on the disk.

        The bytes are synced before they have their name, so that no name ever leads to less than all of them.

        Raises:
            OSError: one of them is not there, or may be gone after a power cut.
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
        """Return once these files, which somebody has written, are on the disk.

        Raises:
            OSError: as of `write`.
        """
        if os.name == "posix":
            for path in paths:
                _fsync(path)
        self._name(paths)

    def _name(self, paths: Iterable[Path]) -> None:
        """Sync the folders that lead to these files, together with those of whoever else asks for it now."""
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
        """The folders that have to be synced for a new file's name to be on the disk, the innermost first."""
        for folder in path.parents:
            yield folder
            if folder in self._known or folder == self.root:
                return

    def _lead(self, batch: _Batch) -> None:
        """Sync a batch once the one before is done; who comes from then on needs the next."""
        try:
            with self._syncing:
                self._close(batch)
                for folder in batch.folders:
                    try:
                        _fsync(folder)
                        batch.synced.add(folder)
                    except OSError as error:  # it was removed, say: nobody else's concern
                        batch.errors[folder] = error
        finally:
            self._close(batch)  # also where this thread was interrupted while it waited
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
