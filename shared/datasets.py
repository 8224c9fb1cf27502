"""Data sets: many images under one name, in the object store alone.

    datasets/ID/set.json             its name, its owner, when it was made, whether everybody may use it
    datasets/ID/images/SHA-256       each image once, as it came
    datasets/ID/parts/ID.json        what one upload brought: images by name and digest, and what was refused
    datasets/of/OWNER/ID             which data sets an owner has; datasets/public/ID: which are everybody's

A part is written when all of its images are there, and never changed. So an upload that breaks off leaves a data set
without its last part, the same upload again brings the same images, and who works through the parts that there are now
is not disturbed by those that come.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime

from shared.errors import DataSetFull, DataSetNotFound, StoreUnavailable
from shared.jobs.ids import JOB_ID, new_id
from shared.schemas import DataSet, OddFile
from shared.store import BlobStore

READERS = 8  # of parts at once
MOST_SETS = 100  # of one owner
MOST_TOLD = 100  # refused files that are listed with a data set
MOST_ODD = 10_000  # refused files that are remembered; an upload's own are always told
PART = re.compile(r"[0-9a-f]{32}\.json")


@dataclass(frozen=True)
class Facts:
    """What set.json says."""

    name: str
    owner: str
    public: bool
    created_at: str

    def to_json(self) -> bytes:
        """As it is stored."""
        return json.dumps(vars(self)).encode()


@dataclass
class Contents:
    """What a data set has."""

    images: dict[str, str] = field(default_factory=dict)  # name by digest, in the order in which they came
    odd: dict[str, str] = field(default_factory=dict)  # reason by name, of files that were refused

    def add(self, part: dict[str, list[list[str]]]) -> None:
        """A part's, as it is stored."""
        for name, digest in part["images"]:
            self.images.setdefault(digest, name)
        self.odd.update((name, reason) for name, reason in part["odd"])


@dataclass
class Upload:
    """Images on their way into a data set; they are its own when this is closed."""

    sets: DataSets
    set_id: str
    facts: Facts
    contents: Contents
    sent: list[tuple[str, str]] = field(default_factory=list)  # name and digest of each image that was taken
    odd: list[OddFile] = field(default_factory=list)
    _new: dict[str, list[list[str]]] = field(default_factory=lambda: {"images": [], "odd": []})

    def take(self, name: str, data: bytes) -> None:
        """An image.

        Raises:
            DataSetFull.
        """
        digest = BlobStore.digest(data)
        if digest not in self.contents.images:
            if len(self.contents.images) >= self.sets.most_images:
                most = f"{self.sets.most_images:,}"
                raise DataSetFull(
                    f"data set {self.set_id} has {most} images, the most that one may have; begin another"
                )
            self.sets.store.put_at(f"datasets/{self.set_id}/images/{digest}", data)
            self.contents.images[digest] = name
            self._new["images"].append([name, digest])
        self.sent.append((name, digest))

    def refuse(self, name: str, reason: str) -> None:
        """A file that is no image."""
        self.odd.append(OddFile(name=name, reason=reason))
        if self.contents.odd.get(name) != reason and len(self.contents.odd) < MOST_ODD:
            self.contents.odd[name] = reason
            self._new["odd"].append([name, reason])

    def close(self) -> DataSet:
        """The data set with what is new, if anything is.

        Raises:
            DataSetNotFound: it was deleted meanwhile.
        """
        try:
            self.sets.facts(self.set_id, self.facts.owner)
            if any(self._new.values()):
                place = f"datasets/{self.set_id}/parts/{new_id()}.json"
                self.sets.store.put_at(place, json.dumps(self._new).encode())
                self.sets.facts(self.set_id, self.facts.owner)
        except DataSetNotFound:  # nothing of it stays
            self.sets.store.remove_folder(f"datasets/{self.set_id}/")
            raise
        return _described(self.set_id, self.facts, self.contents, self.facts.owner)


class DataSets:
    """Those of a store. What is another owner's, and not everybody's, does not exist.

    Args:
        most_images: of one data set.
    """

    def __init__(self, store: BlobStore, most_images: int) -> None:
        self.store = store
        self.most_images = most_images

    def create(self, owner: str, name: str) -> DataSet:
        """An empty one.

        Raises:
            DataSetFull: the owner has too many.
            StoreUnavailable: also of a store that may not be listed, in which a data set would look empty.
        """
        known = f"datasets/of/{_folder_of(owner)}"
        if len(self.store.names(known)) >= MOST_SETS:
            raise DataSetFull(f"you have {MOST_SETS} data sets, the most that one may have; delete one")
        set_id = new_id()
        facts = Facts(name, owner, public=False, created_at=datetime.now(UTC).isoformat())
        self.store.put_at(f"datasets/{set_id}/set.json", facts.to_json())
        self.store.note(f"{known}/{set_id}", "")
        if set_id not in self.store.names(known):
            raise StoreUnavailable("the object store may not be listed, which data sets need (s3:ListBucket)")
        return _described(set_id, facts, Contents(), owner)

    def publish(self, set_id: str) -> None:
        """Everybody may use it from now on. Its owner alone may change it.

        Raises:
            DataSetNotFound.
        """
        facts = self.facts(set_id, None)
        published = Facts(facts.name, facts.owner, public=True, created_at=facts.created_at)
        self.store.put_at(f"datasets/{set_id}/set.json", published.to_json())
        self.store.note(f"datasets/public/{set_id}", "")

    def get(self, set_id: str, owner: str) -> DataSet:
        """A data set with its counts.

        Raises:
            DataSetNotFound.
        """
        return _described(set_id, self.facts(set_id, owner), self._contents(set_id), owner)

    def images(self, set_id: str, owner: str) -> list[tuple[str, str]]:
        """Digest and name of each image, in the order in which they came; of one that came twice the first name.

        Raises:
            DataSetNotFound.
        """
        self.facts(set_id, owner)
        return list(self._contents(set_id).images.items())

    def all(self, owner: str) -> list[DataSet]:
        """An owner's, and everybody's; the newest first."""
        ids = {*self.store.names(f"datasets/of/{_folder_of(owner)}"), *self.store.names("datasets/public")}
        there = (self._there(set_id, owner) for set_id in sorted(ids, reverse=True) if JOB_ID.fullmatch(set_id))
        return [one for one in there if one]

    def open(self, set_id: str, owner: str) -> Upload:
        """For its owner, to add images.

        Raises:
            DataSetNotFound.
        """
        facts = self.facts(set_id, owner)
        if facts.owner != owner:
            raise DataSetNotFound(f"data set {set_id} is not yours to change")
        return Upload(self, set_id, facts, self._contents(set_id))

    def remove(self, set_id: str, owner: str) -> None:
        """Remove all of it; first what makes it known, so that one that is removed by half is gone.

        Raises:
            DataSetNotFound.
        """
        if self.facts(set_id, owner).owner != owner:
            raise DataSetNotFound(f"data set {set_id} is not yours to delete")
        self.store.forget_note(f"datasets/of/{_folder_of(owner)}/{set_id}")
        self.store.forget_note(f"datasets/public/{set_id}")
        self.store.forget_note(f"datasets/{set_id}/set.json")
        self.store.remove_folder(f"datasets/{set_id}/")

    def facts(self, set_id: str, owner: str | None) -> Facts:
        """What set.json says; for an owner, or for whoever may see all (None).

        Raises:
            DataSetNotFound.
        """
        text = self.store.get_at(f"datasets/{set_id}/set.json") if JOB_ID.fullmatch(set_id) else None
        facts = Facts(**json.loads(text)) if text else None
        if facts is None or not (facts.public or owner in (facts.owner, None)):
            raise DataSetNotFound(f"there is no data set {set_id[:64]}")
        return facts

    def _there(self, set_id: str, owner: str) -> DataSet | None:
        try:
            return self.get(set_id, owner)
        except DataSetNotFound:  # it is being deleted
            return None

    def _contents(self, set_id: str) -> Contents:
        found = Contents()
        for part in self._parts(set_id):
            found.add(json.loads(part))
        return found

    def _parts(self, set_id: str) -> Iterator[bytes]:
        """In the order in which they came."""
        folder = f"datasets/{set_id}/parts"
        names = [name for name in self.store.names(folder) if PART.fullmatch(name)]
        if names:
            with ThreadPoolExecutor(READERS) as readers:
                yield from filter(None, readers.map(lambda name: self.store.get_at(f"{folder}/{name}"), names))


def _described(set_id: str, facts: Facts, contents: Contents, owner: str) -> DataSet:
    here = f"/datasets/{set_id}"
    odd = list(contents.odd.items())
    return DataSet(
        id=set_id,
        name=facts.name,
        created_at=datetime.fromisoformat(facts.created_at),
        public=facts.public,
        mine=facts.owner == owner,
        images=len(contents.images),
        refused=len(odd),
        odd=[OddFile(name=name, reason=reason) for name, reason in odd[:MOST_TOLD]],
        links={"self": here, "images": f"{here}/images"},
    )


def _folder_of(owner: str) -> str:
    """An owner's name may have letters that paths have not."""
    return hashlib.sha256(owner.encode()).hexdigest()[:32]
