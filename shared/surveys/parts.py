"""The results of a survey for a layer: those of a part of the images, their files, and how parts are combined.

The file of a part has, for each layer, the tally of the part's images and the highest activation of every kernel on
every image, rounded to half precision. Correlations between kernels are computed from these.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.surveys.tally import Floats, Ints, Tally

ALIKE = 8  # most similar kernels that are stored for each kernel


@dataclass(frozen=True)
class Seen:
    """Summaries of a layer's feature maps: C kernels on N images.

    Args:
        positions: number of positions in one map.
        peaks, means: highest and mean activation of each map, (N, C).
        active: number of positions at which the kernel is active, (N, C).
        places: indices of the positions of the peaks in row-major order, (N, C).
    """

    positions: int
    peaks: NDArray[np.float32]
    means: NDArray[np.float32]
    active: NDArray[np.int32]
    places: NDArray[np.int32]

    @classmethod
    def of(cls, parts: Sequence[Seen]) -> Seen:
        """The concatenation of at least one of them."""
        names = ("peaks", "means", "active", "places")
        arrays = (np.concatenate([getattr(part, name) for part in parts]) for name in names)
        return cls(parts[0].positions, *arrays)


@dataclass(frozen=True)
class Part:
    """The results for one layer with C kernels on the N images of a part.

    Args:
        peaks: highest activation of each kernel on each image, (N, C).
    """

    tally: Tally
    peaks: NDArray[np.float32]

    @classmethod
    def of(cls, seen: Sequence[Seen], first: int) -> Part:
        """The results of at least one image; the images are numbered from `first`.

        Raises:
            ValueError: an activation is not finite.
        """
        one = Seen.of(seen)
        numbers = range(first, first + len(one.peaks))
        counts = one.active.astype(np.int64), one.places.astype(np.int64)
        return cls(Tally.of(numbers, one.positions, one.peaks, one.means, *counts), one.peaks)


@dataclass(frozen=True)
class Whole:
    """The results for one layer with C kernels on all images.

    Args:
        alike: for each kernel the n others whose peaks correlate most with its own, highest first, (C, n).
        correlations: their Pearson correlations, (C, n); -inf for padding, where fewer kernels correlate.
    """

    tally: Tally
    alike: Ints
    correlations: Floats

    def to_bytes(self) -> bytes:
        """The file to store."""
        return _file({**self.tally.arrays(), "alike": self.alike, "correlations": self.correlations})

    @classmethod
    def from_bytes(cls, data: bytes) -> Whole:
        """The results from such a file."""
        with np.load(BytesIO(data), allow_pickle=False) as file:
            return cls(Tally.of_arrays(file), file["alike"], file["correlations"])


def packed(layers: Mapping[str, Part]) -> bytes:
    """The file of a part."""
    arrays: dict[str, NDArray[Any]] = {"layers": np.array(list(layers))}
    for number, part in enumerate(layers.values()):
        arrays |= {f"{number}.{name}": array for name, array in part.tally.arrays().items()}
        scale = np.float32(2.0 ** np.ceil(np.log2(max(float(part.peaks.max()), 1e-30))))  # float16 ends at 65,504
        arrays |= {f"{number}.every": (part.peaks / scale).astype(np.float16), f"{number}.scale": np.array(scale)}
    return _file(arrays)


def kernels_of(data: bytes) -> dict[str, int]:
    """The number of kernels of each layer in the file of a part."""
    with np.load(BytesIO(data), allow_pickle=False) as file:
        return {layer: len(file[f"{number}.mean"]) for number, layer in enumerate(file["layers"].tolist())}


def unpacked(data: bytes, layers: Collection[str]) -> dict[str, Part]:
    """These layers from the file of a part."""
    with np.load(BytesIO(data), allow_pickle=False) as file:
        found = {}
        for number, layer in enumerate(file["layers"].tolist()):
            if layer not in layers:
                continue
            own = {name.removeprefix(f"{number}."): file[name] for name in file if name.startswith(f"{number}.")}
            found[layer] = Part(Tally.of_arrays(own), own["every"].astype(np.float32) * own["scale"])
    return found


def join(parts: Iterable[bytes], layers: Collection[str]) -> dict[str, Whole]:
    """The results for these layers from the files of parts, in this order. One file at a time is in memory."""
    tallies: dict[str, Tally] = {}
    sums: dict[str, _Sums] = {}
    for data in parts:
        for layer, part in unpacked(data, layers).items():
            tallies[layer] = tallies[layer] + part.tally if layer in tallies else part.tally
            sums.setdefault(layer, _Sums(part.peaks.shape[1])).add(part.peaks)
    return {layer: Whole(tally, *sums[layer].alike()) for layer, tally in tallies.items()}


class _Sums:
    """Running sums for the correlations."""

    def __init__(self, kernels: int) -> None:
        self.count = 0
        self.sum = np.zeros(kernels)
        self.products = np.zeros((kernels, kernels))

    def add(self, peaks: NDArray[np.float32]) -> None:
        exact = peaks.astype(np.float64)
        self.count += len(exact)
        self.sum += exact.sum(axis=0)
        self.products += exact.T @ exact

    def alike(self) -> tuple[Ints, Floats]:
        """The kernels that correlate most with each kernel, and their correlations."""
        covariance = self.products - np.outer(self.sum, self.sum) / self.count
        spread = np.sqrt(np.maximum(np.diag(covariance), 0))
        varies = spread > 1e-6 * np.sqrt(np.diag(self.products))  # anything less is rounding
        known = varies[:, None] & varies & ~np.eye(len(spread), dtype=bool)
        scale = np.where(known, np.outer(spread, spread), 1)
        correlation = np.where(known, np.clip(covariance / scale, -1, 1), -np.inf)
        order = np.argsort(-correlation, axis=1, kind="stable")[:, :ALIKE]
        return order, np.take_along_axis(correlation, order, axis=1)


def _file(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    file = BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    return file.getvalue()
