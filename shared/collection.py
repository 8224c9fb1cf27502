"""Collections of objects of users in the object store, such as data sets: a folder for each object, an index by owner.

FOLDER/ID/facts.json      owner, time of creation, whether it is public, and the properties of its kind
FOLDER/of/OWNER/ID        index of the objects of an owner
FOLDER/public/ID          index of the public objects
FOLDER/removed/ID         recently deleted objects: their files are deleted again, as some may have been written since
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar

from shared.errors import DataSetFull, KernelscopeError, StoreUnavailable
from shared.jobs.ids import JOB_ID
from shared.store import BlobStore

CLEANED_FOR = timedelta(days=1)  # after an object was deleted
READERS = 8  # small files read at the same time


@dataclass(frozen=True, kw_only=True)
class StoredFacts:
    """The properties that all kinds of objects have."""

    owner: str
    public: bool = False
    created_at: str

    @property
    def made(self) -> datetime:
        """When the object was created."""
        return datetime.fromisoformat(self.created_at)


F = TypeVar("F", bound=StoredFacts)


def now() -> str:
    """The time, in the format of `created_at`."""
    return datetime.now(UTC).isoformat()


class Collection(Generic[F]):
    """All objects of one kind. Objects of other owners that are not public are treated as missing.

    Args:
        folder: in the store.
        kind: class of the objects' properties.
        missing: exception for an object that does not exist.
        called: name of the kind in messages.
        most: limit on the objects of one owner.
    """

    def __init__(
        self, store: BlobStore, folder: str, kind: type[F], missing: type[KernelscopeError], called: str, most: int
    ) -> None:
        self.store = store
        self.folder = folder
        self.kind = kind
        self.missing = missing
        self.called = called
        self.most = most

    def place(self, one: str, *parts: str) -> str:
        """The path of a file of an object."""
        return "/".join((self.folder, one, *parts))

    def put(self, one: str, facts: F) -> None:
        """Add an object, whose other files may have been written before.

        Raises:
            DataSetFull: the owner has too many.
            StoreUnavailable: also if the store may not be listed, as it would appear empty.
        """
        index = self._index(facts.owner)
        if len(self.store.names(index)) >= self.most:
            raise DataSetFull(f"you have {self.most} {self.called}s, the limit for one user; delete one")
        self._write(one, facts)
        self.store.note(f"{index}/{one}", "")
        if one not in self.store.names(index):
            raise StoreUnavailable("the object store may not be listed, which data sets need (s3:ListBucket)")

    def facts(self, one: str, owner: str | None) -> F:
        """The properties of an object, if this owner may see it; None: with access to all objects.

        Raises:
            KernelscopeError: `missing`.
        """
        text = self.store.get_at(self.place(one, "facts.json")) if JOB_ID.fullmatch(one) else None
        known = {each.name for each in fields(self.kind)}
        found = self.kind(**{name: it for name, it in json.loads(text).items() if name in known}) if text else None
        if found is None or not (found.public or owner in (found.owner, None)):
            raise self.missing(f"there is no {self.called} {one[:64]}")
        return found

    def own(self, one: str, owner: str, what: str) -> F:
        """As `facts`, but only for the object's owner; `what` is the forbidden action in the error message."""
        found = self.facts(one, owner)
        if found.owner != owner:
            raise self.missing(f"{self.called} {one} is not yours to {what}")
        return found

    def all(self, owner: str) -> dict[str, F]:
        """The objects of an owner and all public ones, by their ids; newest first."""
        ids = {*self.store.names(self._index(owner)), *self.store.names(f"{self.folder}/public")}
        known = sorted((one for one in ids if JOB_ID.fullmatch(one)), reverse=True)
        with ThreadPoolExecutor(READERS) as readers:
            found = list(readers.map(lambda one: self._facts_or_none(one, owner), known))
        there = {one: facts for one, facts in zip(known, found, strict=True) if facts is not None}
        return dict(sorted(there.items(), key=lambda pair: pair[1].made, reverse=True))

    def publish(self, one: str) -> None:
        """Make an object public: everybody may use it, and only its owner may change it."""
        self._write(one, replace(self.facts(one, None), public=True))
        self.store.note(f"{self.folder}/public/{one}", "")

    def remove(self, one: str, owner: str) -> None:
        """Delete an object. The index goes first, so that a partial deletion looks complete."""
        self.own(one, owner, "delete")
        self.store.note(f"{self.folder}/removed/{one}", now())
        for place in (f"{self._index(owner)}/{one}", f"{self.folder}/public/{one}", self.place(one, "facts.json")):
            self.store.forget_note(place)
        self.remove_files(one)

    def remove_files(self, one: str) -> None:
        """Delete all files of an object."""
        self.store.remove_folder(self.place(one, ""))

    def remove_deleted(self) -> int:
        """Delete the files of objects deleted in the last day again, also where that failed. Returns their number."""
        removed = f"{self.folder}/removed"
        found = [one for one in self.store.names(removed) if JOB_ID.fullmatch(one)]
        for one in found:
            self.remove_files(one)
            since = datetime.fromisoformat(self.store.noted(f"{removed}/{one}") or now())
            if datetime.now(UTC) - since > CLEANED_FOR:
                self.store.forget_note(f"{removed}/{one}")
        return len(found)

    def _facts_or_none(self, one: str, owner: str) -> F | None:
        try:
            return self.facts(one, owner)
        except self.missing:  # it is being deleted
            return None

    def _write(self, one: str, facts: F) -> None:
        self.store.put_at(self.place(one, "facts.json"), json.dumps(vars(facts)).encode())

    def _index(self, owner: str) -> str:
        return f"{self.folder}/of/{folder_of(owner)}"


def folder_of(owner: str) -> str:
    """The name of an owner's folder; names of owners may have characters that paths may not."""
    return hashlib.sha256(owner.encode()).hexdigest()[:32]
