"""Figures of `benchmarks.evidence`: images × methods, and leakage against invention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from PIL import Image, ImageDraw

from api.pictures.layout import INK, PAPER, font
from benchmarks.evidence.bench import QUICK, Row
from worker.engine.questions import Picture

SIDE, GAP, HEAD, LABEL = 224, 8, 26, 110
MOST_IMAGES = 4
SHOWN = ("paper", "only_remove", "evidence", "guided_backprop", "lrp", "masked X")
COLOURS = {"paper": "#1b6ca8", "procedure": "#7a9a3a", "t·X": "#888888"}
SHADES = ("#f7d3bd", "#f3b28a", "#e0872d", "#b85c1e", "#6b2f0b")  # γ = 0 to 10
LABELS = {
    "paper": "fast solver, the paper's loss: quick to thorough",
    "procedure": "the paper's procedure: 300 to 6,000 evaluations",
}


def mosaic(rows: Sequence[Row], originals: Mapping[str, Picture], pictures: Path, file: Path) -> None:
    """A row for each layer and image, deepest layer first: X, then each method's picture at `quick`, with numbers."""
    quick = [row for row in rows if row["part"] == "methods" and row.get("effort", QUICK) == QUICK]
    own = {(row["layer"], row["image"], row["method"]): row for row in quick}
    lines = [(layer, image) for layer, image, method in own if method == "evidence" and image in originals]
    chosen = [
        (layer, image)
        for layer in sorted({layer for layer, _ in lines}, reverse=True)
        for image in [image for other, image in lines if other == layer][:MOST_IMAGES]
    ]
    size = (LABEL + (len(SHOWN) + 1) * (SIDE + GAP), HEAD + len(chosen) * (SIDE + HEAD))
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, head in enumerate(("X", *SHOWN)):
        pen.text((LABEL + column * (SIDE + GAP), 4), head, INK, font(15))
    for number, (layer, image) in enumerate(chosen):
        top = HEAD + number * (SIDE + HEAD)
        kernel = own[layer, image, "evidence"]["kernel"]
        pen.text((4, top + SIDE // 2), f"{layer}\nkernel {kernel}", INK, font(15))
        sheet.paste(Image.fromarray(originals[image]), (LABEL, top))
        for column, method in enumerate(SHOWN, start=1):
            row = own.get((layer, image, method))
            stored = pictures / f"{layer}-{image}-{kernel}-{method}.png"
            if row is None or not stored.exists():
                continue
            left = LABEL + column * (SIDE + GAP)
            with Image.open(stored) as picture:
                sheet.paste(picture, (left, top))
            caption = f"loss {row['loss']:.2f}, SSIM {row['ssim']:.2f}, invented {row['invention']:.0%}"
            pen.text((left, top + SIDE + 3), caption, INK, font(12))
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file, optimize=True)


def curve(rows: Sequence[Row], file: Path) -> None:
    """Leakage against invention, in VGG-16 and in SqueezeNet, a column for each layer; lower left is better."""
    mpl.use("Agg")
    own = [row for row in rows if row["part"] == "efforts"]
    layers = sorted({row["layer"] for row in own})
    figure, axes = plt.subplots(
        2, len(layers), figsize=(4.6 * len(layers), 8), squeeze=False, layout="constrained", sharex="col"
    )
    for column, layer in enumerate(layers):
        these = [row for row in own if row["layer"] == layer]
        for line, measure in enumerate(("invention", "other_invention")):
            _lines(axes[line][column], these, measure)
        axes[0][column].set_title(f"{layer}, kernel {these[0]['kernel']}")
        axes[1][column].set_xlabel("leakage (left: the others are silent)")
    axes[0][0].set_ylabel("invention (below: only what X causes)")
    axes[1][0].set_ylabel("invention in SqueezeNet, not optimised")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=100)
    plt.close(figure)


def _lines(axes: Axes, rows: Sequence[Row], measure: str) -> None:
    series: dict[str, list[Row]] = {}
    for row in rows:
        series.setdefault(row["method"], []).append(row)
    shades = iter(SHADES)
    for name, found in series.items():
        colour, label = COLOURS.get(name) or next(shades), LABELS.get(name, name)
        axes.plot(
            [max(row["leakage"], 1e-4) for row in found],
            [max(row[measure], 1e-3) for row in found],
            "o-",
            color=colour,
            label=label,
            markersize=4,
        )
    axes.set(xscale="log", yscale="log")
    axes.grid(alpha=0.2)
