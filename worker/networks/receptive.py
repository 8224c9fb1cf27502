"""Receptive fields, node by node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional

WINDOWS = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
POOLS = (functional.max_pool2d, functional.avg_pool2d, torch.max_pool2d)
EVERYTHING = (functional.adaptive_avg_pool2d, functional.adaptive_max_pool2d, torch.mean, "mean", torch.flatten)


class Field(NamedTuple):
    """The receptive field of one position, and the stride between neighbouring positions, in input pixels."""

    height: int = 1
    width: int = 1
    down: int = 1
    across: int = 1
    middle: float = 0.5  # of the first position's field, from the image's edge; that of the first pixel is 0.5

    @property
    def side(self) -> int:
        """The larger side."""
        return max(self.height, self.width)

    @property
    def stride(self) -> int:
        """The larger stride."""
        return max(self.down, self.across)

    def through(self, sides: tuple[int, int], strides: tuple[int, int], padding: tuple[int, int] = (0, 0)) -> Field:
        """The field after a window with these sides and strides, over a map with this padding."""
        return Field(
            self.height + (sides[0] - 1) * self.down,
            self.width + (sides[1] - 1) * self.across,
            self.down * strides[0],
            self.across * strides[1],
            self.middle + ((sides[0] - 1) / 2 - padding[0]) * self.down,
        )


def field_of(
    module: nn.Module | None, node: fx.Node, inputs: Sequence[Field], shapes: Mapping[fx.Node, tuple[int, ...]]
) -> Field:
    """The field of a node with these inputs.

    An average over the whole map, as in a gate, is ignored, since with it every field would be the whole image.
    """
    averages = isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d) or node.target in EVERYTHING
    if averages and set(shapes.get(node, ())[2:]) <= {1}:
        return Field()
    before = _together(inputs) if inputs else Field()
    if isinstance(module, WINDOWS):
        sides, dilation = _pair(module.kernel_size), _pair(getattr(module, "dilation", 1))
        padding = _padding(module.padding, _spread(sides, dilation))
        return before.through(_spread(sides, dilation), _pair(module.stride or module.kernel_size), padding)
    if node.target in POOLS:
        sides = _pair(_argument(node, 1, "kernel_size"))
        padding = _pair(_argument(node, 3, "padding") or 0)
        return before.through(sides, _pair(_argument(node, 2, "stride") or sides), padding)
    if node.target is torch.conv2d:
        strides, dilation = (
            _pair(_argument(node, place, name) or 1) for place, name in ((3, "stride"), (5, "dilation"))
        )
        height, width = shapes[node.all_input_nodes[1]][2:]
        spread = _spread((height, width), dilation)
        return before.through(spread, strides, _padding(_argument(node, 4, "padding") or 0, spread))
    return before


def _together(fields: Sequence[Field]) -> Field:
    """The field of parallel paths: the largest sides, with the middle of the largest field."""
    most = max(fields, key=lambda one: one.side)
    sides = (max(one.height for one in fields), max(one.width for one in fields))
    return Field(*sides, max(one.down for one in fields), max(one.across for one in fields), most.middle)


def _padding(padding: Any, sides: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of padding before the first ones."""
    if padding == "same":
        return (sides[0] - 1) // 2, (sides[1] - 1) // 2
    return _pair(0 if padding == "valid" else padding)


def _argument(node: fx.Node, place: int, name: str) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)


def _spread(sides: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int]:
    return 1 + (sides[0] - 1) * dilation[0], 1 + (sides[1] - 1) * dilation[1]


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[-1])
