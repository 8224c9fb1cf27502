"""How active each kernel of a layer is on a picture, with a thumbnail of its feature map."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.schemas import ActiveKernel, Thumbnails
from worker.engine.questions import Maps

LARGEST_THUMBNAIL = 56  # positions a side
SMALLEST_TILE = 56  # pixels a side, where the thumbnail is drawn
COLUMNS = 16  # of the drawn sheet


def measured(maps: Maps) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What a job's record and the store keep of a layer's feature maps F, (C, h, w)."""
    ranking, small = ranked(maps), thumbnails(maps)
    facts = {"ranking": ranking, "thumbnails": Thumbnails(columns=COLUMNS, tile=max(small.shape[1], SMALLEST_TILE))}
    file, order = BytesIO(), np.array([one.kernel for one in ranking])
    np.savez_compressed(file, allow_pickle=False, kernels=order, thumbnails=small[order])
    return facts, {"activations.npz": file.getvalue()}


def ranked(maps: Maps) -> list[ActiveKernel]:
    """Every kernel by its mean activation, highest first; those that are as active, by index.

    Args:
        maps: the layer's feature maps F, (C, h, w).
    """
    mean, most, share = maps.mean(axis=(1, 2)), maps.max(axis=(1, 2)), (maps > 0).mean(axis=(1, 2))
    return [
        ActiveKernel(kernel=kernel, mean=float(mean[kernel]), max=float(most[kernel]), active=float(share[kernel]))
        for kernel in np.argsort(-mean, kind="stable").tolist()
    ]


def thumbnails(maps: Maps) -> NDArray[np.uint8]:
    """(C, t, t): each map from 0 to its own highest activation; a large one is averaged over blocks of positions."""
    channels, side = maps.shape[0], maps.shape[1]
    block = -(-side // LARGEST_THUMBNAIL)
    kept = side // block * block
    small = maps[:, :kept, :kept].reshape(channels, kept // block, block, kept // block, block).mean(axis=(2, 4))
    highest = small.max(axis=(1, 2), keepdims=True)
    shown: NDArray[np.uint8] = (255 * small / np.where(highest > 0, highest, 1)).round().astype(np.uint8)
    return shown
