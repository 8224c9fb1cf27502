"""The baseline methods that suppression is compared with, computed by the attribution library zennit.

    guided_backprop   gradient of Σ|F_i|; a ReLU passes positive gradients where its input was positive
                      (Springenberg et al.)
    deconvnet         gradient of Σ|F_i|; a ReLU passes positive gradients (Zeiler & Fergus)
    lrp               F_i is the relevance (Binder et al.): z^B in the first convolution, z⁺ in the others, or γ and in
                      the last one ε (`rule="gamma_epsilon"`); max-pooling is treated as average-pooling

The attribution g becomes an image as X̂ = g / max|g| · X in the normalised space, or with g scaled to [0, 1].
"""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import stochastic_depth
from zennit.composites import SpecialFirstLayerMapComposite
from zennit.core import Composite
from zennit.layer import Sum
from zennit.rules import Epsilon, Gamma, Norm, Pass, ReLUDeconvNet, ReLUGuidedBackprop, ZBox, ZPlus

from worker.methods.suppression import PixelSpace

METHODS = {"guided_backprop": "guided backpropagation", "deconvnet": "deconvolution", "lrp": "LRP"}
SMOOTH = {
    *("SiLU", "GELU", "Hardswish", "LeakyReLU", "PReLU", "ELU", "CELU", "SELU", "Mish", "Softplus", "RReLU", "Tanh"),
    *("Hardtanh", "Softsign", "Tanhshrink", "LogSigmoid", "tanh", "hardtanh", "clamp", "prelu", "rrelu", "softsign"),
}
RULED = (nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.Dropout, nn.Identity)
POOLS = (functional.max_pool2d, functional.avg_pool2d, torch.max_pool2d)
ADDITIONS = (operator.add, torch.add, "add")
LINEAR = (  # linear operations, whose gradient is used as it is
    *("view", "reshape", "transpose", "contiguous", "size", "chunk", "permute"),
    *(operator.getitem, operator.floordiv, torch.cat, torch.transpose, torch.chunk, stochastic_depth),
    *(*POOLS, *ADDITIONS),
)


def attribution(cut: nn.Module, image: Tensor, kernel: Tensor, method: str, composite: Composite) -> Tensor:
    """The attribution g of each image's kernel, (B, 3, H, W).

    Args:
        cut: a result of `private`, images → F (B, C, h, w); it is not changed.
        image: X, (B, 3, H, W), normalised.
        kernel: i, (B,), zero-based.
        method: one of `METHODS`.
        composite: a result of `rules`.
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


def without(kinds: Collection[str]) -> dict[str, str]:
    """The methods that have no rule for a network, with the reason.

    Args:
        kinds: the results of `kind` for its nodes.
    """
    found = {}
    if others := sorted(set(kinds) & SMOOTH):
        for method in ("guided_backprop", "deconvnet"):
            found[method] = f"{METHODS[method]} has a rule for ReLU, and none for {' and '.join(others)}"
    if kinds:
        found["lrp"] = f"{METHODS['lrp']} has no rule here for {' and '.join(sorted(kinds))}"
    return found


def kind(network: fx.GraphModule, node: fx.Node, shapes: Mapping[fx.Node, tuple[int, ...]]) -> str | None:
    """The kind of a node for which not all baselines have a rule; None if all have one.

    Args:
        network: of the node.
        node: any node.
        shapes: of the nodes' values.
    """
    if node.op not in ("call_module", "call_function", "call_method"):
        return "a parameter of its own" if node.op == "get_attr" else None
    module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
    if isinstance(module, nn.BatchNorm2d):
        return None if _fused(network, node) else "batch normalisation without a convolution before it"
    if isinstance(module, RULED):
        return None
    if node.target in ADDITIONS:
        alike = len({shapes.get(one) for one in node.all_input_nodes}) == 1
        plain = len(node.all_input_nodes) == len(node.args) == 2 and not node.kwargs
        return None if plain and alike else "an addition that is not of two maps"
    if module is None:
        return None if node.target in LINEAR else getattr(node.target, "__name__", str(node.target))
    return type(module).__name__


def _fused(network: fx.GraphModule, node: fx.Node) -> nn.Conv2d | None:
    """The convolution before a batch normalisation, if nothing else uses its output."""
    (before,) = node.all_input_nodes
    module = network.get_submodule(str(before.target)) if before.op == "call_module" else None
    return module if isinstance(module, nn.Conv2d) and len(before.users) == 1 else None


def private(cut: nn.Module, method: str, *, signed: bool = False) -> fx.GraphModule:
    """A copy of a cut network, for hooks, that ends with the layer's ReLU; it shares the parameters.

    Batch normalisation is folded into the convolution before it. For `lrp`, max-pooling becomes average-pooling, and
    additions become modules.
    """
    shared = {id(tensor): tensor for tensor in (*cut.parameters(), *cut.buffers())}
    own = copy.deepcopy(cut, shared)
    network = own if isinstance(own, fx.GraphModule) else fx.symbolic_trace(own)
    graph = network.graph
    _separate_calls(network)
    for node in list(graph.nodes):
        module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.BatchNorm2d) and (conv := _fused(network, node)):
            before = node.all_input_nodes[0]
            network.add_submodule(str(before.target), fuse_conv_bn_eval(conv, module).requires_grad_(False))
            node.replace_all_uses_with(before)
            graph.erase_node(node)
        elif method == "lrp" and (isinstance(module, nn.MaxPool2d) or node.target in POOLS):
            _call_module(network, node, _average(node, module), node.all_input_nodes[0])
        elif method == "lrp" and node.target in ADDITIONS:
            with graph.inserting_before(node):
                both = graph.call_function(torch.stack, (list(node.all_input_nodes),), {"dim": -1})
            _call_module(network, node, Sum(), both)
    (output,) = (node for node in graph.nodes if node.op == "output")
    if not signed:
        network.add_submodule("last_relu", nn.ReLU())
        with graph.inserting_before(output):
            output.args = (graph.call_module("last_relu", (output.args[0],)),)
    network.recompile()
    return network.eval()


def _separate_calls(network: fx.GraphModule) -> None:
    """Give each call a module of its own with the same tensors, since hooks and folding concern one call."""
    called = Counter(node.target for node in network.graph.nodes if node.op == "call_module")
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    for node in network.graph.nodes:
        if node.op == "call_module" and called[node.target] > 1:
            module = copy.deepcopy(network.get_submodule(str(node.target)), dict(shared))
            network.add_submodule(f"own_{node.name}", module)
            node.target = f"own_{node.name}"


def _average(node: fx.Node, module: nn.Module | None) -> nn.AvgPool2d:
    """Average-pooling over the windows of a pooling node."""
    if isinstance(module, nn.MaxPool2d):
        return nn.AvgPool2d(module.kernel_size, module.stride, module.padding, module.ceil_mode)
    names = ("kernel_size", "stride", "padding", *(("ceil_mode",) if node.target is functional.avg_pool2d else ()))
    given = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
    return nn.AvgPool2d(**{name: given[name] for name in (*names, "ceil_mode") if given.get(name) is not None})


def _call_module(network: fx.GraphModule, node: fx.Node, module: nn.Module, value: fx.Node) -> None:
    name = f"own_{node.name}"
    network.add_submodule(name, module)
    node.op, node.target, node.args, node.kwargs = "call_module", name, (value,), {}


def rules(cut: nn.Module, method: str, rule: str, space: PixelSpace) -> Composite:
    """The rule of each module of a private copy."""
    if method != "lrp":
        relu = {"guided_backprop": ReLUGuidedBackprop, "deconvnet": ReLUDeconvNet}[method]()
        return Composite(lambda _context, _name, module: relu if isinstance(module, nn.ReLU | nn.ReLU6) else None)
    first = [(nn.Conv2d, ZBox(space.low[None], space.high[None]))]
    others = [(nn.ReLU, Pass()), ((nn.AvgPool2d, Sum), Norm()), (nn.Conv2d, ZPlus() if rule == "zplus" else Gamma())]
    if rule == "zplus":
        return SpecialFirstLayerMapComposite(others, first)
    last = [module for module in cut.modules() if isinstance(module, nn.Conv2d)][-1]
    return _LastByEpsilon(others, first, last)


class _LastByEpsilon(SpecialFirstLayerMapComposite):  # type: ignore[misc]
    """Applies the ε-rule to the last convolution."""

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
        found, image: g and X, (B, 3, H, W). Where g = 0, or g is constant and `minmax`, X̂ is the mean colour.
        scaling: `max` or `minmax`.
        space: of the images.
    """
    if scaling == "minmax":
        found = found - found.amin(dim=(1, 2, 3), keepdim=True)
    most = found.abs().amax(dim=(1, 2, 3), keepdim=True)
    weights = torch.where(most > 0, found / most.clamp_min(torch.finfo(found.dtype).tiny), 0)
    return (weights * image).clamp(space.low, space.high)
