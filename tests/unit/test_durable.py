"""Group commit of files: what is on the disk when a write returns, and how many syncs that takes."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Lock

import pytest

from shared.durable import Durable

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc to name an open file by")


class Disk:
    """What `os.fsync` and `os.replace` did, in order; a sync of a folder may be made to wait, or to fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[tuple[str, Path]] = []
        self.before: Callable[[Path], None] = lambda _: None
        self._lock = Lock()
        fsync, replace = os.fsync, os.replace

        def synced(handle: int) -> None:
            path = Path(f"/proc/self/fd/{handle}").readlink()
            self.before(path)
            fsync(handle)
            self._note("sync", path)

        def replaced(old: Path, new: Path) -> None:
            replace(old, new)
            self._note("name", Path(new))

        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(os, "replace", replaced)

    def syncs(self, path: Path) -> int:
        """How often a path was synced."""
        return self.done.count(("sync", path))

    def _note(self, what: str, path: Path) -> None:
        with self._lock:
            self.done.append((what, path))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """A disk that is watched."""
    return Disk(monkeypatch)


def test_the_order_of_a_write(tmp_path: Path, disk: Disk) -> None:
    """The bytes, then their name, then every folder that leads to it; nothing above the root."""
    file = tmp_path / "jobs" / "ab" / "digest"
    Durable(tmp_path / "jobs").write({file: b"bytes"})
    (first, part), second, *rest = disk.done
    assert (first, part.parent) == ("sync", file.parent)
    assert part.name.startswith("digest.")
    assert second == ("name", file)
    assert rest == [("sync", file.parent), ("sync", tmp_path / "jobs")]
    assert file.read_bytes() == b"bytes"
    assert list(file.parent.iterdir()) == [file]


def test_several_files_take_one_sync_of_their_folder(tmp_path: Path, disk: Disk) -> None:
    """A result's five, written here or by another thread; also over existing ones."""
    folder, durable = tmp_path / "ab", Durable(tmp_path)
    files = {folder / str(number): b"bytes" for number in range(5)}
    durable.write(files)
    assert (disk.syncs(folder), disk.syncs(tmp_path)) == (1, 1)
    disk.done.clear()
    durable.sync(list(files))
    assert disk.done == [*(("sync", file) for file in files), ("sync", folder)]  # its own name is there by now
    durable.write(dict.fromkeys(files, b"others"))
    assert {file.read_bytes() for file in files} == {b"others"}


def test_who_comes_while_a_folder_is_synced_shares_the_next_sync(tmp_path: Path, disk: Disk) -> None:
    """Not the one that runs, which may have missed the new name; and not one each."""
    durable, runs, go_on = Durable(tmp_path), Event(), Event()

    def held(path: Path) -> None:
        if path == tmp_path and not runs.is_set():
            runs.set()
            assert go_on.wait(10)

    disk.before = held
    with ThreadPoolExecutor(9) as threads:
        first = threads.submit(durable.write, {tmp_path / "first": b"1"})
        assert runs.wait(10)
        others = [threads.submit(durable.write, {tmp_path / str(number): b"2"}) for number in range(8)]
        while disk.done.count(("name", tmp_path / "7")) == 0 or sum(what == "name" for what, _ in disk.done) < 9:
            time.sleep(0.001)
        assert not any(other.done() for other in others)
        go_on.set()
        for each in (first, *others):
            each.result(10)
    assert 2 <= disk.syncs(tmp_path) <= 3  # two, unless one of them had its name and was not in line yet


def test_no_write_returns_before_a_sync_that_began_after_its_rename(tmp_path: Path, disk: Disk) -> None:
    """Many threads, many writes: as a strace would show it."""
    durable, lock = Durable(tmp_path), Lock()
    sync_began: list[int] = []  # names that were there when each sync of the folder began

    def noted(path: Path) -> None:
        if path == tmp_path:
            with lock:
                sync_began.append(sum(what == "name" for what, _ in disk.done))

    disk.before = noted

    def write(number: int) -> bool:
        file = tmp_path / str(number)
        durable.write({file: b"bytes"})
        place = [path for what, path in disk.done if what == "name"].index(file)
        return any(count > place for count in sync_began)

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(write, range(200)))
    assert disk.syncs(tmp_path) < 200


def test_a_folder_that_cannot_be_synced_fails_only_its_writers(tmp_path: Path, disk: Disk) -> None:
    """The disk is full, or the folder was removed meanwhile; the next write is none the worse for it."""
    durable, bad = Durable(tmp_path), tmp_path / "bad"

    def full(path: Path) -> None:
        if path == bad:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    disk.before = full
    with ThreadPoolExecutor(8) as threads:
        kept = [threads.submit(durable.write, {tmp_path / "good" / str(number): b"1"}) for number in range(4)]
        lost = [threads.submit(durable.write, {bad / str(number): b"1"}) for number in range(4)]
        for each in kept:
            each.result(10)
        for each in lost:
            with pytest.raises(OSError, match="No space left"):
                each.result(10)
    disk.before = lambda _: None
    durable.write({bad / "0": b"2"})


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, disk: Disk) -> None:
    """Of a file whose bytes could not be synced, not even a part; what was there before stays."""
    durable, file = Durable(tmp_path), tmp_path / "file"
    durable.write({file: b"old"})

    def broken(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    disk.before = broken
    with pytest.raises(OSError, match="Input/output"):
        durable.write({file: b"new"})
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]
