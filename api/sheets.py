"""Figures that set many pictures side by side: a sweep of α and β, and a job's images × kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw

from api.figures import (
    FAINT,
    GAP,
    INK,
    LINE,
    MARGIN,
    PAPER,
    TILE,
    TITLES,
    Evidence,
    difference,
    font,
    heat,
    named,
    stretched,
)

SMALL = 144  # side of a tile of a contact sheet
LABEL = 132  # width of a row's label


@dataclass(frozen=True)
class Column:
    """A heading, what is said below it, and the pictures from top to bottom; None: an empty place."""

    heading: str
    pictures: Sequence[Image.Image | None]
    notes: Sequence[str] = field(default_factory=tuple)


def sweep(evidence: Evidence, siblings: Sequence[Evidence]) -> Image.Image:
    """What α and β do: X̂ for each, stretched, its map, and what of the map has changed (the paper's Figure 8).

    Args:
        siblings: what the job has on the same kernel and image; those of other methods are left out.
    """
    same = [one for one in siblings if one.result.method == evidence.result.method] or [evidence]
    scale = max(one.scale for one in same)
    first = Column("original image", [evidence.original.convert("RGB"), None, heat(evidence.before, scale), None])
    columns = [first, *(_swept(one, same, scale) for one in same)]
    request, result = evidence.request, evidence.result
    title = f"Kernel {result.kernel} of {request.layer} ({request.model}), by {TITLES[result.method]}"
    key = "maps: black is silent, bright is active, one scale; differences: blue fell, red rose"
    labels = ("optimized\nimage", "contrast\nstretched", f"map of\nkernel {result.kernel}", "difference\nof the maps")
    return _grid(title, key, labels, columns, TILE)


def _swept(one: Evidence, same: Sequence[Evidence], scale: float) -> Column:
    metrics, losses = one.result.metrics, one.result.losses
    assert metrics
    assert losses
    kept = "–" if metrics.ssim is None else f"{metrics.ssim:.3f}"
    notes = (f"SSIM {kept}, others left {metrics.leakage:.1%}", f"mean deviation {losses.regularization:.3f}")
    change = difference(one.after - one.before, scale)
    pictures = [one.optimized.convert("RGB"), stretched(one.x), heat(one.after, scale), change]
    return Column(
        named(one, same) if len(same) > 1 else f"alpha = {one.result.alpha:g}, beta = {one.result.beta:g}",
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
    return _grid("The loudest other kernels", key, ("in the original", "in the\noptimized image"), columns, SMALL)


@dataclass(frozen=True)
class Series:
    """One kernel by one method on a job's images.

    Args:
        shown: by the image's number in the request.
        notes: its scores.
    """

    heading: str
    kernel: int
    shown: Mapping[int, Evidence]
    notes: Sequence[str]


def contact_sheet(title: str, originals: Mapping[int, Image.Image], series: Sequence[Series], rest: str) -> Image.Image:
    """One row an image: the image, then for each kernel its map, and what each method makes of it.

    Args:
        originals: by the image's number.
        rest: what is not shown, in words; empty: nothing.
    """
    rows = sorted(originals)
    columns = [Column("image", [originals[row].convert("RGB") for row in rows])]
    seen: set[int] = set()
    for one in series:
        if one.kernel not in seen:
            seen.add(one.kernel)
            same = [other for other in series if other.kernel == one.kernel]
            columns.append(Column(f"map of kernel {one.kernel}", [_map(same, row) for row in rows]))
        optimized = [one.shown[row].optimized.convert("RGB") if row in one.shown else None for row in rows]
        columns.append(Column(one.heading, optimized, one.notes))
    key = "maps: black is silent, bright is active; each on a scale of its own. " + rest
    return _grid(title, key, [f"image {row}" for row in rows], columns, SMALL)


def _map(series: Sequence[Series], row: int) -> Image.Image | None:
    found = [one.shown[row] for one in series if row in one.shown]
    return heat(found[0].before, float(found[0].before.max())) if found else None


def _grid(title: str, key: str, labels: Sequence[str], columns: Sequence[Column], tile: int) -> Image.Image:
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
                small = picture.resize((tile, tile), Image.Resampling.NEAREST)
                sheet.paste(small, (left, top + row * (tile + GAP)))
        for row, note in enumerate(column.notes):
            _write(pen, (left, height - MARGIN - (below - row) * LINE), note, FAINT, 12, tile)
    return sheet


def _write(
    pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str, ink: tuple[int, int, int], size: int, width: int
) -> None:
    """In letters up to two points smaller, where that makes room; else as much of it as has room."""
    room = width + GAP - 2
    small = next((each for each in (size, size - 1, size - 2) if font(each).getlength(text) <= room), size - 2)
    while font(small).getlength(text) > room and len(text) > 1:
        text = text[:-2] + "…"
    pen.text(place, text, ink, font(small))
