"""What callers keep in the object store until they delete it: each thing in a folder of its own, with a list by owner.

FOLDER/ID/facts.json      whose it is, when it was made, whether everybody may use it, and what else is said of it
FOLDER/of/OWNER/ID        which ones an owner has
FOLDER/public/ID          which are everybody's
FOLDER/removed/ID         which were deleted lately, and when: their files are swept again, whoever wrote some since
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

SWEPT_FOR = timedelta(days=1)
READERS = 8  # of small files at once


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is said of a thing."""

    owner: str
    public: bool = False
    created_at: str

    @property
    def made(self) -> datetime:
        """When."""
        return datetime.fromisoformat(self.created_at)


F = TypeVar("F", bound=Facts)


def now() -> str:
    """As `created_at` has it."""
    return datetime.now(UTC).isoformat()


class Shelf(Generic[F]):
    """Things of one kind. What is another owner's, and not everybody's, does not exist.

    Args:
        folder: of the store.
        kind: of their facts.
        missing: what is raised of one that does not exist.
        called: by people.
        most: of one owner.
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
        """Of a file of a thing."""
        return "/".join((self.folder, one, *parts))

    def put(self, one: str, facts: F) -> None:
        """A new one; what it consists of may be there before.

        Raises:
            DataSetFull: the owner has too many.
            StoreUnavailable: also of a store that may not be listed, in which it would look empty.
        """
        known = self._of(facts.owner)
        if len(self.store.names(known)) >= self.most:
            raise DataSetFull(f"you have {self.most} {self.called}s, the most that one may have; delete one")
        self._write(one, facts)
        self.store.note(f"{known}/{one}", "")
        if one not in self.store.names(known):
            raise StoreUnavailable("the object store may not be listed, which data sets need (s3:ListBucket)")

    def facts(self, one: str, owner: str | None) -> F:
        """What is said of one; for an owner, or for whoever may see all (None).

        Raises:
            KernelscopeError: the one that says that it does not exist.
        """
        text = self.store.get_at(self.place(one, "facts.json")) if JOB_ID.fullmatch(one) else None
        known = {each.name for each in fields(self.kind)}
        found = self.kind(**{name: it for name, it in json.loads(text).items() if name in known}) if text else None
        if found is None or not (found.public or owner in (found.owner, None)):
            raise self.missing(f"there is no {self.called} {one[:64]}")
        return found

    def own(self, one: str, owner: str, what: str) -> F:
        """The same, for its owner alone: everybody else may not do this."""
        found = self.facts(one, owner)
        if found.owner != owner:
            raise self.missing(f"{self.called} {one} is not yours to {what}")
        return found

    def all(self, owner: str) -> dict[str, F]:
        """An owner's, and everybody's, by their ids; the newest first."""
        ids = {*self.store.names(self._of(owner)), *self.store.names(f"{self.folder}/public")}
        known = sorted((one for one in ids if JOB_ID.fullmatch(one)), reverse=True)
        with ThreadPoolExecutor(READERS) as readers:
            found = list(readers.map(lambda one: self._there(one, owner), known))
        there = {one: facts for one, facts in zip(known, found, strict=True) if facts is not None}
        return dict(sorted(there.items(), key=lambda pair: pair[1].made, reverse=True))

    def publish(self, one: str) -> None:
        """Everybody may use it from now on. Its owner alone may change it."""
        self._write(one, replace(self.facts(one, None), public=True))
        self.store.note(f"{self.folder}/public/{one}", "")

    def remove(self, one: str, owner: str) -> None:
        """Remove all of it; first what makes it known, so that one that is removed by half is gone."""
        self.own(one, owner, "delete")
        self.store.note(f"{self.folder}/removed/{one}", now())
        for place in (f"{self._of(owner)}/{one}", f"{self.folder}/public/{one}", self.place(one, "facts.json")):
            self.store.forget_note(place)
        self.sweep(one)

    def sweep(self, one: str) -> None:
        """Remove the files of one that does not exist any more."""
        self.store.remove_folder(self.place(one, ""))

    def sweep_removed(self) -> int:
        """The same of all that were deleted in the last day: a deletion may have broken off. Returns how many."""
        noted = f"{self.folder}/removed"
        found = [one for one in self.store.names(noted) if JOB_ID.fullmatch(one)]
        for one in found:
            self.sweep(one)
            since = datetime.fromisoformat(self.store.noted(f"{noted}/{one}") or now())
            if datetime.now(UTC) - since > SWEPT_FOR:
                self.store.forget_note(f"{noted}/{one}")
        return len(found)

    def _there(self, one: str, owner: str) -> F | None:
        try:
            return self.facts(one, owner)
        except self.missing:  # it is being deleted
            return None

    def _write(self, one: str, facts: F) -> None:
        self.store.put_at(self.place(one, "facts.json"), json.dumps(vars(facts)).encode())

    def _of(self, owner: str) -> str:
        """An owner's name may have letters that paths have not."""
        return f"{self.folder}/of/{folder_of(owner)}"


def folder_of(owner: str) -> str:
    """The name of an owner's folder."""
    return hashlib.sha256(owner.encode()).hexdigest()[:32]
