"""The files that figures are drawn from. Each is read from the store when it is needed; the last ones are cached."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from io import BytesIO
from threading import Lock
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from api.pictures import consistency
from api.pictures.colours import Maps, Scale
from api.pictures.consistency import Description
from shared import images
from shared.catalogue import Network
from shared.errors import ArtifactNotFound, UnknownLayer, UnknownModel
from shared.jobs import Found, Head
from shared.schemas import ExplainRequest, ItemResult
from shared.store import BlobStore

# At most 60 MB: the files of 16 results of one kernel and image are read once for all of their figures.
CACHED_PICTURES, CACHED_ARRAYS = 40, 40
CACHED_ORIGINALS = 32  # of results without a stored original
CACHED_DESCRIPTIONS = 256  # the most that one job's comparison needs

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Evidence:
    """The files of one result.

    Args:
        picture: returns a PNG file by name, RGB.
        arrays: returns the arrays of a numpy file by name; the array of `optimized.npy` is named `x`.
    """

    request: ExplainRequest
    result: ItemResult
    picture: Callable[[str], Image.Image]
    arrays: Callable[[str], Arrays]

    @property
    def original(self) -> Image.Image:
        """X at the network's input size, RGB."""
        return self.picture("original.png")

    @property
    def optimized(self) -> Image.Image:
        """X̂, the delivered PNG, RGB."""
        return self.picture("optimized.png")

    @property
    def x(self) -> Maps:
        """X̂ before rounding, normalised, (3, H, W), or (1, H, W) for grey input."""
        return self.arrays("optimized.npy")["x"]

    @property
    def before(self) -> Maps:
        """F_i, (h, w)."""
        return self.arrays("maps.npz")["before"]

    @property
    def after(self) -> Maps:
        """F̂_i, (h, w)."""
        return self.arrays("maps.npz")["after"]

    @property
    def others(self) -> list[int]:
        """The other kernels with the highest activation."""
        return [int(kernel) for kernel in self.arrays("maps.npz")["others"]]

    @property
    def others_before(self) -> Maps:
        """Their maps on X, (n, h, w)."""
        return self.arrays("maps.npz")["others_before"]

    @property
    def others_after(self) -> Maps:
        """Their maps on X̂, (n, h, w)."""
        return self.arrays("maps.npz")["others_after"]

    @property
    def thumbnails(self) -> Maps:
        """The feature maps of a ranking's kernels, each scaled to ±1 at most, (C, t, t)."""
        stored = self.arrays("activations.npz")
        levels = stored["thumbnails"].astype(np.float32)
        zero, full = (128, 127) if "signed" in stored else (0, 255)
        return np.asarray((levels - zero) / full, dtype=np.float32)

    @property
    def scale(self) -> Scale:
        """The common scale of the maps before and after."""
        return Scale.of(self.before, self.after)


class Files:
    """Reads and decodes the files of results, with a cache.

    Args:
        max_pixels: of an image of a request.
        network: returns a network by name.
    """

    def __init__(self, store: BlobStore, max_pixels: int, network: Callable[[str], Network]) -> None:
        self.store = store
        self.network = network
        self.max_pixels = max_pixels
        self._picture = lru_cache(CACHED_PICTURES)(self._read_picture)
        self._arrays = lru_cache(CACHED_ARRAYS)(self._read_arrays)
        self._original = lru_cache(CACHED_ORIGINALS)(self._decoded)
        self._description = lru_cache(CACHED_DESCRIPTIONS)(self._make_description)
        self._decoding = Lock()

    def evidence(self, head: Head, found: Found) -> Evidence:
        """The files of one result. They are read when needed, and kept as long as the evidence."""
        result, blobs = found

        def picture(name: str) -> Image.Image:
            if name == "original.png":
                return self.original(head, found)
            return self._picture(head.job_id, name, blobs[name])

        def arrays(name: str) -> Arrays:
            return self._arrays(head.job_id, name, blobs[name])

        return Evidence(head.request, result, cache(picture), cache(arrays))

    def original(self, head: Head, found: Found) -> Image.Image:
        """X at the network's input size, RGB: as the worker stored it, else made from the image of the request."""
        result, blobs = found
        if "original.png" in blobs:
            with suppress(ArtifactNotFound):
                return self._picture(head.job_id, "original.png", blobs["original.png"])
        return self.resized(head, result.image, result)

    def resized(self, head: Head, digest: str, result: ItemResult | None) -> Image.Image:
        """An image of the request at the network's input size, RGB. One is decoded at a time: it may take 600 MB.

        Args:
            result: any of the same network; it states how images were resized.
        """
        fed = result.weights.preprocessing if result and result.weights else None
        with self._decoding:
            frame = self.network(head.request.model).frame
            return self._original(head.job_id, digest, frame, fed.resize if fed else "squash")

    def fitted(self, data: bytes, frame: images.Frame, how: Literal["squash", "crop"]) -> Image.Image:
        """An image at a network's input size, RGB. One is decoded at a time."""
        with self._decoding:
            return self._fitted(data, frame, how)

    def description(self, head: Head, found: Found) -> Description | None:
        """The description of X̂ that `consistency` compares."""
        stride = self.stride(head, found)
        return self._description(head.job_id, found[1]["optimized.npy"], stride)

    def stride(self, head: Head, found: Found) -> int:
        """Input pixels between neighbouring positions of the layer, in the network of the result.

        If that network is no longer known, the sizes of X̂ and of its map give the stride.
        """
        result, blobs = found
        architecture = result.weights.architecture if result.weights else None
        for name in (architecture, head.request.model):
            with suppress(UnknownModel, UnknownLayer):
                return self.network(name or "").layer(head.request.layer).stride
        sides = [
            self._read_arrays(head.job_id, file, blobs[file])[own].shape[-1]
            for file, own in (("optimized.npy", "x"), ("maps.npz", "before"))
        ]
        return max(1, round(int(sides[0]) / int(sides[1])))

    def _read_picture(self, job_id: str, name: str, digest: str) -> Image.Image:
        return images.as_seen(Image.open(BytesIO(self.blob(job_id, name, digest)))).image.convert("RGB")

    def _read_arrays(self, job_id: str, name: str, digest: str) -> Arrays:
        data = BytesIO(self.blob(job_id, name, digest))
        if name.endswith(".npy"):
            return {"x": np.load(data)}
        with np.load(data) as arrays:
            return dict(arrays)

    def _decoded(self, job_id: str, digest: str, frame: images.Frame, how: Literal["squash", "crop"]) -> Image.Image:
        data = self.store.get(job_id, digest)
        if data is None:
            raise ArtifactNotFound(f"the original image {digest} has been deleted, so its pictures cannot be drawn")
        return self._fitted(data, frame, how)

    def _fitted(self, data: bytes, frame: images.Frame, how: Literal["squash", "crop"]) -> Image.Image:
        return images.resized(images.decode(data, self.max_pixels), frame, how).convert("RGB")

    def _make_description(self, job_id: str, digest: str, stride: int) -> Description | None:
        return consistency.description(self._read_arrays(job_id, "optimized.npy", digest)["x"], stride)

    def blob(self, job_id: str, name: str, digest: str) -> bytes:
        """The bytes of a job's file.

        Raises:
            ArtifactNotFound: it is no longer in the store.
        """
        data = self.store.get(job_id, digest)
        if data is None:
            raise ArtifactNotFound(f"{name} is no longer in the store")
        return data
