"""The network's input: X̂, or its 8-bit picture, which is what is delivered.

Rounding an x that is near the optimum can raise its loss by 45 %. Therefore all descents but the first, or the last
quarter of a single descent, are evaluated at the 8-bit picture of x, and X̂ is the best of these pictures. A problem
with a constraint is evaluated at the 8-bit picture from the start, since the delivered picture must satisfy it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worker.methods.suppression.objective import columns
from worker.methods.suppression.pixel_space import PixelSpace


def network_input(space: PixelSpace, x: Tensor, rounded: Tensor, on_host: tuple[bool, ...]) -> tuple[Tensor, Tensor]:
    """The input at which each problem is evaluated, and the picture of which L_r is taken, (B, 3, H, W) each.

    They differ where the 8-bit picture has the mean colour, which is no 8-bit value: L_r counts it as 0.

    Args:
        x: (B, 3, H, W), normalised.
        rounded: 1 where the input is the 8-bit picture, 0 elsewhere, (B,).
        on_host: the same on the host.
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
