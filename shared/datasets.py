"""Data sets: many images under one name, in the object store alone (shared/shelves.py).

    datasets/ID/images/SHA-256       each image once, as it came
    datasets/ID/parts/ID.json        what one upload brought: images by name and digest, and what was refused

A part is written when all of its images are there, and never changed. So an upload that breaks off leaves a data set
without its last part, the same upload again brings the same images, and who works through the parts that there are now
is not disturbed by those that come.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from shared import shelves
from shared.errors import DataSetFull, DataSetNotFound
from shared.jobs.ids import new_id
from shared.schemas import DataSet, OddFile
from shared.shelves import READERS, Shelf
from shared.store import BlobStore

MOST_SETS = 100  # of one owner
MOST_TOLD = 100  # refused files that are listed with a data set
MOST_ODD = 10_000  # refused files that are remembered; an upload's own are always told
PART = re.compile(r"[0-9a-f]{32}\.json")


@dataclass(frozen=True, kw_only=True)
class Facts(shelves.Facts):
    """What is said of a data set."""

    name: str


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
            self.sets.shelf.facts(self.set_id, self.facts.owner)
            if any(self._new.values()):
                place = f"datasets/{self.set_id}/parts/{new_id()}.json"
                self.sets.store.put_at(place, json.dumps(self._new).encode())
                self.sets.shelf.facts(self.set_id, self.facts.owner)
        except DataSetNotFound:  # nothing of it stays
            self.sets.shelf.sweep(self.set_id)
            raise
        return _described(self.set_id, self.facts, self.contents, self.facts.owner)


class DataSets:
    """Those of a store.

    Args:
        most_images: of one data set.
    """

    def __init__(self, store: BlobStore, most_images: int) -> None:
        self.store = store
        self.most_images = most_images
        self.shelf = Shelf(store, "datasets", Facts, DataSetNotFound, "data set", MOST_SETS)

    def create(self, owner: str, name: str) -> DataSet:
        """An empty one. Raises as `Shelf.put`."""
        set_id = new_id()
        facts = Facts(owner=owner, created_at=shelves.now(), name=name)
        self.shelf.put(set_id, facts)
        return _described(set_id, facts, Contents(), owner)

    def publish(self, set_id: str) -> None:
        """As `Shelf.publish`. Raises DataSetNotFound."""
        self.shelf.publish(set_id)

    def get(self, set_id: str, owner: str) -> DataSet:
        """A data set with its counts.

        Raises:
            DataSetNotFound.
        """
        return _described(set_id, self.shelf.facts(set_id, owner), self._contents(set_id), owner)

    def images(self, set_id: str, owner: str) -> list[tuple[str, str]]:
        """Digest and name of each image, in the order in which they came; of one that came twice the first name.

        Raises:
            DataSetNotFound.
        """
        self.shelf.facts(set_id, owner)
        return list(self._contents(set_id).images.items())

    def image(self, set_id: str, digest: str, owner: str | None) -> bytes:
        """The bytes of one of them, for an owner, or for whoever may see all (None).

        Raises:
            DataSetNotFound: also where the image is gone: only a data set that is being deleted loses one.
        """
        self.shelf.facts(set_id, owner)
        data = self.store.get_at(f"datasets/{set_id}/images/{digest}")
        if data is None:
            raise DataSetNotFound(f"data set {set_id} has no image {digest}")
        return data

    def all(self, owner: str) -> list[DataSet]:
        """An owner's, and everybody's; the newest first."""
        return [
            _described(set_id, facts, self._contents(set_id), owner) for set_id, facts in self.shelf.all(owner).items()
        ]

    def open(self, set_id: str, owner: str) -> Upload:
        """For its owner, to add images.

        Raises:
            DataSetNotFound.
        """
        return Upload(self, set_id, self.shelf.own(set_id, owner, "change"), self._contents(set_id))

    def remove(self, set_id: str, owner: str) -> None:
        """Remove all of it. Raises DataSetNotFound."""
        self.shelf.remove(set_id, owner)

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
        created_at=facts.made,
        public=facts.public,
        mine=facts.owner == owner,
        images=len(contents.images),
        refused=len(odd),
        odd=[OddFile(name=name, reason=reason) for name, reason in odd[:MOST_TOLD]],
        links={"self": here, "images": f"{here}/images"},
    )
