"""The nodes of a traced network that can be explained, their receptive fields, and the network cut after a node."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torchvision.ops import stochastic_depth

from shared.images import Frame
from worker.methods.baselines import kind, without
from worker.methods.suppression.taps import ACTIVATIONS, Last, Sum
from worker.networks.receptive import Field, field_of
from worker.networks.tracing import SUM_SUFFIX, module_of, of_the_pixels, shapes

# The identity in eval mode, or part of the classifier.
IDENTITIES = (nn.ZeroPad2d, nn.Dropout, nn.Dropout2d, nn.Identity, nn.Flatten, nn.AdaptiveAvgPool2d)
PLUMBING = (  # moves values without computing
    *("view", "reshape", "transpose", "contiguous", "size", "chunk", "flatten", "permute", "unsqueeze", "squeeze"),
    *(operator.getitem, getattr, torch.transpose, torch.flatten, torch.chunk, torch.permute, stochastic_depth),
)
UNFINISHED = (nn.BatchNorm2d, *ACTIVATIONS)  # a node before these is not the end of a layer
COMMUTING = (torch.cat, functional.max_pool2d, torch.max_pool2d, stochastic_depth)  # with max(·, 0)
LEAST = 2  # positions a side of a map
FIRST, LAST = (0, 3, 1, 2), (0, 2, 3, 1)  # permutations: channels first, or last
WHOLE = 0.8  # of the nodes: a part of the network with more is no block, but contains the blocks


@dataclass(frozen=True)
class Node:
    """A node with maps (C, h, w)."""

    name: str  # torchvision's, or the papers'
    node: str  # torchvision's
    kernels: int
    height: int
    width: int
    field: Field
    without: Mapping[str, str]  # baselines that have no rule for a node below, with the reason
    signed: bool  # whether its maps may be negative: F = Z instead of F = max(Z, 0)
    block: str
    main: bool  # whether it is listed first


class Graph:
    """A network without weights: its nodes by torchvision's names, the parameters of each, and cuts.

    Args:
        network: a result of `traced`, on the meta device.
        frame: of its input.
        within: a prefix of the names of the nodes; all by default.
    """

    def __init__(self, network: fx.GraphModule, frame: Frame, within: str = "") -> None:
        self.network = network
        self.seen = of_the_pixels(network.graph)
        self.parameters = [key for key in network.state_dict() if not key.endswith("num_batches_tracked")]
        self._shapes = shapes(network, frame)
        self._last: set[fx.Node] = set()  # nodes with the channels last
        self._fields: dict[fx.Node, Field] = {}
        self._needs: dict[fx.Node, int] = {}  # bit set of the parameters of each node and of all below
        self._sources: dict[fx.Node, list[fx.Node] | None] = {}
        self._kinds: dict[fx.Node, frozenset[str]] = {}  # operations for which baselines may have no rule
        numbers = {key: number for number, key in enumerate(self.parameters)}
        for node in network.graph.nodes:
            self._analyse(node, numbers)
        self.found = {
            node.meta["name"]: node
            for node in network.graph.nodes
            if self._has_maps(node) and node.meta["name"].startswith(within)
        }

    def _analyse(self, node: fx.Node, numbers: Mapping[str, int]) -> None:
        inputs, module = node.all_input_nodes, module_of(self.network, node)
        permuted = _permutation(node)
        if permuted == LAST or (not permuted and any(one in self._last for one in inputs)):
            self._last.add(node)
        self._fields[node] = field_of(module, node, [self._fields[one] for one in inputs], self._shapes)
        self._sources[node] = _sources(node, module, [self._sources[one] for one in inputs])
        own = frozenset(filter(None, [kind(self.network, node, self._shapes)]))
        self._kinds[node] = own.union(*(self._kinds[one] for one in inputs))
        names = [f"{node.target}.{key}" for key in module.state_dict()] if module else [str(node.target)]
        self._needs[node] = sum(1 << numbers[name] for name in names if name in numbers)
        for one in inputs:
            self._needs[node] |= self._needs[one]

    def _has_maps(self, node: fx.Node) -> bool:
        if isinstance(module_of(self.network, node), IDENTITIES) or node.target in PLUMBING or not self._needs[node]:
            return False
        shape = self._shapes.get(node, ())
        called = node.op in ("call_module", "call_function", "call_method") and node in self.seen
        return called and len(shape) == 4 and shape[0] == 1 and min(self._shape(node)[1:]) >= LEAST

    def _shape(self, node: fx.Node) -> tuple[int, int, int]:
        """(C, h, w)."""
        _, one, two, three = self._shapes[node]
        return (three, one, two) if node in self._last else (one, two, three)

    def nodes(self, aliases: Mapping[str, tuple[str, str]]) -> dict[str, Node]:
        """The nodes with maps by name, in order.

        Args:
            aliases: the papers' names and blocks of nodes, by torchvision's name; if there are any, these are the main
                nodes.
        """
        blocks = self._blocks(aliases) if aliases else {name: _block(name, self.found) for name in self.found}
        main = set(aliases) or {name for name in _last_of_units(blocks) if self._finished(self.found[name])}
        described = [
            Node(
                aliases[name][0] if name in aliases else name,
                name,
                *self._shape(node),
                self._fields[node],
                without(self._kinds[node]),
                signed=self._sources[node] is None,
                block=blocks[name],
                main=name in main,
            )
            for name, node in self.found.items()
        ]
        return {one.name: one for one in described}

    def _blocks(self, aliases: Mapping[str, tuple[str, str]]) -> dict[str, str]:
        """Each node's block: of the next node with a papers' name; without parameters (pooling), of the last."""
        blocks: dict[str, str] = {}
        waiting: list[str] = []
        last = ""
        for name, node in self.found.items():
            module = module_of(self.network, node)
            if name in aliases:
                last = aliases[name][1]
                blocks |= dict.fromkeys([*waiting, name], last)
                waiting = []
            elif last and not (module and module.state_dict()):
                blocks[name] = last
            else:
                waiting.append(name)
        return {name: blocks.get(name, last) for name in self.found}

    def _finished(self, node: fx.Node) -> bool:
        """Whether it is followed by anything but batch normalisation or an activation."""
        return not all(isinstance(module_of(self.network, user), UNFINISHED) for user in node.users)

    def reached(self, keys: Iterable[str]) -> list[str]:
        """The nodes all of whose parameters, including those below, are among the keys."""
        known = frozenset(keys)
        absent = sum(1 << number for number, key in enumerate(self.parameters) if key not in known)
        return [name for name, node in self.found.items() if not self._needs[node] & absent]

    def used(self, key: str) -> bool:
        """Whether the maps of any node depend on this parameter."""
        bit = 1 << self.parameters.index(key)
        return any(self._needs[node] & bit for node in self.found.values())

    @cached_property
    def first(self) -> list[str]:
        """The weights of the first convolutions, which are applied to the pixels.

        Raises:
            ValueError: another operation is applied to the pixels too.
        """
        (pixels,) = (node for node in self.network.graph.nodes if node.op == "placeholder")
        found, left = [], list(pixels.users)
        while left:
            node = left.pop()
            module = module_of(self.network, node)
            if isinstance(module, nn.ZeroPad2d | nn.Identity):
                left += node.users
            elif isinstance(module, nn.Conv2d):
                found.append(f"{node.target}.weight")
            elif node.target is torch.conv2d:
                found.append(str(node.all_input_nodes[1].target))
            elif node.target not in ("size", getattr):
                raise ValueError(
                    "its order or range cannot be taken into account: its first operation is no convolution"
                )
        return found

    def below(self, nodes: Iterable[str]) -> fx.GraphModule:
        """The part of the network that these nodes need. It shares the modules."""
        wanted = [self.found[name] for name in nodes]
        graph, copies = _copied(self.network.graph, wanted)
        graph.output(copies[wanted[-1]])
        return fx.GraphModule(self.network, graph)

    def cut(self, filled: fx.GraphModule, name: str) -> fx.GraphModule:
        """The network up to a node: (B, 3, H, W) → Z (B, C, h, w); F = max(Z, 0), or F = Z if maps have a sign.

        Args:
            filled: a copy of `below` with weights; its cuts share its modules.
            name: of the node.
        """
        sources = self._sources[self.found[name]]
        node = next(one for one in filled.graph.nodes if one.meta.get("name") == name)
        own = {one.meta["name"]: one for one in filled.graph.nodes if "name" in one.meta}
        wanted = [node] if sources is None else [own[one.meta["name"]] for one in sources]
        graph, copies = _copied(filled.graph, wanted)
        if sources is None and isinstance(last := module_of(filled, node), ACTIVATIONS):  # taps are below it
            copies[node].target = f"{node.target}_last"
            filled.add_submodule(f"{node.target}_last", Last(last))
        found = copies[node] if sources is None else _before_relu(filled, graph, node, copies)
        if self.found[name] in self._last:
            found = graph.call_method("permute", (found, *FIRST))
        graph.output(found)
        return fx.GraphModule(filled, graph).eval()

    def each(
        self, filled: fx.GraphModule, names: Collection[str], images: Tensor, hook: Callable[[str, Tensor], None]
    ) -> None:
        """One forward pass of images (B, 3, H, W) up to the last of the nodes, with `hook(name, F)` for each."""
        last, left = {node.meta["name"] for node in self._last}, set(names)

        class Reader(fx.Interpreter):
            def run_node(self, node: fx.Node) -> Any:
                value: Any = super().run_node(node) if left else None
                if (name := node.meta.get("name", "")) in left:
                    hook(name, value.permute(FIRST) if name in last else value)
                    left.remove(name)
                return value

        Reader(filled).run(images)


def tapped(cut: fx.GraphModule) -> Iterator[str]:
    """Torchvision's names of the tapped nodes of a cut network, in order."""
    for node in cut.graph.nodes:
        if isinstance(module_of(cut, node), (*ACTIVATIONS, Sum)):
            yield node.meta["name"].removesuffix(SUM_SUFFIX)


def _sources(node: fx.Node, module: nn.Module | None, inputs: list[list[fx.Node] | None]) -> list[fx.Node] | None:
    """The inputs of the ReLUs whose values these are; None if the values may be negative or are processed further."""
    if isinstance(module, nn.ReLU | nn.ReLU6):
        return list(node.all_input_nodes)
    commutes = isinstance(module, nn.MaxPool2d | nn.Dropout | nn.Identity) if module else node.target in COMMUTING
    known = [one for one in inputs if one is not None]
    return list(chain.from_iterable(known)) if commutes and len(known) == len(inputs) else None


def _before_relu(network: fx.GraphModule, graph: fx.Graph, node: fx.Node, copies: Mapping[fx.Node, fx.Node]) -> fx.Node:
    """The node's value without its ReLUs, in the other graph; the upper limit of ReLU6 remains."""
    module = module_of(network, node)
    if isinstance(module, nn.ReLU):
        return copies[node.all_input_nodes[0]]
    if isinstance(module, nn.ReLU6):
        return graph.call_function(torch.clamp_max, (copies[node.all_input_nodes[0]], 6.0))
    return graph.node_copy(node, lambda one: _before_relu(network, graph, one, copies))


def _copied(graph: fx.Graph, wanted: Iterable[fx.Node]) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """A graph of these nodes and all below, and the copy of each node."""
    needed, left = set[fx.Node](), list(wanted)
    while left:
        node = left.pop()
        if node not in needed:
            needed.add(node)
            left += node.all_input_nodes
    new = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node in needed:
            copies[node] = new.node_copy(node, copies.__getitem__)
    return new, copies


def _permutation(node: fx.Node) -> tuple[int, ...]:
    """The permutation of axes by a node; () if it is none."""
    if node.target == "permute" or node.target is torch.permute:
        rest = node.args[1:] or (node.kwargs.get("dims", ()),)
        axes = rest[0] if rest and isinstance(rest[0], tuple | list) else rest
        return tuple(axis for axis in axes if isinstance(axis, int))
    return ()


def _block(name: str, names: Iterable[str]) -> str:
    """A node's block: the first component of its name, or the first two if nearly all nodes share the first."""
    counts = Counter(one.partition(".")[0] for one in names)
    first, _, rest = name.partition(".")
    return f"{first}.{rest.partition('.')[0]}" if rest and counts[first] > WHOLE * counts.total() else first


def _last_of_units(blocks: Mapping[str, str]) -> Iterator[str]:
    """The last node of each unit of a block."""
    last: dict[str, str] = {}
    for name, block in blocks.items():
        rest = name.removeprefix(block).removeprefix(".")
        last[f"{block}.{rest.partition('.')[0]}" if "." in rest else block] = name
    yield from last.values()
