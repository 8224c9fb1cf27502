"""The pictures that show a result: drawn with numpy and Pillow when first asked for, then kept.

Feature maps are drawn with a perceptually uniform colour map (inferno) on one scale before and after, from 0 to the
highest activation of the two. A difference is drawn on a diverging map (vik) whose middle is zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
from cmap import Colormap
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from shared.schemas import ExplainRequest, ItemResult

Maps = NDArray[np.float32]

SMALLEST_SIDE = 224  # a map of 14 × 14 positions is enlarged to at least this, in whole steps
TILE = 224
GAP = 14
MARGIN = 24
LINE = 20
INK, FAINT, PAPER = (20, 20, 24), (110, 110, 118), (255, 255, 255)


@dataclass(frozen=True)
class Evidence:
    """What a result's pictures are drawn from."""

    request: ExplainRequest
    result: ItemResult
    original: Image.Image  # X at the network's input size
    optimized: Image.Image  # X̂, the delivered PNG
    x: Maps  # X̂ before rounding, normalised, (3, H, W)
    before: Maps  # F_i, (h, w)
    after: Maps  # F̂_i
    others: list[int]  # the loudest other kernels …
    others_before: Maps  # … and their maps, (n, h, w)
    others_after: Maps

    @property
    def scale(self) -> float:
        """The activation that is drawn brightest, the same before and after."""
        return float(max(self.before.max(), self.after.max()))


def draw(name: str, evidence: Evidence) -> bytes:
    """The PNG of one artifact."""
    picture = {
        "contrast.png": lambda: stretched(evidence.x),
        "feature_map.png": lambda: enlarged(heat(evidence.before, evidence.scale)),
        "optimized_feature_map.png": lambda: enlarged(heat(evidence.after, evidence.scale)),
        "difference.png": lambda: enlarged(difference(evidence.after - evidence.before, evidence.scale)),
        "panel.png": lambda: panel(evidence),
    }[name]()
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def thumbnails(maps: NDArray[np.uint8], result: ItemResult) -> bytes:
    """The PNG of a ranking's feature maps, (C, t, t) in its order: rows of tiles, each from 0 to its own highest."""
    assert result.thumbnails
    columns, tile = result.thumbnails.columns, result.thumbnails.tile
    sheet = Image.new("RGB", (columns * tile, -(-len(maps) // columns) * tile), PAPER)
    for rank, one in enumerate(maps):
        picture = heat((one / 255).astype(np.float32), 1.0).resize((tile, tile), Image.Resampling.NEAREST)
        sheet.paste(picture, (rank % columns * tile, rank // columns * tile))
    buffer = BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def heat(maps: Maps, scale: float) -> Image.Image:
    """An activation map, 0 dark to `scale` bright, one pixel a position."""
    return _coloured("inferno", maps / scale if scale else maps)


def difference(change: Maps, scale: float) -> Image.Image:
    """F̂_i − F_i: blue where it fell, white where it stayed, red where it rose; full colour at ± `scale`."""
    return _coloured("vik", (change / scale if scale else change) / 2 + 0.5)


def stretched(x: Maps) -> Image.Image:
    """X̂ with its contrast stretched linearly about the mean colour, until 1 % of its visible values saturate.

    The mean colour itself becomes mid-grey, so that what the kernel does not respond to stays neutral.
    """
    visible = np.abs(x[np.abs(x) > 1e-6])
    reach = float(np.quantile(visible, 0.99)) if visible.size else 1.0
    levels = (x.transpose(1, 2, 0) / reach * 0.5 + 0.5).clip(0, 1)
    return Image.fromarray((255 * levels).round().astype(np.uint8))


def enlarged(picture: Image.Image) -> Image.Image:
    """At least 224 pixels a side, each position a square of whole pixels."""
    factor = -(-SMALLEST_SIDE // min(picture.size))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def panel(evidence: Evidence) -> Image.Image:
    """One figure that needs no legend: X, X̂, F_i, F̂_i, two other kernels before and after, and the numbers."""
    rows = [_row(evidence, after=after) for after in (False, True)]
    width = 2 * MARGIN + len(rows[0]) * (TILE + GAP) - GAP
    top, row_height = MARGIN + 3 * LINE, TILE + 2 * LINE
    sheet = Image.new("RGB", (width, top + 2 * row_height + 3 * LINE + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    request, result = evidence.request, evidence.result
    title = f"What kernel {result.kernel} of {request.layer} ({request.model}) responds to"
    pen.text((MARGIN, MARGIN - 4), title, INK, _font(22))
    key = "feature maps: black is silent, bright is active; each kernel on one scale before and after"
    pen.text((MARGIN, MARGIN + 1.3 * LINE), key, FAINT, _font(13))
    for number, row in enumerate(rows):
        for column, (label, picture) in enumerate(row):
            left, above = MARGIN + column * (TILE + GAP), top + number * row_height
            pen.text((left, above), label, INK, _font(14))
            sheet.paste(picture, (left, above + LINE))
    _numbers(pen, top + 2 * row_height, evidence)
    return sheet


def _row(evidence: Evidence, *, after: bool) -> list[tuple[str, Image.Image]]:
    """The labelled tiles of one row: the picture, the selected kernel's map, the other kernels' maps."""
    kernel, when = evidence.result.kernel, "after" if after else "before"
    image = evidence.optimized if after else evidence.original
    selected = evidence.after if after else evidence.before
    tiles = [
        (f"what kernel {kernel} sees" if after else "original image", image.convert("RGB")),
        (f"selected kernel {kernel}, {when}", heat(selected, evidence.scale)),
    ]
    pairs = zip(evidence.others, evidence.others_before, evidence.others_after, strict=True)
    for other, first, then in pairs:
        scale = float(max(first.max(), then.max()))
        tiles.append((f"other kernel {other}, {when}", heat(then if after else first, scale)))
    return [(label, tile.resize((TILE, TILE), Image.Resampling.NEAREST)) for label, tile in tiles]


def _numbers(pen: ImageDraw.ImageDraw, top: int, evidence: Evidence) -> None:
    result, metrics, losses = evidence.result, evidence.result.metrics, evidence.result.losses
    assert metrics
    assert losses
    assert result.weights
    kept = "null (1×1 map)" if metrics.ssim is None else f"{metrics.ssim:.3f}"
    ratio = metrics.mse_others / metrics.mse_others_before if metrics.mse_others_before else 0.0
    weights = f"{result.weights.source} ({result.weights.sha256[:12]}…)"
    lines = (
        f"selected kernel's map kept: SSIM {kept}    others' activation left: {metrics.leakage:.1%} "
        f"(mean square {ratio:.1%})    pixels at the mean colour: {metrics.sparsity:.0%}",
        f"loss {losses.total:.3f} = {losses.preservation:.3f} preservation + {result.alpha:g}·"
        f"{losses.suppression:.3f} suppression + {result.beta:g}·{losses.regularization:.3f} regularization; "
        f"start {result.loss_start:.3f}, blank picture {result.loss_blank:.3f}",
        f"weights {weights}, {evidence.request.solver} solver, {result.iterations} evaluations in "
        f"{result.seconds:.1f} s, {result.stopped}; measured on the 8-bit picture",
    )
    for number, line in enumerate(lines):
        pen.text((MARGIN, top + number * LINE * 1.2), line, INK if number == 0 else FAINT, _font(13))


def _coloured(name: str, values: NDArray[np.floating[Any]]) -> Image.Image:
    indices = (values.clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(_table(name)[indices])


@cache
def _table(name: str) -> NDArray[np.uint8]:
    """(256, 3)."""
    return (Colormap(name).lut(256)[:, :3] * 255).round().astype(np.uint8)


@cache
def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
