"""The methods that suppression is compared with, by the attribution library zennit: each weighs the pixels of X.

    guided_backprop   gradient of Σ|F_i|; a ReLU passes what is positive, where it was open (Springenberg et al.)
    deconvnet         the same start; a ReLU passes what is positive (Zeiler & Fergus)
    lrp               F_i itself is the relevance (Binder et al.): z^B in the first convolution, z⁺ in the others,
                      or γ and in the last one ε (`rule="gamma_epsilon"`); max-pooling is treated as average-pooling

The attribution g becomes an image as X̂ = g / max|g| · X in the normalised space, or with g brought to [0, 1].
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from zennit.composites import SpecialFirstLayerMapComposite
from zennit.core import Composite
from zennit.rules import Epsilon, Gamma, Norm, Pass, ReLUDeconvNet, ReLUGuidedBackprop, ZBox, ZPlus

from worker.methods.suppression import PixelSpace


def attribution(cut: nn.Sequential, image: Tensor, kernel: Tensor, method: str, composite: Composite) -> Tensor:
    """The attribution g of each image's kernel on its own, (B, 3, H, W).

    Args:
        cut: as `private` makes it, images → F (B, C, h, w); it is left as it was.
        image: X, (B, 3, H, W), normalised.
        kernel: i, (B,), zero-based.
        composite: as `rules` makes it.
    """
    image = image.detach().clone().requires_grad_()
    with torch.enable_grad(), composite.context(cut) as network:
        features = network(image)
        rows = torch.arange(len(kernel), device=image.device)
        selected = features.detach()[rows, kernel]  # F_i, (B, h, w)
        start = torch.zeros_like(features)
        start[rows, kernel] = selected if method == "lrp" else selected.sign()
        (found,) = torch.autograd.grad(features, image, start)
    return found


def private(cut: nn.Sequential, method: str) -> nn.Sequential:
    """A copy of a cut network that ends with the layer's ReLU and may be hooked; it shares the parameters.

    Batch normalisation is folded into the convolution before it; for `lrp` maxima become averages.
    """
    shared = {id(tensor): tensor for tensor in (*cut.parameters(), *cut.buffers())}
    own: list[nn.Module] = []
    for module in copy.deepcopy(cut, shared):
        if isinstance(module, nn.BatchNorm2d):
            assert isinstance(own[-1], nn.Conv2d)
            own[-1] = fuse_conv_bn_eval(own[-1], module).requires_grad_(False)
        elif isinstance(module, nn.MaxPool2d) and method == "lrp":
            own.append(nn.AvgPool2d(module.kernel_size, module.stride, module.padding, module.ceil_mode))
        else:
            own.append(module)
    return nn.Sequential(*own, nn.ReLU()).eval()


def rules(cut: nn.Sequential, method: str, rule: str, space: PixelSpace) -> Composite:
    """What each module passes back, for a private copy."""
    if method != "lrp":
        relu = {"guided_backprop": ReLUGuidedBackprop, "deconvnet": ReLUDeconvNet}[method]()
        return Composite(lambda _context, _name, module: relu if isinstance(module, nn.ReLU) else None)
    first = [(nn.Conv2d, ZBox(space.low[None], space.high[None]))]
    others = [(nn.ReLU, Pass()), (nn.AvgPool2d, Norm()), (nn.Conv2d, ZPlus() if rule == "zplus" else Gamma())]
    if rule == "zplus":
        return SpecialFirstLayerMapComposite(others, first)
    last = [module for module in cut.modules() if isinstance(module, nn.Conv2d)][-1]
    return _LastByEpsilon(others, first, last)


class _LastByEpsilon(SpecialFirstLayerMapComposite):  # type: ignore[misc]
    """As its base class, but for one module."""

    def __init__(self, others: list[Any], first: list[Any], last: nn.Module) -> None:
        super().__init__(others, first)
        self.last = last

    def mapping(self, ctx: dict[str, object], name: str, module: nn.Module) -> object:
        """The rule of a module. A single convolution is the first before it is the last."""
        found = super().mapping(ctx, name, module)
        return Epsilon() if module is self.last and isinstance(found, Gamma) else found


def estimated(found: Tensor, image: Tensor, scaling: str, space: PixelSpace) -> Tensor:
    """X̂ of an attribution g: g / max|g| · X, or (g − min g) / (max g − min g) · X, inside the displayable box.

    Args:
        found, image: g and X, (B, 3, H, W); where g is constant nothing is known, and X̂ is the mean colour.
        scaling: `max` or `minmax`.
    """
    if scaling == "minmax":
        found = found - found.amin(dim=(1, 2, 3), keepdim=True)
    most = found.abs().amax(dim=(1, 2, 3), keepdim=True)
    weights = torch.where(most > 0, found / most.clamp_min(torch.finfo(found.dtype).tiny), 0)
    return (weights * image).clamp(space.low, space.high)
