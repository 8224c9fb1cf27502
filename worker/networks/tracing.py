"""Traces a CNN as a graph (torch.fx) in which each activation is a module of its own and nothing works in place.

Activation functions become modules. A module that is called several times becomes several modules, unless it has
parameters, whose names occur in files. A `Sum` module is added after each addition that no activation follows. Thus
everything that may be tapped (methods/suppression/taps.py) is a module.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from threading import Lock, get_ident
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torchvision.models.feature_extraction import NodePathTracer

from shared.images import Frame
from worker.methods.suppression.taps import ACTIVATIONS, Sum

AS_MODULES: dict[Any, tuple[type[nn.Module], int]] = {  # (module, number of its options after the first argument)
    functional.relu: (nn.ReLU, 0),
    torch.relu: (nn.ReLU, 0),
    torch.relu_: (nn.ReLU, 0),
    "relu": (nn.ReLU, 0),
    "relu_": (nn.ReLU, 0),
    functional.relu6: (nn.ReLU6, 0),
    functional.silu: (nn.SiLU, 0),
    functional.gelu: (nn.GELU, 1),
    functional.hardswish: (nn.Hardswish, 0),
    functional.leaky_relu: (nn.LeakyReLU, 1),
    functional.elu: (nn.ELU, 1),
    functional.celu: (nn.CELU, 1),
    functional.selu: (nn.SELU, 0),
    functional.mish: (nn.Mish, 0),
    functional.softplus: (nn.Softplus, 2),
}
SUM_SUFFIX = ":sum"  # an addition's name with it is that of its `Sum`
ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")


class OnMeta(TorchFunctionMode):
    """Within this mode new modules have their parameters on the meta device; other numbers are real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Create uninitialised and constant tensors on the meta device."""
        if func in (torch.empty, torch.ones, torch.zeros):
            kwargs = {**(kwargs or {}), "device": "meta"}
        return func(*args, **(kwargs or {}))


class _Tracer(NodePathTracer):  # type: ignore[misc]  # torchvision has no types
    """A tracer that does not affect other threads.

    While it traces, torch.fx replaces the call of every module in the process. Calls of other threads are passed to the
    original, since otherwise they would fail or become part of the graph.
    """

    def __init__(self) -> None:
        super().__init__()
        self._thread = get_ident()

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A node of the graph; for another thread, the module's result."""
        return super().call_module(m, forward, args, kwargs) if self._own() else forward(*args, **kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        """An attribute of a module; for another thread, its value."""
        return super().getattr(attr, attr_val, parameter_proxy_cache) if self._own() else attr_val

    def _own(self) -> bool:
        return get_ident() == self._thread


TRACING = Lock()  # two concurrent tracers would restore each other's replacements


def traced(module: nn.Module) -> fx.GraphModule:
    """The graph of a network, frozen, in eval mode. It shares the parameters of `module`.

    `meta["name"]` of a node is its name as of torchvision's feature extraction.

    Raises:
        ValueError: the network cannot be traced; says why.
    """
    tracer = _Tracer()
    try:
        with TRACING:
            graph = tracer.trace(module.eval().requires_grad_(False))
    except Exception as error:
        raise ValueError(f"torch.fx cannot trace it: {error}") from error
    for node in graph.nodes:
        node.meta["name"] = tracer.node_to_qualname.get(node, node.name)
    network = fx.GraphModule(tracer.root, graph)
    for node in list(graph.nodes):
        if _works_in_place(network, node):
            _out_of_place(graph, node)
    for inner in network.modules():
        if hasattr(inner, "inplace"):
            setattr(inner, "inplace", False)  # noqa: B010 - modules are typed as having tensors and modules only
    _separate_activations(network)
    _add_sums(network)
    network.recompile()
    return network


def _separate_activations(network: fx.GraphModule) -> None:
    """Make each activation a module that is called once, except those with parameters, whose names occur in files."""
    called: set[str] = set()
    for node in list(network.graph.nodes):
        if (activation := _activation(network, node)) is not None:
            alone = node.op == "call_module" and node.target not in called
            if alone or any(True for _ in activation.parameters()):
                called.add(str(node.target))
            else:
                _call_module(network, node, activation)


def _add_sums(network: fx.GraphModule) -> None:
    """Add a `Sum` after each addition of maps that is followed by anything but an activation."""
    seen = of_the_pixels(network.graph)
    for node in list(network.graph.nodes):
        follows = any(_activation(network, user) is None for user in node.users)
        if _is(node, *ADDITIONS) and node in seen and follows:
            with network.graph.inserting_after(node):
                behind = network.graph.call_module(_added(network, f"{node.meta['name']}_sum", Sum()), (node,))
            node.replace_all_uses_with(behind, lambda user, own=behind: user is not own)
            behind.meta["name"] = f"{node.meta['name']}{SUM_SUFFIX}"


def of_the_pixels(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose values are computed from the pixels, not only from sizes."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        sizes = node.target in ("size", "dim", getattr) or (node.op == "get_attr")
        if node.op == "placeholder" or (not sizes and any(one in found for one in node.all_input_nodes)):
            found.add(node)
    return found


def module_of(network: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that a node calls, if any."""
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def shapes(network: fx.GraphModule, frame: Frame) -> dict[fx.Node, tuple[int, ...]]:
    """The shape of each node's value for one image, without those that are no tensors. Nothing is computed.

    Args:
        network: on the meta device.

    Raises:
        ValueError: the network cannot process such images.
    """
    found: dict[fx.Node, tuple[int, ...]] = {}

    class Reader(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            value = super().run_node(node)
            if isinstance(value, Tensor):
                found[node] = tuple(value.shape)
            return value

    try:
        with torch.no_grad():
            image = torch.empty(1, frame.channels, frame.height, frame.width, device="meta")
            Reader(network, garbage_collect_values=False).run(image)
    except RuntimeError as error:
        size = f"{frame.width} × {frame.height} pixels in {'colour' if frame.channels == 3 else 'grey'}"
        raise ValueError(f"it cannot process images of {size}: {str(error).splitlines()[0]}") from error
    return found


def _works_in_place(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether it modifies its input."""
    module, target = module_of(network, node), node.target
    if module is not None:
        return bool(getattr(module, "inplace", False))
    if node.op == "call_method":
        return isinstance(target, str) and target.endswith("_") and hasattr(Tensor, target[:-1])
    options = AS_MODULES.get(target, (None, 0))[1] if node.op == "call_function" else 0
    by_place = target in AS_MODULES and len(node.args) > 1 + options and node.args[1 + options] is True
    return by_place or bool(node.kwargs.get("inplace")) or target in (operator.iadd, operator.imul, torch.relu_)


def _out_of_place(graph: fx.Graph, node: fx.Node) -> None:
    """Make an in-place operation return a new value, which replaces the old one in all later nodes."""
    target = node.target
    if "inplace" in node.kwargs:
        node.kwargs = {**node.kwargs, "inplace": False}
    if node.op == "call_method" and isinstance(target, str):
        node.target = target[:-1]
    elif target in (operator.iadd, operator.imul):
        node.target = operator.add if target is operator.iadd else operator.mul
    value = node.all_input_nodes[0]
    later = {one for one in graph.nodes if node < one}
    value.replace_all_uses_with(node, lambda user: user in later)


def _activation(network: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The activation of a node, if it is one."""
    if (module := module_of(network, node)) is not None:
        return module if isinstance(module, ACTIVATIONS) else None
    if _is(node, *AS_MODULES):
        kind, count = AS_MODULES[node.target]
        options = {key: value for key, value in node.kwargs.items() if key not in ("inplace", "input")}
        return kind(*node.args[1 : 1 + count], **options)
    return None


def _call_module(network: fx.GraphModule, node: fx.Node, activation: nn.Module) -> None:
    """Let the node call a copy of this activation."""
    value = node.args[0] if node.args else node.kwargs["input"]
    node.op, node.target = "call_module", _added(network, node.meta["name"], copy.copy(activation))
    node.args, node.kwargs = (value,), {}


def _added(network: fx.GraphModule, name: str, module: nn.Module) -> str:
    """Add a module under this name, or a longer one if that is taken. Returns the name."""
    taken = {path for path, _ in network.named_modules()} | {path for path, _ in network.named_parameters()}
    while name in taken:
        name += "_"
    network.add_submodule(name, module)
    return name


def _is(node: fx.Node, *targets: Any) -> bool:
    return node.op in ("call_function", "call_method") and node.target in targets
