"""What the network is shown: X̂, or its 8-bit picture, which is what is delivered.

Rounding alone can add 45 % to the loss of an x that is near its end. So the later descents, or the last quarter where
there is one only, are shown the 8-bit picture of x, and X̂ is the best of these pictures. Where a bound is to be kept
the picture is shown from the start: it must be kept by what is delivered.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worker.methods.suppression.objective import columns
from worker.methods.suppression.problems import PixelSpace


def shown(space: PixelSpace, x: Tensor, rounded: Tensor, on_host: tuple[bool, ...]) -> tuple[Tensor, Tensor]:
    """What the network sees and what L_r is taken of, in which the mean colour is 0.

    Args:
        x: (B, 3, H, W), normalised.
        rounded: 1 where it is the 8-bit picture, else 0, (B,).
        on_host: the same, as the host knows it.
    """
    if not any(on_host):
        return x, x
    picture = space.to_bytes(x)
    seen = space.from_bytes(picture).to(x)
    weighed = torch.where(picture == space.mean_bytes, 0, seen)
    if all(on_host):
        return seen, weighed
    mask = columns(rounded) > 0
    return torch.where(mask, seen, x), torch.where(mask, weighed, x)
