"""From what a network was trained on to what it is shown here, which is the same to the network.

A network sees (v − mean) / std of each channel, with the pixel's value v from 0 to 1 or to 255, as RGB or BGR. Here x
is RGB, x = (v − mean) / s for v from 0 to 1. Where s is not the network's own, the first convolution's weights are
multiplied by s / std and its channels turned round, so that it computes the same; padding is 0, the mean colour, in
both.

s is the network's own std, unless that is so small that x would be of another order than everything that α and β were
made for, as where a network sees pixels up to 255 that nobody has divided: then it is ImageNet's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shared.schemas import Preprocessing
from worker.networks.checkpoints import IMAGENET_STD

LEAST_STD = 0.02  # of pixels from 0 to 1; an image's own is about 0.25

Space = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std of RGB pixels from 0 to 1


def fed(inputs: Preprocessing, weight: Tensor) -> tuple[Space, Tensor]:
    """The space of x, and the first convolution's weights in it.

    Args:
        weight: of the first convolution, (C, 3, k, k).
    """
    most = 255.0 if inputs.range == "0-255" else 1.0
    mean, std = [one / most for one in inputs.mean], [one / most for one in inputs.std]
    if inputs.order == "bgr":
        mean, std, weight = mean[::-1], std[::-1], weight.flip(1)
    if min(std) >= LEAST_STD:
        return (tuple(mean), tuple(std)), weight
    scale = torch.tensor([ours / theirs for ours, theirs in zip(IMAGENET_STD, std, strict=True)], dtype=weight.dtype)
    return (tuple(mean), IMAGENET_STD), weight * scale[None, :, None, None]
