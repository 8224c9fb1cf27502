"""How active every kernel of some layers is on many images: one pass an image for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shared.surveys.parts import Seen
from worker.engine.questions import SURVEYED
from worker.networks.layer import LoadedNetwork

SILENT = 1e-3  # of the highest |F| of an image, below which a kernel of a layer with a sign is silent there


def survey(network: LoadedNetwork, layers: Sequence[str], pixels: Tensor) -> dict[str, Seen]:
    """What each layer's maps of some images are.

    The same images give the same to the last bit, on one machine with as many threads.

    Args:
        pixels: the network's inputs, (N, 3, H, W), of grey (N, 1, H, W), uint8; one image at least.
    """
    found: dict[str, list[Seen]] = {}

    def see(name: str, maps: Tensor) -> None:
        found.setdefault(name, []).append(seen(maps, signed=name in network.signed))

    for start in range(0, len(pixels), SURVEYED):
        images = network.space.from_bytes(pixels[start : start + SURVEYED]).contiguous(
            memory_format=torch.channels_last
        )
        network.each(layers, images, see)
    return {name: Seen.of(parts) for name, parts in found.items()}


def seen(maps: Tensor, *, signed: bool = False) -> Seen:
    """Of a layer's maps F, (N, C, h, w).

    Args:
        signed: whether |F| stands for F.
    """
    rows = maps.permute(0, 2, 3, 1)  # (N, h, w, C), as they lie in memory
    rows = rows.abs() if signed else rows
    images, height, width, kernels = rows.shape
    of_rows = rows.amax(dim=2)
    peaks, row = of_rows.max(dim=1)
    image, kernel = (torch.arange(count, device=rows.device) for count in (images, kernels))
    column = rows[image[:, None], row, :, kernel].argmax(dim=2)
    silent = SILENT * peaks.amax(dim=1) if signed else torch.zeros(images, device=rows.device)
    ones = rows.new_ones(height * width)  # a sum by a product is twice as fast, and so is one image at a time
    sums, active = torch.zeros_like(peaks), torch.zeros_like(peaks)
    for number, one in enumerate(rows.flatten(1, 2)):
        sums[number] = ones @ one
        active[number] = ones @ ((one - silent[number]).relu() if signed else one).sign()
    values = (peaks, sums / len(ones), active.int(), (row * width + column).int())
    return Seen(height * width, *(value.cpu().numpy() for value in values))
