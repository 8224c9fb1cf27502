"""Networks that an operator has registered in the object store, where every worker finds them.

`networks/NAME.json` says what the name stands for, and `networks/weights/SHA-256` is the file. What was fetched is kept
in a folder of this machine.
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
from worker.networks.definitions import Definition, may_be

log = logging.getLogger(__name__)

FOLDER = "networks"
LOOK_SECONDS = 10.0  # after which the store is asked again what is registered


class Entry(Definition):
    """A definition, and what the command that registered it has found in the file."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int  # bytes
    layers: tuple[str, ...]  # that the weights cover
    of_file: Preprocessing | None  # as the file says; None of grey


class Registry:
    """What is registered.

    Args:
        folder: for weights files that were fetched; it need not exist.
    """

    def __init__(self, store: BlobStore, folder: Path) -> None:
        self.store = store
        self.folder = folder
        self._entries: dict[str, Entry] = {}
        self._looked_at = float("-inf")
        self._lock = Lock()

    def entries(self) -> dict[str, Entry]:
        """By name, as they were when they were last looked at: nobody waits for the store."""
        return self._entries

    def look(self) -> None:
        """Ask the store, if that was some seconds ago. While it is away everything is as it was."""
        with self._lock:
            if time.monotonic() - self._looked_at > LOOK_SECONDS:
                try:
                    self._entries = self._read()
                except StoreUnavailable as error:
                    log.warning("what is registered is not known anew: %s", error)
                self._looked_at = time.monotonic()

    def add(self, name: str, entry: Entry, file: Path) -> None:
        """Register a network, in place of what has the name: first the file, then what refers to it.

        Raises:
            StoreUnavailable.
        """
        self.store.put_file(_weights(entry), file)
        self.store.note(_place(name), entry.model_dump_json(exclude_defaults=True))
        self._looked_at = float("-inf")

    def remove(self, name: str) -> bool:
        """Register it no more; its file goes too, unless another name has it. False where there is no such name.

        Raises:
            StoreUnavailable.
        """
        try:
            entry = self.entry(name)
        except ValueError:  # nobody knows which file is its
            self.store.forget_note(_place(name))
            return True
        if entry is None:
            return False
        entries = self._read()
        self.store.forget_note(_place(name))
        if entry.sha256 not in {other.sha256 for known, other in entries.items() if known != name}:
            self.store.forget_note(_weights(entry))
        self._looked_at = float("-inf")
        return True

    def entry(self, name: str) -> Entry | None:
        """What has this name in the store now.

        Raises:
            StoreUnavailable.
            ValueError: it is of another version, say, and cannot be read.
        """
        text = self.store.noted(_place(name), soon=True)
        return None if text is None else Entry.model_validate_json(text)

    def place(self, entry: Entry) -> Path:
        """Where an entry's file is on this machine, once it was fetched."""
        return self.folder / entry.sha256 / entry.weights

    def fetch(self, entry: Entry) -> Path:
        """An entry's weights file, on this machine.

        Raises:
            ModelUnavailable: the store does not have it whole.
            StoreUnavailable.
        """
        file = self.place(entry)
        if file.exists() and sha256(file) == entry.sha256:  # else it was cut short, by a power cut say
            return file
        self.folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self.folder) as folder:
            part = Path(folder) / entry.weights
            digest = self.store.fetch(_weights(entry), part)
            if digest != entry.sha256:
                found = (
                    "is not there" if digest is None else f"has SHA-256 {digest[:8]}… instead of {entry.sha256[:8]}…"
                )
                raise ModelUnavailable(
                    f"{entry.weights} in the object store {found}; register it again: kernelscope models add --replace"
                )
            file.parent.mkdir(exist_ok=True)
            part.replace(file)  # under its own name only when it is whole
        return file

    def _read(self) -> dict[str, Entry]:
        found = {}
        for place in self.store.names(FOLDER):
            name = place.removesuffix(".json")
            if name == place or not may_be(name):
                continue
            try:
                entry = self.entry(name)
            except ValueError as error:  # of another version, or not by our command
                log.warning("%s is registered in a way that cannot be read here: %s", name, error)
                continue
            if entry:
                found[name] = entry
        return found


def _place(name: str) -> str:
    return f"{FOLDER}/{name}.json"


def _weights(entry: Entry) -> str:
    return f"{FOLDER}/weights/{entry.sha256}"
