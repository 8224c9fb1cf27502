"""The layout of figures: rows and columns of tiles with text above and below."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache

from PIL import Image, ImageDraw, ImageFont

TILE = 224  # side of a tile
SMALL = 144  # side in a figure of many tiles
GAP = 14
MARGIN = 24
LINE = 20
LABEL = 132  # width of a row's label
TITLES = {
    "suppression": "suppression",
    "evidence": "evidence",
    "guided_backprop": "guided backpropagation",
    "deconvnet": "deconvolution",
    "lrp": "LRP",
}
INK, FAINT, PAPER = (20, 20, 24), (110, 110, 118), (255, 255, 255)


@dataclass(frozen=True)
class Column:
    """A heading, the pictures from top to bottom (None: an empty place), and notes below them."""

    heading: str
    pictures: Iterable[Image.Image | None]  # each is made when it is drawn
    notes: Sequence[str] = field(default_factory=tuple)


def grid(title: str, key: str, labels: Sequence[str], columns: Sequence[Column], tile: int) -> Image.Image:
    """Columns of pictures under a title and a key.

    Args:
        labels: of the rows.
        tile: side of a picture.
    """
    below = max(len(column.notes) for column in columns)
    top = MARGIN + 4 * LINE
    height = top + len(labels) * (tile + GAP) + below * LINE + MARGIN
    sheet = Image.new("RGB", (2 * MARGIN + LABEL + len(columns) * (tile + GAP) - GAP, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN - 4), title, INK, font(22))
    pen.text((MARGIN, MARGIN + 1.3 * LINE), key, FAINT, font(13))
    for number, label in enumerate(labels):
        pen.multiline_text((MARGIN, top + number * (tile + GAP) + 4), label, INK, font(14))
    for number, column in enumerate(columns):
        left = MARGIN + LABEL + number * (tile + GAP)
        _write(pen, (left, top - LINE - 2), column.heading, INK, 14, tile)
        for row, picture in enumerate(column.pictures):
            if picture is not None:
                sheet.paste(fitted(picture, tile), (left, top + row * (tile + GAP)))
        for row, note in enumerate(column.notes):
            _write(pen, (left, height - MARGIN - (below - row) * LINE), note, FAINT, 12, tile)
    return sheet


def fitted(picture: Image.Image, side: int) -> Image.Image:
    """The picture enlarged to fit into a square of that side, in its middle."""
    scale = side / max(picture.size)
    width, height = (max(1, round(scale * each)) for each in picture.size)
    square = Image.new("RGB", (side, side), PAPER)
    square.paste(picture.resize((width, height), Image.Resampling.NEAREST), ((side - width) // 2, (side - height) // 2))
    return square


def _write(
    pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str, ink: tuple[int, int, int], size: int, width: int
) -> None:
    """Draw a text, up to two points smaller if it then fits; else cut."""
    room = width + GAP - 2
    small = next((each for each in (size, size - 1, size - 2) if font(each).getlength(text) <= room), size - 2)
    pen.text(place, cut(text, small, room), ink, font(small))


def cut(text: str, size: int, room: int) -> str:
    """As much of the text as fits."""
    while font(size).getlength(text) > room and len(text) > 1:
        text = text[:-2] + "…"
    return text


@cache
def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """The font of figures."""
    return ImageFont.load_default(size)
