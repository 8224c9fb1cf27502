"""The figures of a result, drawn with numpy and Pillow when they are first requested, then stored.

Feature maps are drawn with a perceptually uniform colour map (inferno) on one scale before and after, from 0 to the
highest activation of the two; signed maps and differences with a diverging one (vik), centred at zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import chain, groupby

import numpy as np
from PIL import Image, ImageDraw

from api.pictures.colours import Maps, Scale, difference, heat
from api.pictures.evidence import Evidence
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
    fitted,
    font,
    grid,
)
from shared.images import pictured
from shared.schemas import OPTIMIZED, ExplainRequest, Metrics, variants

SMALLEST_SIDE = 224  # small maps are enlarged to at least this, by a whole factor
LARGEST_SIDE = 4096
COLUMNS = 4  # of a panel: the picture, the map of the selected kernel, the maps of two others
ROW_LINES = 4  # lines of text in a panel's row: labels, numbers, space
SIDE_BY_SIDE = ("panel.png", "sweep.png")  # also show the other results of the same kernel and image
MOST_SHOWN = 16  # results in one figure

Tile = tuple[str, Image.Image]


def draw(name: str, evidence: Evidence, siblings: Sequence[Evidence] = (), more: int = 0) -> bytes:
    """The PNG of one artifact.

    Args:
        siblings: the results in a figure of `SIDE_BY_SIDE`, in order, including `evidence`.
        more: the number of further results that it does not show.
    """
    together = siblings or [evidence]
    picture = {
        "original.png": lambda: evidence.original,
        "contrast.png": lambda: stretched(evidence.x),
        "feature_map.png": lambda: enlarged(heat(evidence.before, evidence.scale)),
        "optimized_feature_map.png": lambda: enlarged(heat(evidence.after, evidence.scale)),
        "difference.png": lambda: enlarged(difference(evidence.after - evidence.before, evidence.scale.most)),
        "others.png": lambda: others(evidence),
        "panel.png": lambda: panel(evidence, together, more),
        "sweep.png": lambda: sweep(evidence, together, more),
        "thumbnails.png": lambda: thumbnails(evidence),
    }[name]()
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def shown(name: str, request: ExplainRequest, index: int) -> tuple[list[int], int]:
    """The indices of the results that a figure of this result shows, in order, and the number of further ones.

    They are those of the same kernel and image: in a panel of all methods, in a sweep of the same method. If there are
    more than 16, the figure shows this one and the first ones of each method.
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
    """A ranking's feature maps in its order: rows of tiles, each on a scale from 0 to its own maximum."""
    maps, layout = evidence.thumbnails, evidence.result.thumbnails
    assert layout
    columns, tile = layout.columns, layout.tile
    scale = Scale(1.0, signed=bool((maps < 0).any()))
    sheet = Image.new("RGB", (columns * tile, -(-len(maps) // columns) * tile), PAPER)
    for rank, one in enumerate(maps):
        picture = heat(one, scale).resize((tile, tile), Image.Resampling.NEAREST)  # as on the image
        sheet.paste(picture, (rank % columns * tile, rank // columns * tile))
    return sheet


def stretched(x: Maps) -> Image.Image:
    """X̂ with its contrast stretched linearly about the mean colour, until 1 % of its visible values saturate.

    The mean colour becomes mid-grey, so regions to which the kernel does not respond are neutral.
    """
    visible = np.abs(x[np.abs(x) > 1e-6])
    reach = float(np.quantile(visible, 0.99)) if visible.size else 1.0
    levels = (x.transpose(1, 2, 0) / reach * 0.5 + 0.5).clip(0, 1)
    return pictured((255 * levels).round().astype(np.uint8))


def enlarged(picture: Image.Image) -> Image.Image:
    """Enlarged by a whole factor to at least 224 pixels a side, but to no more than 4096."""
    factor = max(1, min(-(-SMALLEST_SIDE // min(picture.size)), LARGEST_SIDE // max(picture.size)))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def panel(evidence: Evidence, siblings: Sequence[Evidence], more: int = 0) -> Image.Image:
    """One self-explanatory figure: X with its maps, then for each method X̂ with its maps and numbers.

    Args:
        siblings: the results of the same kernel and image, including `evidence`: other methods, α and β, networks.
            Those of one network are consecutive.
        more: the number of further results that are not shown.
    """
    parts = [list(part) for _, part in groupby(siblings, key=lambda one: one.result.weights)]
    rows = [row for part in parts for row in _rows(part, several=len(parts) > 1)]
    width = 2 * MARGIN + COLUMNS * (TILE + GAP) - GAP
    top = MARGIN + 3 * LINE
    row_height = TILE + ROW_LINES * LINE
    sheet = Image.new("RGB", (width, top + len(rows) * row_height + (len(parts) + 1) * LINE + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    request, result = evidence.request, evidence.result
    models = " and ".join(dict.fromkeys(part[0].request.model for part in parts))
    title = f"What kernel {result.kernel} of {request.layer} ({models}) responds to"
    pen.text((MARGIN, MARGIN - 4), title, INK, font(22))
    scales = Scale.common(one.scale for one in siblings)
    of = " of a network" if len(parts) > 1 else ""
    key = f"feature maps ({scales.key}); each kernel on one scale in all rows{of}; numbers are of the 8-bit pictures"
    pen.text((MARGIN, MARGIN + 1.3 * LINE), key, FAINT, font(13))
    pen.text((MARGIN, MARGIN + 2.1 * LINE), _more(more), FAINT, font(13))
    for number, (tiles, measured) in enumerate(rows):
        above = top + number * row_height
        for column, (label, picture) in enumerate(tiles):
            left = MARGIN + column * (TILE + GAP)
            pen.text((left, above), label, INK, font(14))
            sheet.paste(picture, (left, above + LINE))
        if measured:
            _numbers(pen, above + LINE + TILE + 5, measured)
    for number, part in enumerate(parts):
        line = sheet.height - MARGIN - 4 - (len(parts) - 1 - number) * LINE
        pen.text((MARGIN, line), _source(part[0]), FAINT, font(13))
    return sheet


def _rows(part: Sequence[Evidence], *, several: bool) -> Iterator[tuple[list[Tile], Evidence | None]]:
    """The rows of one network: the image with its maps, then each X̂ with its maps and numbers."""
    scale = Scale.common(one.scale for one in part)
    first = _tiles(part[0], scale, part, after=False)
    if several:
        first[0] = (f"original image, in {part[0].request.model}", first[0][1])
    yield first, None
    for one in part:
        yield _tiles(one, scale, part, after=True), one


def _source(evidence: Evidence) -> str:
    """The weights of a network, and how its input was prepared."""
    weights = evidence.result.weights
    assert weights
    fed = f", fed {weights.preprocessing}" if weights.preprocessing else ""
    return f"weights {weights.source} ({weights.sha256[:12]}…){fed}"


def _more(count: int) -> str:
    return f"not shown: {count} more requested results" if count else ""


def _tiles(evidence: Evidence, scale: Scale, siblings: Sequence[Evidence], *, after: bool) -> list[Tile]:
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
        others = (one.others_before[index] for one in siblings), (one.others_after[index] for one in siblings)
        most = Scale.of(*chain(*others))
        row.append((f"other kernel {other}, {'after' if after else 'before'}", heat(shown[index], most)))
    return [(label, fitted(tile, TILE)) for label, tile in row]


def named(evidence: Evidence, siblings: Sequence[Evidence]) -> str:
    """The method, and α and β if the job has several of them, in ASCII: the font has few other letters."""
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
    """The solver or rule, and its time."""
    result, request = evidence.result, evidence.request
    if result.method in OPTIMIZED:
        return f"{request.solver} solver, {result.iterations} evaluations, {result.stopped}, {result.seconds:.1f} s"
    rule = f"rule {request.rule}, " if result.method == "lrp" else ""
    return f"{rule}scaling {request.scaling}, {result.seconds:.1f} s"


def sweep(evidence: Evidence, siblings: Sequence[Evidence], more: int = 0) -> Image.Image:
    """The effect of α and β: for each, X̂, X̂ stretched, its map, and the change of the map (the paper's Figure 8).

    Args:
        siblings: the job's results of the same kernel, image and method, including `evidence`.
        more: the number of further results that are not shown.
    """
    scale = Scale.common(one.scale for one in siblings)
    first = Column("original image", [evidence.original, None, heat(evidence.before, scale), None])
    columns = [first, *(_sweep_column(one, siblings, scale) for one in siblings)]
    request, result = evidence.request, evidence.result
    title = f"Kernel {result.kernel} of {request.layer} ({request.model}), by {TITLES[result.method]}"
    key = f"maps ({scale.key}), one scale; change: blue lower, red higher"
    labels = ("optimized\nimage", "contrast\nstretched", f"map of\nkernel {result.kernel}", "difference\nof the maps")
    return grid(title, "; ".join(filter(None, (key, _more(more)))), labels, columns, TILE)


def _sweep_column(one: Evidence, siblings: Sequence[Evidence], scale: Scale) -> Column:
    metrics, losses = one.result.metrics, one.result.losses
    assert metrics
    assert losses
    kept = "–" if metrics.ssim is None else f"{metrics.ssim:.3f}"
    notes = (f"SSIM {kept}, others left {metrics.leakage:.1%}", f"mean deviation {losses.regularization:.3f}")
    change = difference(one.after - one.before, scale.most)
    pictures = [one.optimized, stretched(one.x), heat(one.after, scale), change]
    return Column(
        named(one, siblings) if len(siblings) > 1 else f"alpha = {one.result.alpha:g}, beta = {one.result.beta:g}",
        pictures,
        notes,
    )


def others(evidence: Evidence) -> Image.Image:
    """The other kernels with the highest activation, before and after, each on its own scale."""
    columns = []
    for number, kernel in enumerate(evidence.others):
        maps = evidence.others_before[number], evidence.others_after[number]
        scale = Scale.of(*maps)
        columns.append(Column(f"kernel {kernel}", [heat(one, scale) for one in maps]))
    key = f"{Scale.of(evidence.others_before, evidence.others_after).key}; each kernel on one scale"
    return grid("The most active other kernels", key, ("in the original", "in the\noptimized image"), columns, SMALL)
