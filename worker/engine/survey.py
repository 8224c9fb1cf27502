"""How active every kernel of some layers is on many images: one pass an image for all of them (shared/tally.py)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shared.tally import Tally, joined
from worker.networks.layer import LoadedNetwork

BATCH = 16
SILENT = 1e-3  # of the highest |F| of an image, below which a kernel of a layer with a sign is silent there


def survey(network: LoadedNetwork, layers: Sequence[str], pixels: Tensor, first: int = 0) -> dict[str, Tally]:
    """Each layer's tally of some images, with a number each from `first` on.

    The same images give the same tally to the last bit, on one machine with as many threads.

    Args:
        pixels: the network's inputs, (N, 3, H, W), of grey (N, 1, H, W), uint8; one image at least.

    Raises:
        ValueError: an activation is not finite.
    """
    found: dict[str, Tally] = {}

    def see(name: str, maps: Tensor) -> None:
        tally = tallied(maps, numbers, signed=name in network.signed)
        found[name] = joined([found[name], tally]) if name in found else tally

    for start in range(0, len(pixels), BATCH):
        images = network.space.from_bytes(pixels[start : start + BATCH]).contiguous(memory_format=torch.channels_last)
        numbers = range(first + start, first + start + len(images))
        network.each(layers, images, see)
    return found


def tallied(maps: Tensor, numbers: Sequence[int], *, signed: bool = False) -> Tally:
    """Of a layer's maps F, (N, C, h, w).

    Args:
        numbers: of the images.
        signed: whether |F| stands for F.
    """
    rows = maps.permute(0, 2, 3, 1)  # (N, h, w, C), as they lie in memory
    rows = rows.abs() if signed else rows
    images, height, width, kernels = rows.shape
    of_rows = rows.amax(dim=2)
    peaks, row = of_rows.max(dim=1)
    image, kernel = (torch.arange(count, device=rows.device) for count in (images, kernels))
    column = rows[image[:, None], row, :, kernel].argmax(dim=2)
    silent = SILENT * peaks.amax(dim=1)[:, None, None, None] if signed else None
    active = (rows if silent is None else (rows - silent).relu()).sign().sum(dim=(1, 2))  # faster than to count
    values = (peaks, rows.mean(dim=(1, 2)), active.long(), row * width + column)
    return Tally.of(numbers, height * width, *(value.cpu().numpy() for value in values))
