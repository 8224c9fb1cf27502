"""Crops of photographs, and how active each kernel of a layer is on them."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.readings import tensor
from worker.engine.questions import Picture
from worker.networks.layer import LoadedLayer

PAIRS = 20  # of a kernel
CROPS_LONG = 3  # the shorter side of a photograph, in crops
OF_ONE = 3  # crops of one photograph at most, if there are enough photographs
HIGH = 0.9  # the quantile above which a crop activates a kernel much
BATCH = 16
SEED = 0


@dataclass(frozen=True)
class Crops:
    """Of a half of the photographs, as a layer sees them."""

    pictures: list[Picture]
    of: NDArray[np.int64]  # which photograph each is of
    peaks: NDArray[np.float32]  # the highest activation of each kernel in each, (N, C)

    def best(self, kernel: int, count: int) -> list[int]:
        """Those that activate a kernel most, the most first; at most three of one photograph, where that is enough."""
        most = max(OF_ONE, math.ceil(count / len(set(self.of.tolist()))))
        taken: Counter[int] = Counter()
        found: list[int] = []
        for number in np.argsort(-self.peaks[:, kernel], kind="stable").tolist():
            one = int(self.of[number])
            if taken[one] < most and len(found) < count:
                taken[one] += 1
                found.append(number)
        return found

    def pairs(self, kernel: int) -> list[tuple[int, int]]:
        """(one of the upper tenth that activates it most, one of the lower half); fewer where there are no more."""
        own = self.peaks[:, kernel]
        middle, high = np.median(own), np.quantile(own, HIGH)
        lower = np.flatnonzero(own <= middle).tolist()
        chance = random.Random(f"{SEED}/{kernel}")  # noqa: S311 - not for secrets
        upper = [number for number in self.best(kernel, PAIRS) if own[number] > middle and own[number] >= high]
        return [(number, chance.choice(lower)) for number in upper]


def cut(photographs: Sequence[Image.Image], side: int, step: int) -> tuple[list[Picture], NDArray[np.int64]]:
    """Crops at even steps, and which photograph each is of."""
    found, of = [], []
    for number, photograph in enumerate(photographs):
        scale = CROPS_LONG * side / min(photograph.size)
        size = (round(photograph.width * scale), round(photograph.height * scale))
        whole = np.asarray(photograph.resize(size, Image.Resampling.LANCZOS))
        for top in range(0, whole.shape[0] - side + 1, step):
            for left in range(0, whole.shape[1] - side + 1, step):
                found.append(whole[top : top + side, left : left + side].copy())
                of.append(number)
    return found, np.array(of)


@torch.no_grad()
def seen(layer: LoadedLayer, photographs: Sequence[Image.Image], step: int) -> Crops:
    """The crops of these, and how active they make each kernel."""
    pictures, of = cut(photographs, layer.frame.height, step)
    peaks = [
        layer.features(layer.space.from_bytes(tensor(*pictures[start : start + BATCH]))).amax(dim=(2, 3)).cpu().numpy()
        for start in range(0, len(pictures), BATCH)
    ]
    return Crops(pictures, of, np.concatenate(peaks))
