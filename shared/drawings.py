"""Synthetic pictures for the demonstration and the tests: an image of all colours, and figures with exact masks.

`vgg_mini` was trained on such figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = {"red": 0, "yellow": 60, "green": 120, "cyan": 180, "blue": 240, "magenta": 300}  # hue in degrees
TEXTURES = ("solid", "stripes", "dots", "checks")
SUPERSAMPLING = 4

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Figure:
    """A coloured, textured shape.

    `x`, `y`, `radius` and the texture's `period` are fractions of the picture's side; `angle` is in radians, `hue` in
    degrees, `saturation` and `value` in [0, 1]. The gaps of the texture show `paper` (RGB in [0, 255]).
    """

    shape: str
    texture: str
    hue: float
    x: float = 0.5
    y: float = 0.5
    radius: float = 0.3
    angle: float = 0.0
    saturation: float = 1.0
    value: float = 1.0
    period: float = 0.09
    paper: tuple[int, int, int] = (240, 240, 240)


@dataclass(frozen=True)
class Drawing:
    """A picture with two masks for each figure: the pixels of its shape, and of its ink (height × width)."""

    image: Image.Image
    shapes: list[Mask]
    inks: list[Mask]
    figures: list[Figure]


def all_colours(size: int) -> Image.Image:
    """Every hue from left to right; from white (top) through the pure colour (middle) to black (bottom)."""
    hue = np.broadcast_to(np.linspace(0, 255, size, endpoint=False), (size, size))
    height = np.broadcast_to(np.linspace(0, 2, size)[:, None], (size, size))
    hsv = np.stack([hue, 255 * np.minimum(height, 1), 255 * np.minimum(2 - height, 1)], axis=-1)
    return Image.fromarray(hsv.round().astype(np.uint8), "HSV").convert("RGB")


def draw(figures: list[Figure], size: int, background: Image.Image) -> Drawing:
    """Draw figures on a background of size × size, later ones over earlier ones, with smooth edges."""
    picture = background.convert("RGB")
    shapes: list[Mask] = []
    inks: list[Mask] = []
    for figure in figures:
        shape = _shape_mask(figure, size)
        ink = shape * _texture(figure, size)
        paper = Image.new("RGB", picture.size, figure.paper)
        picture = Image.composite(paper, picture, _alpha(shape))
        picture = Image.composite(Image.new("RGB", picture.size, _rgb(figure)), picture, _alpha(ink))
        shapes = [*(mask & (shape < 0.5) for mask in shapes), shape >= 0.5]
        inks = [*(mask & (shape < 0.5) for mask in inks), ink >= 0.5]
    return Drawing(picture, shapes, inks, figures)


def random_figure(rng: Generator, shape: str, colour: str, texture: str, radius: tuple[float, float]) -> Figure:
    """A figure of the given kind; everything else is random."""
    size = rng.uniform(*radius)
    return Figure(
        shape=shape,
        texture=texture,
        hue=(COLOURS[colour] + rng.uniform(-12, 12)) % 360,
        x=rng.uniform(size, 1 - size),
        y=rng.uniform(size, 1 - size),
        radius=size,
        angle=rng.uniform(0, 2 * pi),
        saturation=rng.uniform(0.7, 1.0),
        value=rng.uniform(0.7, 1.0),
        period=rng.uniform(0.08, 0.12),
        paper=(235, 235, 235) if rng.random() < 0.5 else (25, 25, 25),
    )


def random_background(rng: Generator, size: int) -> Image.Image:
    """A muted, smooth and noisy background without figures."""
    coarse = rng.uniform(70, 185, (4, 4, 1)) + rng.uniform(-18, 18, (4, 4, 3))
    smooth = Image.fromarray(coarse.astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    noisy = np.asarray(smooth) + rng.normal(0, 8, (size, size, 1))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def scene(seed: int, size: int) -> Drawing:
    """Four figures of different colours and textures, one in each quarter: a picture to explain `vgg_mini` on."""
    rng = np.random.default_rng(seed)
    colours = rng.permutation(list(COLOURS))[:4]
    shapes = rng.permutation(SHAPES)[:4]
    textures = rng.permutation(TEXTURES)
    figures = []
    for quarter, (shape, colour, texture) in enumerate(zip(shapes, colours, textures, strict=True)):
        figure = random_figure(rng, str(shape), str(colour), str(texture), (0.19, 0.22))
        x, y = 0.27 + 0.46 * (quarter % 2), 0.27 + 0.46 * (quarter // 2)
        figures.append(Figure(**{**figure.__dict__, "x": x, "y": y}))
    return draw(figures, size, random_background(rng, size))


def _rgb(figure: Figure) -> tuple[int, int, int]:
    hsv = (round(figure.hue / 360 * 255), round(figure.saturation * 255), round(figure.value * 255))
    red, green, blue = np.asarray(Image.new("HSV", (1, 1), hsv).convert("RGB"))[0, 0]
    return int(red), int(green), int(blue)


def _alpha(mask: NDArray[np.float64]) -> Image.Image:
    return Image.fromarray((255 * mask).round().astype(np.uint8))


def _shape_mask(figure: Figure, size: int) -> NDArray[np.float64]:
    """The fraction of each pixel that the shape covers."""
    canvas = Image.new("L", (size * SUPERSAMPLING, size * SUPERSAMPLING))
    pen = ImageDraw.Draw(canvas)
    if figure.shape in ("circle", "ring"):
        pen.ellipse(_box(figure, canvas.width, figure.radius), fill=255)
        if figure.shape == "ring":
            pen.ellipse(_box(figure, canvas.width, 0.55 * figure.radius), fill=0)
    else:
        pen.polygon(_corners(figure, canvas.width), fill=255)
    return np.asarray(canvas.resize((size, size), Image.Resampling.BOX)) / 255


def _box(figure: Figure, side: int, radius: float) -> tuple[float, float, float, float]:
    x, y, r = figure.x * side, figure.y * side, radius * side
    return x - r, y - r, x + r, y + r


def _corners(figure: Figure, side: int) -> list[tuple[float, float]]:
    polar = {
        "square": [(1.0, pi / 4 + quarter * pi / 2) for quarter in range(4)],
        "triangle": [(1.0, third * 2 * pi / 3) for third in range(3)],
        "star": [(1.0 if point % 2 == 0 else 0.42, point * pi / 5) for point in range(10)],
        "cross": [
            (radius, quarter * pi / 2 + offset)
            for quarter in range(4)
            for radius, offset in ((1.0, -0.3), (1.0, 0.3), (0.3 * 2**0.5, pi / 4))
        ],
    }[figure.shape]
    return [
        (
            (figure.x + figure.radius * radius * cos(angle + figure.angle)) * side,
            (figure.y + figure.radius * radius * sin(angle + figure.angle)) * side,
        )
        for radius, angle in polar
    ]


def _texture(figure: Figure, size: int) -> NDArray[np.float64]:
    """The fraction of each pixel that is ink rather than paper, for an unbounded shape."""
    axis = (np.arange(size * SUPERSAMPLING) + 0.5) / (size * SUPERSAMPLING)
    across = axis[None, :] * cos(figure.angle) + axis[:, None] * sin(figure.angle)
    along = axis[:, None] * cos(figure.angle) - axis[None, :] * sin(figure.angle)
    u, v = across / figure.period % 1.0, along / figure.period % 1.0
    ink = {
        "solid": np.ones_like(u, dtype=bool),
        "stripes": u < 0.5,
        "checks": (u < 0.5) ^ (v < 0.5),
        "dots": (u - 0.5) ** 2 + (v - 0.5) ** 2 < 0.33**2,
    }[figure.texture]
    return np.asarray(ink.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING).mean(axis=(1, 3)))
