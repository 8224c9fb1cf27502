"""How active each kernel of several layers is on many images, from one forward pass per image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shared.surveys.parts import Seen
from worker.engine.questions import SURVEY_BATCH
from worker.networks.layer import LoadedNetwork

SILENT = 1e-3  # where maps have a sign: positions up to this fraction of the image's highest |F| are inactive


def survey(network: LoadedNetwork, layers: Sequence[str], pixels: Tensor) -> dict[str, Seen]:
    """Statistics of each layer's maps of some images.

    The result is the same to the last bit for the same images, machine and number of threads.

    Args:
        pixels: the network's inputs, (N, 3, H, W), of grey (N, 1, H, W), uint8; N ≥ 1.
    """
    found: dict[str, list[Seen]] = {}

    def record(name: str, maps: Tensor) -> None:
        found.setdefault(name, []).append(seen(maps, signed=name in network.signed))

    for start in range(0, len(pixels), SURVEY_BATCH):
        images = network.space.from_bytes(pixels[start : start + SURVEY_BATCH]).contiguous(
            memory_format=torch.channels_last
        )
        network.each(layers, images, record)
    return {name: Seen.of(parts) for name, parts in found.items()}


def seen(maps: Tensor, *, signed: bool = False) -> Seen:
    """Statistics of a layer's maps.

    Args:
        maps: F, (N, C, h, w).
        signed: whether |F| is used instead of F.
    """
    rows = maps.permute(0, 2, 3, 1)  # (N, h, w, C), as in memory
    rows = rows.abs() if signed else rows
    images, height, width, kernels = rows.shape
    row_peaks = rows.amax(dim=2)
    peaks, row = row_peaks.max(dim=1)
    image, kernel = (torch.arange(count, device=rows.device) for count in (images, kernels))
    column = rows[image[:, None], row, :, kernel].argmax(dim=2)
    silent = SILENT * peaks.amax(dim=1) if signed else torch.zeros(images, device=rows.device)
    ones = rows.new_ones(height * width)  # a sum by a matrix product, and image by image, is twice as fast
    sums, active = torch.zeros_like(peaks), torch.zeros_like(peaks)
    for number, one in enumerate(rows.flatten(1, 2)):
        sums[number] = ones @ one
        active[number] = ones @ ((one - silent[number]).relu() if signed else one).sign()
    values = (peaks, sums / len(ones), active.int(), (row * width + column).int())
    return Seen(height * width, *(value.cpu().numpy() for value in values))
