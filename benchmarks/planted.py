"""A network whose kernels are set by hand, pictures for it, and the exact pixels that drive a kernel on a picture.

Layer `conv1` has a kernel for each of six colours, and four for horizontal and vertical edges in either direction.
Layer `conv2` has kernels for conjunctions (an edge of one colour) and for disjunctions (one colour or another), whose
pictures have less in common the more alternatives there are.
"""

from __future__ import annotations

import hashlib
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional

from shared.drawings import COLOURS
from shared.images import Frame
from shared.schemas import WeightsUsed
from worker.engine.questions import Picture
from worker.methods.suppression import PixelSpace
from worker.networks.layer import LoadedNetwork
from worker.networks.loaded import Networks

SIDE = 48
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
DRIVES = 0.1  # of the largest decrease of ΣF_i: a value whose removal decreases it by less does not drive the kernel
FIELD = 5  # side of the receptive field of `conv2`, in pixels
PATCH, CELL = 14, 16  # pixels; three by three patches
PERIOD = 4  # of stripes

RGB = {
    "red": (1, 0, 0),
    "yellow": (1, 1, 0),
    "green": (0, 1, 0),
    "cyan": (0, 1, 1),
    "blue": (0, 0, 1),
    "magenta": (1, 0, 1),
}
EDGES = ("horizontal", "horizontal'", "vertical", "vertical'")  # a prime: with dark and bright exchanged
CONV1 = (*COLOURS, *EDGES)
CONV2: dict[str, tuple[str, tuple[str, ...]]] = {
    **{f"{colour} and {edge}": ("and", (colour, edge)) for colour in ("red", "green", "blue") for edge in EDGES[::2]},
    **{colour: ("or", (colour,)) for colour in ("red", "green", "blue", "yellow")},
    "red or green": ("or", ("red", "green")),
    "blue or yellow": ("or", ("blue", "yellow")),
    "red, green or blue": ("or", ("red", "green", "blue")),
    "yellow, cyan or magenta": ("or", ("yellow", "cyan", "magenta")),
}
LAYERS: dict[str, tuple[str, ...]] = {"conv1": CONV1, "conv2": tuple(CONV2)}


def network() -> nn.Sequential:
    """Images → Z of `conv2`, before its ReLU; frozen."""
    first, second = nn.Conv2d(3, len(CONV1), 3, padding=1), nn.Conv2d(len(CONV1), len(CONV2), 3, padding=1)
    with torch.no_grad():
        for parameter in (*first.parameters(), *second.parameters()):
            parameter.zero_()
        for kernel, name in enumerate(CONV1):
            _set_first(first, kernel, name)
        for kernel, (kind, parts) in enumerate(CONV2.values()):
            _set_second(second, kernel, kind, parts)
    return nn.Sequential(first, nn.ReLU(), second).requires_grad_(False).eval()


def _set_first(layer: nn.Conv2d, kernel: int, name: str) -> None:
    """Set a kernel for a colour (its channels minus the others at one pixel) or an edge."""
    assert layer.bias is not None
    if name in RGB:
        on = torch.tensor(RGB[name]).bool()
        layer.weight[kernel, on, 1, 1] = 1.0 / int(on.sum())
        layer.weight[kernel, ~on, 1, 1] = -1.0 / int((~on).sum())
        layer.bias[kernel] = -2.5
        return
    layer.weight[kernel] = _step(name) / 3
    layer.bias[kernel] = -0.2


def _set_second(layer: nn.Conv2d, kernel: int, kind: str, parts: tuple[str, ...]) -> None:
    """Set a kernel for an edge in the map of a colour, or for any of several colours."""
    assert layer.bias is not None
    if kind == "or":
        for part in parts:
            layer.weight[kernel, CONV1.index(part), 1, 1] = 1.0
        return
    colour, edge = parts
    layer.weight[kernel, CONV1.index(colour)] = _step(edge)
    layer.bias[kernel] = -0.3


def _step(name: str) -> Tensor:
    """An edge filter: bright above dark, or left of it; reversed with a prime."""
    step = torch.tensor([[1.0, 1, 1], [0, 0, 0], [-1, -1, -1]]) / 3
    step = step if name.startswith("horizontal") else step.T
    return -step if name.endswith("'") else step


class PlantedNetworks(Networks):
    """The planted network for a `TorchDevice`, under the name `planted`."""

    def __init__(self) -> None:
        super().__init__(Path("/nonexistent"), torch.device("cpu"), download=False)
        net = network()
        state = b"".join(tensor.numpy().tobytes() for tensor in net.state_dict().values())
        self.planted = LoadedNetwork.of(
            name="planted",
            space=PixelSpace.of(MEAN, STD),
            frame=Frame(SIDE, SIDE),
            weights=WeightsUsed(source="planted", sha256=hashlib.sha256(state).hexdigest()),
            reason="set by hand",
            cuts={"conv1": net[:1], "conv2": net},
        )

    def get(self, name: str) -> LoadedNetwork:
        """The only network."""
        assert name == "planted"
        return self.planted


def picture(seed: int) -> Picture:
    """Six patches on grey, each of one colour, plain or striped in either direction with black or grey gaps."""
    rng = np.random.default_rng(seed)
    grey = int(rng.integers(90, 166))
    image = Image.new("RGB", (SIDE, SIDE), (grey, grey, grey))
    colours = rng.permutation(list(RGB))[: rng.integers(2, 5)]
    for place in rng.permutation(9)[:6]:
        full = rng.uniform(0.85, 1)
        ink = tuple(int(255 * full * level) for level in RGB[str(rng.choice(colours))])
        paper = (0, 0, 0) if rng.random() < 0.5 else (grey, grey, grey)
        patch = Image.new("RGB", (PATCH, PATCH), ink)
        if (along := rng.integers(3)) < 2:
            pen = ImageDraw.Draw(patch)
            for start in range(0, PATCH, PERIOD):
                low, high = start, start + PERIOD // 2 - 1
                pen.rectangle((0, low, PATCH, high) if along else (low, 0, high, PATCH), fill=paper)
        image.paste(patch, (int(place) % 3 * CELL + 1, int(place) // 3 * CELL + 1))
    return np.asarray(image)


@torch.no_grad()
def drivers(cut: nn.Module, image: Tensor, kernel: int) -> Tensor:
    """The values of X that drive a kernel, (3, H, W) bool: those without which ΣF_i is lower.

    The definition is evaluated directly: each value is set to the mean colour, and the network run. Values so far apart
    that no position has two of them in its receptive field are removed together.

    Args:
        cut: images → Z.
        image: X, (1, 3, H, W), normalised.
        kernel: i.
    """
    whole = cut(image)[:, kernel].clamp_min(0)
    decrease = torch.zeros(image.shape[1:])
    for channel, row, column in product(range(3), range(FIELD), range(FIELD)):
        without = image.clone()
        without[:, channel, row::FIELD, column::FIELD] = 0
        change = whole - cut(without)[:, kernel].clamp_min(0)
        around = FIELD**2 * functional.avg_pool2d(change, FIELD, 1, FIELD // 2)  # over the positions that see a value
        decrease[channel, row::FIELD, column::FIELD] = around[0, row::FIELD, column::FIELD]
    return (decrease >= DRIVES * decrease.max()) & (decrease > 0)


def alternatives(layer: str) -> dict[int, int]:
    """The number of different things that each kernel responds to."""
    if layer == "conv1":
        return dict.fromkeys(range(len(CONV1)), 1)
    return {kernel: len(parts) if kind == "or" else 1 for kernel, (kind, parts) in enumerate(CONV2.values())}


def overlap(layer: str, one: int, other: int) -> float:
    """The Jaccard index of the things that two kernels respond to."""
    a, b = (set(_parts(layer, kernel)) for kernel in (one, other))
    return len(a & b) / len(a | b)


def _parts(layer: str, kernel: int) -> tuple[Any, ...]:
    return (CONV1[kernel],) if layer == "conv1" else tuple(CONV2.values())[kernel][1]
