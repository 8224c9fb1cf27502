"""How active each kernel of a layer is on a picture, with a thumbnail of its feature map."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.schemas import ActiveKernel, Thumbnails
from worker.engine.questions import Maps

LARGEST_THUMBNAIL = 56  # positions a side
SMALLEST_TILE = 56  # pixels a side of a drawn thumbnail
COLUMNS = 16  # of the drawn sheet of thumbnails
SILENT = 1e-3  # where maps have a sign: positions up to this fraction of the highest |F| are inactive


def measured(maps: Maps) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The ranking for the job's record, and the thumbnails for the store, of a layer's maps F, (C, h, w)."""
    ranking, small, signed = ranked(maps), thumbnails(maps), bool((maps < 0).any())
    facts = {"ranking": ranking, "thumbnails": Thumbnails(columns=COLUMNS, tile=max(*small.shape[1:], SMALLEST_TILE))}
    file, order = BytesIO(), np.array([one.kernel for one in ranking])
    drawn = {"kernels": order, "thumbnails": small[order], **({"signed": np.array(1)} if signed else {})}
    np.savez_compressed(file, allow_pickle=False, **drawn)
    return facts, {"activations.npz": file.getvalue()}


def ranked(maps: Maps) -> list[ActiveKernel]:
    """All kernels by their mean |F|, highest first; ties by index.

    Args:
        maps: the layer's feature maps F, (C, h, w).
    """
    strength = np.abs(maps)
    least = SILENT * strength.max() if (maps < 0).any() else 0
    mean, most, share = strength.mean(axis=(1, 2)), strength.max(axis=(1, 2)), (strength > least).mean(axis=(1, 2))
    return [
        ActiveKernel(kernel=kernel, mean=float(mean[kernel]), max=float(most[kernel]), active=float(share[kernel]))
        for kernel in np.argsort(-mean, kind="stable").tolist()
    ]


def thumbnails(maps: Maps) -> NDArray[np.uint8]:
    """Thumbnails, (C, h', w'): each map scaled by its own maximum; large maps are averaged over blocks of positions.

    Where maps have a sign, 128 is 0 and the highest |F| is at a distance of 127.
    """
    channels, height, width = maps.shape
    block = -(-max(height, width) // LARGEST_THUMBNAIL)
    down, across = min(block, height), min(block, width)
    rows, columns = height // down, width // across
    cropped = maps[:, : rows * down, : columns * across]
    small = cropped.reshape(channels, rows, down, columns, across).mean(axis=(2, 4))
    highest = np.abs(small).max(axis=(1, 2), keepdims=True)
    zero, full = (128, 127) if (maps < 0).any() else (0, 255)
    shown: NDArray[np.uint8] = (zero + full * small / np.where(highest > 0, highest, 1)).round().astype(np.uint8)
    return shown
