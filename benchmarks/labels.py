"""Labels of `vgg_mini`'s kernels for `benchmarks.ground_truth`: the colour or texture that they respond to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.drawings import COLOURS, TEXTURES, Drawing, Figure, draw, random_background
from worker.engine.engine import Engine

Mask = NDArray[np.bool_]

LABELLED = 2.0  # times the response to every alternative
SHAPES_SHOWN = ("circle", "square", "star")
MINI_SIZE = 96


@dataclass(frozen=True)
class Label:
    """The colour or texture that a kernel of `vgg_mini` responds to."""

    kernel: int
    colour: str | None
    texture: str | None
    ratio: float  # of the response to the next best

    @property
    def text(self) -> str:
        """The label as text."""
        return " ".join(word for word in (self.colour, self.texture) if word)


def labels(engine: Engine, layer: str) -> list[Label]:
    """The labels of a layer's kernels, from figures that differ only in their colour or texture."""
    every = [_responses(engine, layer, shape, seed) for seed, shape in enumerate(SHAPES_SHOWN)]
    figure, place = (np.mean(part, axis=0) for part in zip(*every, strict=True))
    found = []
    for kernel, response in enumerate(figure.transpose(2, 0, 1)):  # (colours, textures)
        colour, by_colour = _preferred(response.mean(axis=1), place[kernel])
        texture, by_texture = _preferred(response.mean(axis=0), place[kernel])
        if max(by_colour, by_texture) >= LABELLED:
            found.append(
                Label(
                    kernel,
                    list(COLOURS)[colour] if by_colour >= LABELLED else None,
                    TEXTURES[texture] if by_texture >= LABELLED else None,
                    max(by_colour, by_texture),
                )
            )
    return found


def _responses(engine: Engine, layer: str, shape: str, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean activation inside a figure, (colours, textures, kernels), and of the background there, (kernels,)."""
    background = random_background(np.random.default_rng(seed), MINI_SIZE)
    inside = draw([Figure(shape, "solid", 0)], MINI_SIZE, background).shapes[0]

    def response(picture: Image.Image) -> NDArray[np.float64]:
        maps = engine.call(engine.device.feature_maps, "vgg_mini", layer, np.asarray(picture))
        step = MINI_SIZE // maps.shape[1]
        mean: NDArray[np.float64] = maps[:, inside[step // 2 :: step, step // 2 :: step]].mean(axis=1)
        return mean

    found = [
        [response(draw([Figure(shape, texture, hue)], MINI_SIZE, background).image) for texture in TEXTURES]
        for hue in COLOURS.values()
    ]
    return np.array(found), response(background)


def _preferred(response: NDArray[np.float64], place: float) -> tuple[int, float]:
    """The best, and its ratio to the next best or the background; 0 without any response."""
    order = response.argsort()[::-1]
    best, second = response[order[0]], max(response[order[1]], place, 1e-9)
    return int(order[0]), float(best / second) if best > 0 else 0.0


def shown(drawing: Drawing, label: Label) -> Mask:
    """The pixels of the figures with this label: the ink for a colour, the whole shape for a texture."""
    found = np.zeros((MINI_SIZE, MINI_SIZE), dtype=bool)
    for figure, shape, ink in zip(drawing.figures, drawing.shapes, drawing.inks, strict=True):
        right_hue = label.colour is None or _apart(figure.hue, COLOURS[label.colour]) < 30
        if right_hue and label.texture in (None, figure.texture):
            found |= shape & ink if label.texture is None else shape
    return found


def _apart(one: float, other: float) -> float:
    """Degrees between two hues."""
    return abs((one - other + 180) % 360 - 180)
