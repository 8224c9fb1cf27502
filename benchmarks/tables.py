"""The results of `benchmarks.table1` as in the paper: two tables, and the joint distribution of the two errors."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from numpy.typing import NDArray

Row = dict[str, Any]

COLOURS = {
    "guided_backprop": "#d1752c",
    "deconvnet": "#7a9a3a",
    "lrp": "#8a5aa8",
    "suppression": "#1b6ca8",
    "evidence": "#1f8a70",
}
TITLES = {"guided_backprop": "guided backpropagation", "deconvnet": "deconvolution", "lrp": "LRP"}
ABLATION = ("without L_r", "without L_s", "SSIM ≥ 0.95")
MEASURES = ("ssim", "mse_others", "mse_ratio", "leakage")
BINS = 24
LEAST = 1e-9


def report(rows: Sequence[Row]) -> dict[str, Any]:
    """`blocks`: Table 1; `ablation`: Table 2, whose rows are of the same kernels and images."""
    found: dict[str, Any] = {"blocks": [], "ablation": []}
    for network, block, layer in dict.fromkeys((row["network"], row["block"], row["layer"]) for row in rows):
        these = [row for row in rows if (row["network"], row["layer"]) == (network, layer)]
        own = [row for row in these if row["variant"] not in ABLATION]
        found["blocks"].append(
            {
                "network": network,
                "block": block,
                "layer": layer,
                "kernels": sorted({row["kernel"] for row in own}),
                "images": sorted({row["image"] for row in own}),
                "methods": {
                    name: summary([row for row in own if row["variant"] == name])
                    for name in dict.fromkeys(row["variant"] for row in own)
                },
            }
        )
        images = {row["image"] for row in these if row["variant"] in ABLATION}
        for name in (*ABLATION[:2], "suppression", *ABLATION[2:]):
            same = [row for row in these if row["variant"] == name and row["image"] in images]
            which = {"network": network, "block": block, "layer": layer}
            terms = "all three" if name == "suppression" else name
            found["ablation"].append({**which, "terms": terms, **summary(same)})
    return found


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Mean and standard deviation over kernels and images, without the `silent` ones."""
    good = [row for row in rows if "error" not in row]
    numbers: dict[str, Any] = {"cells": len(good), "silent": len(rows) - len(good)}
    for measure in MEASURES:
        values = [row[measure] for row in good if row[measure] is not None]
        name = "mse" if measure == "mse_others" else measure
        numbers[f"{name}_mean"] = statistics.fmean(values) if values else None
        numbers[f"{name}_sd"] = statistics.stdev(values) if len(values) > 1 else None
    return numbers


def markdown(found: dict[str, Any]) -> str:
    """Both tables. A cell: SSIM ± sd / MSE of the others ± sd (relative to the original's)."""
    parts: list[str] = []
    for network in dict.fromkeys(block["network"] for block in found["blocks"]):
        own = [block for block in found["blocks"] if block["network"] == network]
        count = f"{len(own[0]['kernels'])} kernels × {len(own[0]['images'])} images a block"
        heads = [f"block {block['block']}: {block['layer']}" for block in own]
        parts.append(f"**{network}**, {count}: SSIM of the kernel ↑ / MSE of the others ↓ (share of the original's)\n")
        parts.append(_grid(["method", *heads]))
        for method in own[0]["methods"]:
            cells = [_cell(block["methods"][method]) for block in own]
            parts.append(_line([TITLES.get(method, method), *cells]))
        parts.append("")
        parts.append(f"**{network}**, ablation\n")
        parts.append(_grid(["terms", *heads]))
        for terms in (*ABLATION[:2], "all three", *ABLATION[2:]):
            chosen = [one for one in found["ablation"] if (one["network"], one["terms"]) == (network, terms)]
            parts.append(_line([terms, *map(_cell, chosen)]))
        parts.append("")
    return "\n".join(parts)


def _grid(heads: list[str]) -> str:
    return _line(heads) + "\n" + _line(["---"] * len(heads))


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(numbers: dict[str, Any]) -> str:
    if numbers["ssim_mean"] is None:
        return "–"
    spread = "" if numbers["ssim_sd"] is None else f" ± {numbers['ssim_sd']:.2f}"
    wide = "" if numbers["mse_sd"] is None else f" ± {numbers['mse_sd']:.2f}"
    share = f"{100 * numbers['mse_ratio_mean']:.0f} %"
    return f"{numbers['ssim_mean']:.2f}{spread} / {numbers['mse_mean']:.2f}{wide} ({share})"


def of_block(row: Row, block: dict[str, Any]) -> bool:
    """Whether a row is of Table 1 in this block."""
    return (row["network"], row["layer"]) == (block["network"], block["layer"]) and row["variant"] not in ABLATION


def joint(rows: Sequence[Row], block: dict[str, Any], folder: Path) -> Path:
    """The joint distribution of the MSE of the selected kernel's map and of the others', with its marginals.

    Lower left is better: the kernel's map is preserved, and the others are silent.
    """
    mpl.use("Agg")
    figure, axes = plt.subplot_mosaic(
        [["top", "."], ["joint", "right"]],
        width_ratios=(4, 1),
        height_ratios=(1, 4),
        figsize=(6.4, 6.0),
        layout="constrained",
    )
    good = [row for row in rows if "error" not in row]
    _margin(axes["top"], good, "mse_selected", "vertical")
    _margin(axes["right"], good, "mse_others", "horizontal")
    for method, own in _by_method(good).items():
        axes["joint"].scatter(
            [max(row["mse_selected"], LEAST) for row in own],
            [max(row["mse_others"], LEAST) for row in own],
            s=12,
            alpha=0.7,
            linewidths=0,
            color=COLOURS[method],
            label=TITLES.get(method, method),
        )
    axes["joint"].set(xscale="log", yscale="log")
    axes["joint"].set_xlabel("MSE of the selected kernel's map (left: preserved)")
    axes["joint"].set_ylabel("MSE of the other kernels' maps (below: silent)")
    axes["joint"].legend(frameon=False, fontsize=8)
    axes["joint"].grid(alpha=0.2)
    axes["top"].set(xscale="log", xlim=axes["joint"].get_xlim(), xticklabels=[], yticks=[])
    axes["right"].set(yscale="log", ylim=axes["joint"].get_ylim(), yticklabels=[], xticks=[])
    counts = f"{len(block['kernels'])} kernels × {len(block['images'])} images"
    figure.suptitle(f"{block['network']} {block['layer']}, {counts}", fontsize=11)
    file = folder / f"joint-{block['network']}-{block['layer']}.png"
    figure.savefig(file, dpi=110)
    plt.close(figure)
    return file


def _margin(axes: Axes, rows: Sequence[Row], name: str, orientation: Literal["vertical", "horizontal"]) -> None:
    """The marginal distribution of one error: a histogram for each method, with shared bins."""
    logs = {method: _logs([row[name] for row in own]) for method, own in _by_method(rows).items()}
    everything = np.concatenate(list(logs.values()))
    edges = 10 ** np.linspace(everything.min() - 0.1, everything.max() + 0.1, BINS + 1)
    for method, values in logs.items():
        axes.hist(
            10**values,
            bins=list(edges),
            histtype="stepfilled",
            color=COLOURS[method],
            alpha=0.45,
            orientation=orientation,
        )
    axes.tick_params(which="both", length=0, labelbottom=False, labelleft=False)
    axes.spines[:].set_visible(False)


def _by_method(rows: Sequence[Row]) -> dict[str, list[Row]]:
    methods = dict.fromkeys(row["variant"] for row in rows)
    return {method: [row for row in rows if row["variant"] == method] for method in methods}


def _logs(values: Sequence[float]) -> NDArray[np.float64]:
    """Decimal logarithms, with 0 as 10⁻⁹."""
    return np.log10(np.maximum(values, LEAST))
