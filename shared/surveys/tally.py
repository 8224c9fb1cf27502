"""Statistics of the kernels of a layer over many images: activations, and the images that activate a kernel most.

The tallies of disjoint parts of a data set can be added. The sum of the same parts in the same order is the same to the
last bit, so a lost part can be computed again.

For signed maps |F| is used instead of F. A kernel is active at a position where F > 0, or |F| is above a thousandth of
the layer's highest value on the image. Images with no such position do not activate the kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from shared.schemas import TOP_IMAGES

TOP = TOP_IMAGES
QUARTERS = 40  # quarter octaves of the histogram on each side of 1
EDGES = 2.0 ** (np.arange(1 - QUARTERS, QUARTERS) / 4)  # between the bins; the first bin is for silent kernels
BINS = len(EDGES) + 2

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True)
class Kernel:
    """The statistics of one kernel.

    Args:
        mean, max: mean and maximum of its activation.
        active, active_images: fractions of positions, and of images, where it is active.
        top: number, peak and position of the images that activate it most, highest first.
    """

    mean: float
    max: float
    active: float
    active_images: float
    top: list[tuple[int, float, int]]


@dataclass(frozen=True)
class Tally:
    """The statistics of C kernels over N images.

    Args:
        images: N.
        positions: number of positions in one map.
        mean: sum over the images of the mean activation, (C,).
        active: number of positions, over all images, at which each kernel is active, (C,).
        active_images: number of images with such a position, (C,).
        histogram: number of images with their highest activation in each bin, (C, BINS).
        peaks: the TOP highest activations, one of an image, highest first, (C, TOP); -inf where there are fewer.
        top: numbers of their images, (C, TOP); -1 where there are fewer. Ties are resolved in favour of lower numbers.
        places: indices of their positions in row-major order, (C, TOP).
    """

    images: int
    positions: int
    mean: Floats
    active: Ints
    active_images: Ints
    histogram: Ints
    peaks: NDArray[np.float32]
    top: Ints
    places: Ints

    @classmethod
    def of(
        cls,
        numbers: Sequence[int],
        positions: int,
        peaks: NDArray[np.float32],
        means: NDArray[np.float32],
        active: Ints,
        places: Ints,
    ) -> Tally:
        """The statistics of some images.

        Args:
            numbers: numbers of the images in the data set, (N,).
            peaks, means, active: for each map the highest and the mean activation, and the number of positions at which
                the kernel is active, (N, C).
            places: indices of the positions of the peaks, (N, C).

        Raises:
            ValueError: an activation is not finite.
        """
        if not (np.isfinite(peaks).all() and np.isfinite(means).all()):
            raise ValueError("activations are not finite numbers")
        kernels = peaks.shape[1]
        silent = active.T == 0
        highest = np.where(silent, -np.inf, peaks.T).astype(np.float32)
        own = np.where(silent, -1, np.asarray(numbers, np.int64))
        order = _order(highest, own)
        histogram = np.zeros((kernels, BINS), np.int64)
        np.add.at(histogram, (np.arange(kernels)[:, None], bins_of(highest)), 1)
        return cls(
            images=len(numbers),
            positions=positions,
            mean=means.sum(axis=0, dtype=np.float64),
            active=active.sum(axis=0),
            active_images=(active > 0).sum(axis=0),
            histogram=histogram,
            peaks=_first(highest, order, -np.inf),
            top=_first(own, order, -1),
            places=_first(np.where(silent, 0, places.T), order, 0),
        )

    def __add__(self, other: Tally) -> Tally:
        """The statistics of both sets of images.

        Raises:
            ValueError: the maps have different shapes.
        """
        if (self.positions, len(self.mean)) != (other.positions, len(other.mean)):
            raise ValueError("tallies of maps of different shapes cannot be added up")
        peaks = np.concatenate([self.peaks, other.peaks], axis=1)
        top = np.concatenate([self.top, other.top], axis=1)
        places = np.concatenate([self.places, other.places], axis=1)
        order = _order(peaks, top)
        return Tally(
            images=self.images + other.images,
            positions=self.positions,
            mean=self.mean + other.mean,
            active=self.active + other.active,
            active_images=self.active_images + other.active_images,
            histogram=self.histogram + other.histogram,
            peaks=_first(peaks, order, -np.inf),
            top=_first(top, order, -1),
            places=_first(places, order, 0),
        )

    def kernel(self, kernel: int) -> Kernel:
        """The statistics of one kernel."""
        there = self.top[kernel] >= 0
        found = zip(
            self.top[kernel][there].tolist(),
            self.peaks[kernel][there].tolist(),
            self.places[kernel][there].tolist(),
            strict=True,
        )
        top = list(found)
        return Kernel(
            mean=float(self.mean[kernel]) / self.images,
            max=top[0][1] if top else 0.0,
            active=int(self.active[kernel]) / (self.images * self.positions),
            active_images=int(self.active_images[kernel]) / self.images,
            top=top,
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays to store."""
        return {one.name: np.asarray(getattr(self, one.name)) for one in fields(self)}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Tally:
        """A tally from stored arrays."""
        known: dict[str, Any] = {one.name: arrays[one.name] for one in fields(cls)}
        return cls(**{**known, "images": int(known["images"]), "positions": int(known["positions"])})


def bins_of(peaks: NDArray[np.float32]) -> Ints:
    """The histogram bin of each activation."""
    found: Ints = np.where(peaks > 0, np.searchsorted(EDGES, peaks, side="right") + 1, 0)
    return found


def _order(peaks: NDArray[np.float32], numbers: Ints) -> Ints:
    """For each kernel the indices of its TOP images, (C, N): highest first, ties by the lowest number."""
    found: Ints = np.lexsort((numbers, -peaks), axis=1)
    return found[:, :TOP]


def _first(values: NDArray[Number], order: Ints, empty: float) -> NDArray[Number]:
    """The values in this order, padded to TOP."""
    taken = np.take_along_axis(values, order, axis=1)
    return np.pad(taken, ((0, 0), (0, TOP - taken.shape[1])), constant_values=empty)
