"""The normalised space of a network's input, and the conversion of its first weights to that space.

A network is trained on (v − mean) / std per channel, where the pixel value v is in [0, 1] or [0, 255], in RGB, BGR or
grey. Here x = (v − mean) / s with v in [0, 1], in RGB or grey. Where s ≠ std or the order is BGR, the weights of the
first convolution are multiplied by s / std and its input channels reversed, so that the network computes the same. The
padding is 0, the mean colour, in both.

s = std, unless std is so small that x would be of another order of magnitude than α and β are made for, for example for
a network trained on undivided pixels up to 255. Then s is ImageNet's std; for grey input, its mean.
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


def input_space(inputs: Preprocessing) -> tuple[Space, Callable[[Tensor], Tensor] | None]:
    """(mean, std) of x, and the conversion of weights (C, 3 or 1, k, k) that are applied to it; None: unchanged."""
    most = 255.0 if inputs.range == "0-255" else 1.0
    mean, std = [one / most for one in inputs.mean], [one / most for one in inputs.std]
    reversed_ = inputs.order == "bgr"
    if reversed_:
        mean, std = mean[::-1], std[::-1]
    space = (tuple(mean), tuple(std))
    scale = [1.0] * len(mean)
    if min(std) < LEAST_STD:
        usual = USUAL_STD[len(std)]
        space, scale = (tuple(mean), usual), [ours / own for ours, own in zip(usual, std, strict=True)]
    elif not reversed_:
        return space, None

    def convert(weight: Tensor) -> Tensor:
        weight = weight.flip(1) if reversed_ else weight
        return weight * torch.tensor(scale, dtype=weight.dtype)[None, :, None, None]

    return space, convert
