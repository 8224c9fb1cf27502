"""Data sets: named collections of images, in the object store only (shared/collection.py).

    datasets/ID/images/SHA-256       each image once, as it was uploaded
    datasets/ID/parts/ID.json        one upload: names and digests of its images, and the rejected files

A part is written after all of its images, and never changed. So an upload that is interrupted adds no part, it can be
repeated, and readers of the existing parts are not affected by later uploads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from shared.collection import READERS, Collection, StoredFacts, now
from shared.errors import DataSetFull, DataSetNotFound
from shared.jobs.ids import new_id
from shared.schemas import DataSet, OddFile
from shared.store import BlobStore

MOST_SETS = 100  # of one owner
MOST_LISTED = 100  # rejected files in the response about a data set
MOST_ODD = 10_000  # rejected files that are stored; the response to an upload has all of its own
PART = re.compile(r"[0-9a-f]{32}\.json")


@dataclass(frozen=True, kw_only=True)
class DataSetFacts(StoredFacts):
    """The properties of a data set."""

    name: str


@dataclass
class DataSetContents:
    """The images and the rejected files of a data set."""

    images: dict[str, str] = field(default_factory=dict)  # digest → name, in the order of upload
    odd: dict[str, str] = field(default_factory=dict)  # name → reason, of rejected files

    def add(self, part: dict[str, list[list[str]]]) -> None:
        """Add a stored part."""
        for name, digest in part["images"]:
            self.images.setdefault(digest, name)
        self.odd.update((name, reason) for name, reason in part["odd"])


@dataclass
class Upload:
    """An upload of images to a data set. They become part of it on `close`."""

    sets: DataSets
    set_id: str
    facts: DataSetFacts
    contents: DataSetContents
    sent: list[tuple[str, str]] = field(default_factory=list)  # name and digest of each accepted image
    odd: list[OddFile] = field(default_factory=list)
    _new: dict[str, list[list[str]]] = field(default_factory=lambda: {"images": [], "odd": []})

    def take(self, name: str, data: bytes) -> None:
        """Add an image.

        Raises:
            DataSetFull.
        """
        digest = BlobStore.digest(data)
        if digest not in self.contents.images:
            if len(self.contents.images) >= self.sets.most_images:
                most = f"{self.sets.most_images:,}"
                raise DataSetFull(f"data set {self.set_id} has {most} images, which is the limit; create another one")
            self.sets.store.put_at(f"datasets/{self.set_id}/images/{digest}", data)
            self.contents.images[digest] = name
            self._new["images"].append([name, digest])
        self.sent.append((name, digest))

    def refuse(self, name: str, reason: str) -> None:
        """Record a rejected file."""
        self.odd.append(OddFile(name=name, reason=reason))
        if self.contents.odd.get(name) != reason and len(self.contents.odd) < MOST_ODD:
            self.contents.odd[name] = reason
            self._new["odd"].append([name, reason])

    def close(self) -> DataSet:
        """Write the part, unless it would be empty. Returns the data set.

        Raises:
            DataSetNotFound: it has been deleted in the meantime.
        """
        try:
            self.sets.collection.facts(self.set_id, self.facts.owner)
            if any(self._new.values()):
                place = f"datasets/{self.set_id}/parts/{new_id()}.json"
                self.sets.store.put_at(place, json.dumps(self._new).encode())
                self.sets.collection.facts(self.set_id, self.facts.owner)
        except DataSetNotFound:
            self.sets.collection.remove_files(self.set_id)
            raise
        return _described(self.set_id, self.facts, self.contents, self.facts.owner)


class DataSets:
    """The data sets of an object store.

    Args:
        most_images: limit on the images of one data set.
    """

    def __init__(self, store: BlobStore, most_images: int) -> None:
        self.store = store
        self.most_images = most_images
        self.collection = Collection(store, "datasets", DataSetFacts, DataSetNotFound, "data set", MOST_SETS)

    def create(self, owner: str, name: str) -> DataSet:
        """Create an empty data set. Raises as `Collection.put`."""
        set_id = new_id()
        facts = DataSetFacts(owner=owner, created_at=now(), name=name)
        self.collection.put(set_id, facts)
        return _described(set_id, facts, DataSetContents(), owner)

    def publish(self, set_id: str) -> None:
        """As `Collection.publish`. Raises DataSetNotFound."""
        self.collection.publish(set_id)

    def get(self, set_id: str, owner: str) -> DataSet:
        """A data set.

        Raises:
            DataSetNotFound.
        """
        return _described(set_id, self.collection.facts(set_id, owner), self._contents(set_id), owner)

    def images(self, set_id: str, owner: str) -> list[tuple[str, str]]:
        """Digest and name of each image, in the order of upload; the first name of an image that was uploaded twice.

        Raises:
            DataSetNotFound.
        """
        self.collection.facts(set_id, owner)
        return list(self._contents(set_id).images.items())

    def image(self, set_id: str, digest: str, owner: str | None) -> bytes:
        """The file of an image, if this owner may see the data set; None: with access to all.

        Raises:
            DataSetNotFound: also if the image is missing, as the data set is being deleted then.
        """
        self.collection.facts(set_id, owner)
        data = self.store.get_at(f"datasets/{set_id}/images/{digest}")
        if data is None:
            raise DataSetNotFound(f"data set {set_id} has no image {digest}")
        return data

    def all(self, owner: str) -> list[DataSet]:
        """The data sets of an owner and all public ones, newest first."""
        found = self.collection.all(owner)
        return [_described(set_id, facts, self._contents(set_id), owner) for set_id, facts in found.items()]

    def open(self, set_id: str, owner: str) -> Upload:
        """Start an upload; only for the owner.

        Raises:
            DataSetNotFound.
        """
        return Upload(self, set_id, self.collection.own(set_id, owner, "change"), self._contents(set_id))

    def remove(self, set_id: str, owner: str) -> None:
        """Delete a data set. Raises DataSetNotFound."""
        self.collection.remove(set_id, owner)

    def _contents(self, set_id: str) -> DataSetContents:
        found = DataSetContents()
        for part in self._parts(set_id):
            found.add(json.loads(part))
        return found

    def _parts(self, set_id: str) -> Iterator[bytes]:
        """The stored parts, in the order of upload."""
        folder = f"datasets/{set_id}/parts"
        names = [name for name in self.store.names(folder) if PART.fullmatch(name)]
        if names:
            with ThreadPoolExecutor(READERS) as readers:
                yield from filter(None, readers.map(lambda name: self.store.get_at(f"{folder}/{name}"), names))


def _described(set_id: str, facts: DataSetFacts, contents: DataSetContents, owner: str) -> DataSet:
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
        odd=[OddFile(name=name, reason=reason) for name, reason in odd[:MOST_LISTED]],
        links={"self": here, "images": f"{here}/images"},
    )
