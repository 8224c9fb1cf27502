"""The value of each node of a network by torchvision's own graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import NodePathTracer


def plain_run(model: nn.Module, image: Tensor, *, training: bool = False) -> dict[str, Tensor]:
    """The value of each node of torchvision's graph, copied before another node can change it."""
    tracer = NodePathTracer()
    graph = fx.GraphModule(model, tracer.trace(model if training else model.eval()))
    names = {node.name: name for node, name in tracer.node_to_qualname.items()}
    found: dict[str, Tensor] = {}

    class Reader(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            value = super().run_node(node)
            if isinstance(value, Tensor) and node.name in names:
                found[names[node.name]] = value.clone()
            return value

    with torch.no_grad():
        Reader(graph).run(image)
    return found
