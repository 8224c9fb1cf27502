"""Networks that an operator has registered in the object store for all workers.

`networks/NAME.json` is the definition, and `networks/weights/SHA-256` the weights file. Fetched files are cached in a
folder of this machine.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock

from pydantic import Field

from shared.errors import ModelUnavailable, StoreUnavailable
from shared.schemas import Preprocessing
from shared.store import BlobStore
from worker.networks.contents import sha256
from worker.networks.definitions import Definition, valid_name

log = logging.getLogger(__name__)

FOLDER = "networks"
REFRESH_SECONDS = 10.0  # between two reads of the store


class Entry(Definition):
    """A definition, with the properties of its file that were determined at registration."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int  # bytes
    layers: tuple[str, ...]  # that the weights cover
    of_file: Preprocessing | None  # from the file; None for grey input


class Registry:
    """The registered networks, cached.

    Args:
        store: the object store.
        folder: for fetched weights files; it need not exist.
    """

    def __init__(self, store: BlobStore, folder: Path) -> None:
        self.store = store
        self.folder = folder
        self._entries: dict[str, Entry] = {}
        self._refreshed_at = float("-inf")
        self._lock = Lock()

    def entries(self) -> dict[str, Entry]:
        """The cached entries by name, without reading the store."""
        return self._entries

    def refresh(self) -> None:
        """Read the store if the cache is older than ten seconds. If the store is unavailable the cache is unchanged."""
        with self._lock:
            if time.monotonic() - self._refreshed_at > REFRESH_SECONDS:
                try:
                    self._entries = self._read()
                except StoreUnavailable as error:
                    log.warning("the registered networks could not be read: %s", error)
                self._refreshed_at = time.monotonic()

    def add(self, name: str, entry: Entry, file: Path) -> None:
        """Register a network, or replace the one of this name. The file is written before the entry that refers to it.

        Raises:
            StoreUnavailable.
        """
        self.store.put_file(_weights(entry), file)
        self.store.note(_place(name), entry.model_dump_json(exclude_defaults=True))
        self._refreshed_at = float("-inf")

    def remove(self, name: str) -> bool:
        """Remove a network, and its file unless another network has the same. False if there is none of this name.

        Raises:
            StoreUnavailable.
        """
        try:
            entry = self.entry(name)
        except ValueError:  # its file is unknown
            self.store.forget_note(_place(name))
            return True
        if entry is None:
            return False
        entries = self._read()
        self.store.forget_note(_place(name))
        if entry.sha256 not in {other.sha256 for known, other in entries.items() if known != name}:
            self.store.forget_note(_weights(entry))
        self._refreshed_at = float("-inf")
        return True

    def entry(self, name: str) -> Entry | None:
        """The entry of this name in the store.

        Raises:
            StoreUnavailable.
            ValueError: the entry cannot be read, for example because it is of another version.
        """
        text = self.store.noted(_place(name), soon=True)
        return None if text is None else Entry.model_validate_json(text)

    def place(self, entry: Entry) -> Path:
        """The path of an entry's file on this machine, whether it was fetched or not."""
        return self.folder / entry.sha256 / entry.weights

    def fetch(self, entry: Entry) -> Path:
        """Fetch an entry's weights file, unless it is cached. Returns its path.

        Raises:
            ModelUnavailable: the file is missing or damaged in the store.
            StoreUnavailable.
        """
        file = self.place(entry)
        if file.exists() and sha256(file) == entry.sha256:  # otherwise it was truncated, for example by a power failure
            return file
        self.folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self.folder) as folder:
            part = Path(folder) / entry.weights
            digest = self.store.fetch(_weights(entry), part)
            if digest != entry.sha256:
                found = "is missing" if digest is None else f"has SHA-256 {digest[:8]}… instead of {entry.sha256[:8]}…"
                raise ModelUnavailable(
                    f"{entry.weights} in the object store {found}; register it again: kernelscope models add --replace"
                )
            file.parent.mkdir(exist_ok=True)
            part.replace(file)  # renamed only when it is complete
        return file

    def _read(self) -> dict[str, Entry]:
        found = {}
        for place in self.store.names(FOLDER):
            name = place.removesuffix(".json")
            if name == place or not valid_name(name):
                continue
            try:
                entry = self.entry(name)
            except ValueError as error:  # of another version, or written by another program
                log.warning("%s is registered in a format that cannot be read: %s", name, error)
                continue
            if entry:
                found[name] = entry
        return found


def _place(name: str) -> str:
    return f"{FOLDER}/{name}.json"


def _weights(entry: Entry) -> str:
    return f"{FOLDER}/weights/{entry.sha256}"
