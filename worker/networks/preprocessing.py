"""From what a network was trained on to what it is shown here, which is the same to the network.

A network sees (v − mean) / std of each channel, with the pixel's value v from 0 to 1 or to 255, as RGB, BGR or grey.
Here x is RGB, or grey, x = (v − mean) / s for v from 0 to 1. Where s is not the network's own, the first convolution's
weights are multiplied by s / std and its channels turned round, so that it computes the same; padding is 0, the mean
colour, in both.

s is the network's own std, unless that is so small that x would be of another order than everything that α and β were
made for, as where a network sees pixels up to 255 that nobody has divided: then it is ImageNet's, of grey its mean.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

import torch
from torch import Tensor

from shared.schemas import Preprocessing
from worker.networks.checkpoints import IMAGENET_STD

LEAST_STD = 0.02  # of pixels from 0 to 1; an image's own is about 0.25

Space = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std of pixels from 0 to 1
USUAL_STD = {3: IMAGENET_STD, 1: (fmean(IMAGENET_STD),)}


def fed(inputs: Preprocessing) -> tuple[Space, Callable[[Tensor], Tensor] | None]:
    """The space of x, and what becomes of weights that see it, (C, 3 or 1, k, k); None: nothing."""
    most = 255.0 if inputs.range == "0-255" else 1.0
    mean, std = [one / most for one in inputs.mean], [one / most for one in inputs.std]
    turned = inputs.order == "bgr"
    if turned:
        mean, std = mean[::-1], std[::-1]
    space = (tuple(mean), tuple(std))
    scale = [1.0] * len(mean)
    if min(std) < LEAST_STD:
        usual = USUAL_STD[len(std)]
        space, scale = (tuple(mean), usual), [ours / own for ours, own in zip(usual, std, strict=True)]
    elif not turned:
        return space, None

    def changed(weight: Tensor) -> Tensor:
        weight = weight.flip(1) if turned else weight
        return weight * torch.tensor(scale, dtype=weight.dtype)[None, :, None, None]

    return space, changed
