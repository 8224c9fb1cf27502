"""The pictures that show a result: drawn with numpy and Pillow when first asked for, then kept.

Feature maps are drawn with a perceptually uniform colour map (inferno) on one scale before and after, from 0 to the
highest activation of the two. A difference is drawn on a diverging map (vik) whose middle is zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
from cmap import Colormap
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from api.pictures.evidence import Evidence, Maps
from api.pictures.layout import (
    FAINT,
    GAP,
    INK,
    LINE,
    MARGIN,
    PAPER,
    SMALL,
    TILE,
    TITLES,
    Column,
    font,
    grid,
)
from shared.schemas import OPTIMIZED, ExplainRequest, Metrics, variants

SMALLEST_SIDE = 224  # a map of 14 × 14 positions is enlarged to at least this, in whole steps
ROW_LINES = 4  # of a panel's row: its labels, its numbers, and space
SIDE_BY_SIDE = ("panel.png", "sweep.png")  # show what else there is of the same kernel and image
MOST_SHOWN = 16  # of it


def draw(name: str, evidence: Evidence, siblings: Sequence[Evidence] = (), more: int = 0) -> bytes:
    """The PNG of one artifact.

    Args:
        siblings: what a figure of `SIDE_BY_SIDE` shows, in order, with `evidence` among it.
        more: how many it does not show.
    """
    together = siblings or [evidence]
    picture = {
        "original.png": lambda: evidence.original,
        "contrast.png": lambda: stretched(evidence.x),
        "feature_map.png": lambda: enlarged(heat(evidence.before, evidence.scale)),
        "optimized_feature_map.png": lambda: enlarged(heat(evidence.after, evidence.scale)),
        "difference.png": lambda: enlarged(difference(evidence.after - evidence.before, evidence.scale)),
        "others.png": lambda: others(evidence),
        "panel.png": lambda: panel(evidence, together, more),
        "sweep.png": lambda: sweep(evidence, together, more),
        "thumbnails.png": lambda: thumbnails(evidence),
    }[name]()
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def shown(name: str, request: ExplainRequest, index: int) -> tuple[list[int], int]:
    """The results that a figure of this one shows, in order, and how many more were asked for.

    Of its kernel and image: in a panel all methods, in a sweep its own method. Where that is more than 16, this one
    and the first of each method.
    """
    if name not in SIDE_BY_SIDE:
        return [index], 0
    every = variants(request)
    first, own = index - index % len(every), every[index % len(every)][0]
    seen: Counter[str] = Counter()
    order = []
    for number, (method, *_) in enumerate(every, start=first):
        if name == "panel.png" or method == own:
            order.append((number != index, seen[method], number))
            seen[method] += 1
    chosen = sorted(number for *_, number in sorted(order)[:MOST_SHOWN])
    return chosen, len(order) - len(chosen)


def thumbnails(evidence: Evidence) -> Image.Image:
    """A ranking's feature maps in its order: rows of tiles, each from 0 to its own highest."""
    maps, layout = evidence.thumbnails, evidence.result.thumbnails
    assert layout
    columns, tile = layout.columns, layout.tile
    sheet = Image.new("RGB", (columns * tile, -(-len(maps) // columns) * tile), PAPER)
    for rank, one in enumerate(maps):
        picture = heat((one / 255).astype(np.float32), 1.0).resize((tile, tile), Image.Resampling.NEAREST)
        sheet.paste(picture, (rank % columns * tile, rank // columns * tile))
    return sheet


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


def panel(evidence: Evidence, siblings: Sequence[Evidence], more: int = 0) -> Image.Image:
    """One figure that needs no legend: X with its maps, then for each method X̂ with its maps and numbers.

    Args:
        siblings: what the job says of the same kernel and image: other methods, other α and β; and `evidence`.
        more: how many of them are not shown.
    """
    scale = max(one.scale for one in siblings)
    tiles = [
        _tiles(evidence, scale, siblings, after=False),
        *(_tiles(e, scale, siblings, after=True) for e in siblings),
    ]
    width = 2 * MARGIN + len(tiles[0]) * (TILE + GAP) - GAP
    top = MARGIN + 3 * LINE
    row_height = TILE + ROW_LINES * LINE
    sheet = Image.new("RGB", (width, top + len(tiles) * row_height + LINE + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    request, result = evidence.request, evidence.result
    title = f"What kernel {result.kernel} of {request.layer} ({request.model}) responds to"
    pen.text((MARGIN, MARGIN - 4), title, INK, font(22))
    key = "feature maps: black is silent, bright is active; each kernel on one scale in all rows"
    pen.text((MARGIN, MARGIN + 1.3 * LINE), key, FAINT, font(13))
    pen.text((MARGIN, MARGIN + 2.1 * LINE), _more(more), FAINT, font(13))
    for number, row in enumerate(tiles):
        above = top + number * row_height
        for column, (label, picture) in enumerate(row):
            left = MARGIN + column * (TILE + GAP)
            pen.text((left, above), label, INK, font(14))
            sheet.paste(picture, (left, above + LINE))
        if number:
            _numbers(pen, above + LINE + TILE + 5, siblings[number - 1])
    assert result.weights
    source = f"weights {result.weights.source} ({result.weights.sha256[:12]}…); all numbers are of the 8-bit pictures"
    pen.text((MARGIN, sheet.height - MARGIN - 4), source, FAINT, font(13))
    return sheet


def _more(count: int) -> str:
    return f"not shown: {count} more that were asked for" if count else ""


def _tiles(
    evidence: Evidence, scale: float, siblings: Sequence[Evidence], *, after: bool
) -> list[tuple[str, Image.Image]]:
    """The labelled tiles of one row: the picture, the selected kernel's map, the other kernels' maps."""
    kernel = evidence.result.kernel
    image = evidence.optimized if after else evidence.original
    selected = evidence.after if after else evidence.before
    row = [
        (named(evidence, siblings) if after else "original image", image),
        (f"selected kernel {kernel}, {'after' if after else 'before'}", heat(selected, scale)),
    ]
    for index, other in enumerate(evidence.others):
        shown = evidence.others_after if after else evidence.others_before
        most = max(float(max(one.others_before[index].max(), one.others_after[index].max())) for one in siblings)
        row.append((f"other kernel {other}, {'after' if after else 'before'}", heat(shown[index], most)))
    return [(label, tile.resize((TILE, TILE), Image.Resampling.NEAREST)) for label, tile in row]


def named(evidence: Evidence, siblings: Sequence[Evidence]) -> str:
    """The method, and α and β where the job has several of them; in letters that the font has."""
    result = evidence.result
    if len(siblings) == 1 and result.method in OPTIMIZED:
        return f"what kernel {result.kernel} sees"
    several = [one.result for one in siblings if one.result.method == result.method]
    several_of = {"alpha": {one.alpha for one in several}, "beta": {one.beta for one in several}}
    own = [f"{name} = {getattr(result, name):g}" for name, values in several_of.items() if len(values) > 1]
    return ", ".join([TITLES[result.method], *own])


def _numbers(pen: ImageDraw.ImageDraw, top: float, evidence: Evidence) -> None:
    result, metrics, losses = evidence.result, evidence.result.metrics, evidence.result.losses
    assert metrics
    assert losses
    kept = "null (1×1 map)" if metrics.ssim is None else f"{metrics.ssim:.3f}"
    ratio = metrics.mse_others / metrics.mse_others_before if metrics.mse_others_before else 0.0
    lines = (
        f"selected kernel's map kept: SSIM {kept}    others' activation left: {metrics.leakage:.1%} "
        f"(mean square {ratio:.1%})    {_invention(metrics)}pixels at the mean colour: {metrics.sparsity:.0%}",
        f"loss {losses.total:.3f} = {losses.preservation:.3f} preservation + {result.alpha:g}·"
        f"{losses.suppression:.3f} suppression + {result.beta:g}·{losses.regularization:.3f} regularization; "
        f"start {result.loss_start:.3f}, blank picture {result.loss_blank:.3f}; {_how(evidence)}",
    )
    for number, line in enumerate(lines):
        pen.text((MARGIN, top + number * LINE), line, INK if number == 0 else FAINT, font(13))


def _invention(metrics: Metrics) -> str:
    return "" if metrics.invention is None else f"invented below the layer: {metrics.invention:.1%}    "


def _how(evidence: Evidence) -> str:
    """What was done, and how long it took."""
    result, request = evidence.result, evidence.request
    if result.method in OPTIMIZED:
        return f"{request.solver} solver, {result.iterations} evaluations, {result.stopped}, {result.seconds:.1f} s"
    rule = f"rule {request.rule}, " if result.method == "lrp" else ""
    return f"{rule}scaling {request.scaling}, {result.seconds:.1f} s"


def sweep(evidence: Evidence, siblings: Sequence[Evidence], more: int = 0) -> Image.Image:
    """What α and β do: X̂ for each, stretched, its map, and what of the map has changed (the paper's Figure 8).

    Args:
        siblings: what the job has on the same kernel and image by the same method; and `evidence`.
        more: how many of them are not shown.
    """
    scale = max(one.scale for one in siblings)
    first = Column("original image", [evidence.original, None, heat(evidence.before, scale), None])
    columns = [first, *(_swept(one, siblings, scale) for one in siblings)]
    request, result = evidence.request, evidence.result
    title = f"Kernel {result.kernel} of {request.layer} ({request.model}), by {TITLES[result.method]}"
    key = "maps: black is silent, bright is active, one scale; differences: blue fell, red rose"
    labels = ("optimized\nimage", "contrast\nstretched", f"map of\nkernel {result.kernel}", "difference\nof the maps")
    return grid(title, "; ".join(filter(None, (key, _more(more)))), labels, columns, TILE)


def _swept(one: Evidence, siblings: Sequence[Evidence], scale: float) -> Column:
    metrics, losses = one.result.metrics, one.result.losses
    assert metrics
    assert losses
    kept = "–" if metrics.ssim is None else f"{metrics.ssim:.3f}"
    notes = (f"SSIM {kept}, others left {metrics.leakage:.1%}", f"mean deviation {losses.regularization:.3f}")
    change = difference(one.after - one.before, scale)
    pictures = [one.optimized, stretched(one.x), heat(one.after, scale), change]
    return Column(
        named(one, siblings) if len(siblings) > 1 else f"alpha = {one.result.alpha:g}, beta = {one.result.beta:g}",
        pictures,
        notes,
    )


def others(evidence: Evidence) -> Image.Image:
    """The kernels that were loudest beside the selected one, before and after, each on one scale."""
    columns = []
    for number, kernel in enumerate(evidence.others):
        maps = evidence.others_before[number], evidence.others_after[number]
        scale = float(max(one.max() for one in maps))
        columns.append(Column(f"kernel {kernel}", [heat(one, scale) for one in maps]))
    key = "black is silent, bright is active; each kernel on one scale"
    return grid("The loudest other kernels", key, ("in the original", "in the\noptimized image"), columns, SMALL)


def _coloured(name: str, values: NDArray[np.floating[Any]]) -> Image.Image:
    indices = (values.clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(_table(name)[indices])


@cache
def _table(name: str) -> NDArray[np.uint8]:
    """(256, 3)."""
    return (Colormap(name).lut(256)[:, :3] * 255).round().astype(np.uint8)
