"""How active every kernel of some layers is on many images: one pass an image for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shared.surveys.parts import Part
from shared.surveys.tally import Tally
from worker.engine.questions import SURVEYED
from worker.networks.layer import LoadedNetwork

SILENT = 1e-3  # of the highest |F| of an image, below which a kernel of a layer with a sign is silent there


def survey(network: LoadedNetwork, layers: Sequence[str], pixels: Tensor, first: int = 0) -> dict[str, Part]:
    """What is to be known of each layer on some images, with a number each from `first` on.

    The same images give the same to the last bit, on one machine with as many threads.

    Args:
        pixels: the network's inputs, (N, 3, H, W), of grey (N, 1, H, W), uint8; one image at least.

    Raises:
        ValueError: an activation is not finite.
    """
    found: dict[str, list[Part]] = {}

    def see(name: str, maps: Tensor) -> None:
        found.setdefault(name, []).append(tallied(maps, numbers, signed=name in network.signed))

    for start in range(0, len(pixels), SURVEYED):
        images = network.space.from_bytes(pixels[start : start + SURVEYED]).contiguous(
            memory_format=torch.channels_last
        )
        numbers = range(first + start, first + start + len(images))
        network.each(layers, images, see)
    return {name: Part.of(parts) for name, parts in found.items()}


def tallied(maps: Tensor, numbers: Sequence[int], *, signed: bool = False) -> Part:
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
    highest, *others = (value.cpu().numpy() for value in values)
    return Part(Tally.of(numbers, height * width, highest, *others), highest)
