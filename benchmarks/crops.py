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
    """The crops of a half of the photographs."""

    pictures: list[Picture]
    of: NDArray[np.int64]  # the number of each crop's photograph
    peaks: NDArray[np.float32]  # the highest activation of each kernel on each crop, (N, C)

    def best(self, kernel: int, count: int) -> list[int]:
        """The crops that activate a kernel most, in order; at most three of one photograph if that suffices."""
        most = max(OF_ONE, math.ceil(count / len(set(self.of.tolist()))))
        count_of: Counter[int] = Counter()
        found: list[int] = []
        for number in np.argsort(-self.peaks[:, kernel], kind="stable").tolist():
            one = int(self.of[number])
            if count_of[one] < most and len(found) < count:
                count_of[one] += 1
                found.append(number)
        return found

    def pairs(self, kernel: int) -> list[tuple[int, int]]:
        """Pairs of a crop of the most active tenth and one of the lower half; at most 20."""
        own = self.peaks[:, kernel]
        middle, high = np.median(own), np.quantile(own, HIGH)
        lower = np.flatnonzero(own <= middle).tolist()
        chance = random.Random(f"{SEED}/{kernel}")  # noqa: S311 - not for secrets
        upper = [number for number in self.best(kernel, PAIRS) if own[number] > middle and own[number] >= high]
        return [(number, chance.choice(lower)) for number in upper]


def cut(photographs: Sequence[Image.Image], side: int, step: int) -> tuple[list[Picture], NDArray[np.int64]]:
    """Crops at regular steps, and the number of each one's photograph."""
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
    """The crops of these photographs, with the activations of each kernel."""
    pictures, of = cut(photographs, layer.frame.height, step)
    peaks = [
        layer.features(layer.space.from_bytes(tensor(*pictures[start : start + BATCH]))).amax(dim=(2, 3)).cpu().numpy()
        for start in range(0, len(pictures), BATCH)
    ]
    return Crops(pictures, of, np.concatenate(peaks))
