"""Surveys, in the object store only (shared/collection.py). Their progress is that of their jobs.

    surveys/ID/facts.json              data set, network, layers and number of images
    surveys/ID/images/N.json           digest and name of each image of part N
    surveys/ID/network.json            the network's weights
    surveys/ID/parts/N.npz             the results of part N (shared/surveys/parts.py)
    surveys/ID/layers/N/LAYER.npz      the combined results of N parts for a layer
    surveys/ID/explained/OWNER/…       the jobs that explain kernels, for each owner
    datasets/ID/crops/…                crops of images, deleted with the data set

A part is deterministic: the same images in the same order always have the same results.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock

from pydantic import BaseModel, ConfigDict

from shared.collection import READERS, Collection, StoredFacts, folder_of
from shared.datasets import DataSets
from shared.errors import InvalidRequest, NetworkChanged, SurveyNotFound
from shared.images import Frame
from shared.schemas import WeightsUsed
from shared.store import BlobStore
from shared.surveys.parts import Part, Whole, join, kernels_of, packed

PART_IMAGES = 256
MOST_SURVEYS = 200  # of one owner
MOST_PRODUCTS = 2**25  # products of two kernels that are summed at the same time: 256 MB
NUMBER = re.compile(r"(\d+)\.(?:npz|json)")
KEPT_LISTS = 64  # cached lists of images
KEPT_LAYERS = 32  # cached layers

Images = list[tuple[str, str]]  # digest and name of each


@dataclass(frozen=True, kw_only=True)
class SurveyFacts(StoredFacts):
    """The properties of a survey."""

    dataset: str
    dataset_name: str
    model: str
    layers: list[str]
    images: int

    @property
    def parts(self) -> int:
        """The number of parts."""
        return -(-self.images // PART_IMAGES)

    def surveyed(self, parts: Sequence[int]) -> int:
        """The number of images in these parts."""
        return sum(min(self.images, first_of(number + 1)) - first_of(number) for number in parts)


class Used(BaseModel):
    """The weights and the input frame of a survey's network."""

    model_config = ConfigDict(frozen=True)

    weights: WeightsUsed
    frame: Frame


class Surveys:
    """The surveys in an object store. A survey has the id of its job."""

    def __init__(self, store: BlobStore, datasets: DataSets) -> None:
        self.store = store
        self.datasets = datasets
        self.collection = Collection(store, "surveys", SurveyFacts, SurveyNotFound, "survey", MOST_SURVEYS)
        self._layer = lru_cache(KEPT_LAYERS)(self._read_layer)
        self._images = lru_cache(KEPT_LISTS)(self._read_images)
        self._joining = Lock()

    def create(self, survey_id: str, facts: SurveyFacts, parts: Sequence[Images]) -> None:
        """Create a survey of these images. Raises as `Collection.put`."""
        with ThreadPoolExecutor(READERS) as writers:
            list(writers.map(lambda one: self._put_images(survey_id, *one), enumerate(parts)))
        self.collection.put(survey_id, facts)

    def publish(self, survey_id: str) -> None:
        """Make a survey public.

        Raises:
            SurveyNotFound, DataSetNotFound.
            InvalidRequest: its images are not public.
        """
        dataset = self.collection.facts(survey_id, None).dataset
        if not self.datasets.collection.facts(dataset, None).public:
            raise InvalidRequest(f"its images are not public: run `kernelscope datasets publish {dataset}` first")
        self.collection.publish(survey_id)

    def images(self, survey_id: str, number: int) -> Images:
        """The images of a part.

        Raises:
            SurveyNotFound: it was deleted.
        """
        return self._images(survey_id, number)

    def _read_images(self, survey_id: str, number: int) -> Images:
        text = self.store.get_at(self.collection.place(survey_id, "images", f"{number}.json"))
        if text is None:
            raise SurveyNotFound(f"survey {survey_id} was deleted")
        return [(digest, name) for digest, name in json.loads(text)]

    def image(self, survey_id: str, number: int) -> tuple[str, str]:
        """Digest and name of an image by its number. Raises SurveyNotFound, IndexError."""
        return self.images(survey_id, number // PART_IMAGES)[number % PART_IMAGES]

    def used(self, survey_id: str) -> Used | None:
        """The network of a survey; None before its first part is started."""
        text = self.store.get_at(self.collection.place(survey_id, "network.json"))
        return Used.model_validate_json(text) if text else None

    def begin(self, survey_id: str, used: Used) -> None:
        """Start a part. The network of the first part is recorded, and all others must use the same.

        Raises:
            SurveyNotFound: it was deleted.
            NetworkChanged: the first part used another network.
        """
        self.collection.facts(survey_id, None)
        if self.used(survey_id) is None:
            self.store.put_at(self.collection.place(survey_id, "network.json"), used.model_dump_json().encode())
        known = self.used(survey_id)
        if known is not None and known != used:
            before, after = (f"{one.weights.source} ({one.weights.sha256[:12]}…)" for one in (known, used))
            raise NetworkChanged(
                f"the survey was started with the weights {before}, and the network has {after} now, or a different "
                "preprocessing; create a new survey"
            )

    def put_part(self, survey_id: str, number: int, layers: dict[str, Part], used: Used) -> None:
        """Store the results of a part.

        Raises:
            SurveyNotFound: it has been deleted in the meantime; its files are deleted again.
            NetworkChanged: as `begin`; detected here if two parts were started at the same time.
        """
        self.begin(survey_id, used)
        self.store.put_at(self.collection.place(survey_id, "parts", f"{number}.npz"), packed(layers))
        try:
            facts, parts = self.collection.facts(survey_id, None), self.parts(survey_id)
            if len(parts) == facts.parts:
                self.join(survey_id, parts, facts.layers)
            self.collection.facts(survey_id, None)
        except SurveyNotFound:
            self.collection.remove_files(survey_id)
            raise

    def parts(self, survey_id: str) -> list[int]:
        """The numbers of the parts that are done."""
        names = map(NUMBER.fullmatch, self.store.names(self.collection.place(survey_id, "parts")))
        return sorted(int(name[1]) for name in names if name)

    def layer(self, survey_id: str, layer: str) -> Whole | None:
        """The results for a layer from the parts that are done; None if there are none, or no such layer."""
        facts, parts = self.collection.facts(survey_id, None), self.parts(survey_id)
        if not parts or layer not in facts.layers:
            return None
        return self._layer(survey_id, layer, tuple(parts))

    def _read_layer(self, survey_id: str, layer: str, parts: tuple[int, ...]) -> Whole | None:
        place = self._place(survey_id, len(parts), layer)
        data = self.store.get_at(place)
        if data is None:
            with self._joining:
                if (data := self.store.get_at(place)) is None:
                    self.join(survey_id, parts, [layer])
                    data = self.store.get_at(place)
        return Whole.from_bytes(data) if data else None

    def join(self, survey_id: str, parts: Sequence[int], layers: Sequence[str]) -> None:
        """Combine parts and store the results. Doing so twice is harmless: the results are the same."""
        for group in _groups(next(self._read_parts(survey_id, parts[:1]), None), layers):
            for layer, found in join(self._read_parts(survey_id, parts), group).items():
                self.store.put_at(self._place(survey_id, len(parts), layer), found.to_bytes())

    def _read_parts(self, survey_id: str, parts: Sequence[int]) -> Iterator[bytes]:
        for number in parts:
            if data := self.store.get_at(self.collection.place(survey_id, "parts", f"{number}.npz")):
                yield data

    def explained(self, survey_id: str, owner: str, layer: str, kernel: int) -> bytes | None:
        """The stored text about the jobs that explain a kernel for this owner."""
        return self.store.get_at(self._explained(survey_id, owner, layer, kernel))

    def note_explained(self, survey_id: str, owner: str, layer: str, kernel: int, text: bytes) -> None:
        """Store the text that `explained` returns."""
        self.store.put_at(self._explained(survey_id, owner, layer, kernel), text)

    def all_explained(self, survey_id: str, owner: str, layer: str) -> dict[int, bytes]:
        """The stored texts for all kernels of a layer."""
        folder = self.collection.place(survey_id, "explained", folder_of(owner), layer)
        kernels = [int(name[1]) for name in map(NUMBER.fullmatch, self.store.names(folder)) if name]
        with ThreadPoolExecutor(READERS) as readers:
            texts = readers.map(lambda kernel: self.explained(survey_id, owner, layer, kernel), kernels)
            return {kernel: text for kernel, text in zip(kernels, texts, strict=True) if text}

    def _explained(self, survey_id: str, owner: str, layer: str, kernel: int) -> str:
        return self.collection.place(survey_id, "explained", folder_of(owner), layer, f"{kernel}.json")

    def _place(self, survey_id: str, parts: int, layer: str) -> str:
        return self.collection.place(survey_id, "layers", str(parts), f"{layer}.npz")

    def _put_images(self, survey_id: str, number: int, images: Images) -> None:
        self.store.put_at(self.collection.place(survey_id, "images", f"{number}.json"), listed(images))


def _groups(part: bytes | None, layers: Sequence[str]) -> Iterator[list[str]]:
    """Groups of layers to be combined together, small enough that their products fit into memory."""
    group: list[str] = []
    size = 0
    for layer, kernels in kernels_of(part).items() if part else ():
        if layer not in layers:
            continue
        size += kernels**2
        if group and size > MOST_PRODUCTS:
            yield group
            group, size = [], kernels**2
        group.append(layer)
    if group:
        yield group


def first_of(part: int) -> int:
    """The number of a part's first image."""
    return part * PART_IMAGES


def cut(images: Images) -> list[Images]:
    """The images, split into parts."""
    return [images[start : start + PART_IMAGES] for start in range(0, len(images), PART_IMAGES)]


def listed(images: Images) -> bytes:
    """The file with the images of a part."""
    return json.dumps(images).encode()
