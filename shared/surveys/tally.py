"""What a survey knows of each kernel of a layer after some images: how active it is, and which make it most active.

Tallies of disjoint parts of a data set are added up into one of all of them. Of the same parts in the same
order the result is the same to the last bit, so a part that was lost may be made again.

Of maps with a sign |F| stands for F. A kernel is active at a position where F is above 0, or |F| above a thousandth of
the image's highest of the layer; an image in which it is nowhere active is none of those that activate it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from shared.schemas import TOP_IMAGES

TOP = TOP_IMAGES
QUARTERS = 40  # of an octave, of the histogram, to each side of 1
EDGES = 2.0 ** (np.arange(1 - QUARTERS, QUARTERS) / 4)  # between its bins; the first is of silent kernels
BINS = len(EDGES) + 2

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True)
class Kernel:
    """What a tally says of one kernel.

    Args:
        mean, max: of its activation.
        active, active_images: the share of positions, and of images.
        top: number, peak and position of the images that activate it most, highest first.
    """

    mean: float
    max: float
    active: float
    active_images: float
    top: list[tuple[int, float, int]]


@dataclass(frozen=True)
class Tally:
    """Of C kernels, over N images.

    Args:
        images: N.
        positions: of one map.
        mean: the sum over the images of the mean activation, (C,).
        active: positions at which each is active, of all images, (C,).
        active_images: with such a position, (C,).
        histogram: how many images have their highest activation in each bin, (C, BINS).
        peaks: the TOP highest activations, highest first, one of an image, (C, TOP); -inf where there are fewer.
        top: the numbers of their images, (C, TOP); -1 where fewer activate it. Of equal ones the one that comes first.
        places: the positions there, row by row, (C, TOP).
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
        """Of some images.

        Args:
            numbers: theirs in the data set, (N,).
            peaks, means, active: of each map the highest and the mean activation, and at how many positions the kernel
                is active, (N, C).
            places: of the peaks, (N, C).

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
        """Of both.

        Raises:
            ValueError: they are of different layers.
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
        """What it says of one kernel."""
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
        """As it is stored."""
        return {one.name: np.asarray(getattr(self, one.name)) for one in fields(self)}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Tally:
        """The same, read."""
        known: dict[str, Any] = {one.name: arrays[one.name] for one in fields(cls)}
        return cls(**{**known, "images": int(known["images"]), "positions": int(known["positions"])})


def bins_of(peaks: NDArray[np.float32]) -> Ints:
    """The histogram's bin of each highest activation."""
    found: Ints = np.where(peaks > 0, np.searchsorted(EDGES, peaks, side="right") + 1, 0)
    return found


def _order(peaks: NDArray[np.float32], numbers: Ints) -> Ints:
    """Of each kernel's images, (C, N): the highest first; of equal ones that of the lowest number."""
    found: Ints = np.lexsort((numbers, -peaks), axis=1)
    return found[:, :TOP]


def _first(values: NDArray[Number], order: Ints, empty: float) -> NDArray[Number]:
    """In this order, filled up to TOP."""
    taken = np.take_along_axis(values, order, axis=1)
    return np.pad(taken, ((0, 0), (0, TOP - taken.shape[1])), constant_values=empty)
