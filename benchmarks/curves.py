"""Plots the loss of both solvers against evaluations and against seconds, one panel per problem."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

COLUMNS = 3
FAST, REFERENCE = "#1b6ca8", "#d1752c"


def draw(problems: list[dict[str, Any]], file: Path) -> None:
    """Write the figure: for each problem evaluations on the left, seconds on the right, both on a logarithmic scale."""
    mpl.use("Agg")
    rows = -(-len(problems) // COLUMNS)
    figure, axes = plt.subplots(
        rows, 2 * COLUMNS, figsize=(4.6 * COLUMNS, 2.3 * rows), sharey=False, squeeze=False, layout="constrained"
    )
    panels = [(line[column], line[column + 1]) for line in axes for column in range(0, 2 * COLUMNS, 2)]
    for (evaluations, seconds), problem in zip_longest(panels, problems):
        if problem:
            _panel(evaluations, seconds, problem)
        else:
            evaluations.set_axis_off()
            seconds.set_axis_off()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _panel(evaluations: Axes, seconds: Axes, problem: dict[str, Any]) -> None:
    scales = (1.0, 1.0), (problem["seconds_per_eval"], problem["reference_seconds_per_eval"])
    for axis, (fast, reference) in zip((evaluations, seconds), scales, strict=True):
        axis.plot(*_stairs(problem["reference_curve"], reference), color=REFERENCE, label="reference procedure")
        axis.plot(*_stairs(problem["curve"], fast), color=FAST, label="fast solver")
        axis.axhline(problem["target_loss"], color="0.6", linewidth=0.8, linestyle=":", label="target")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.tick_params(labelsize=6, which="both")
        axis.grid(alpha=0.2)
    seconds.sharey(evaluations)
    seconds.tick_params(labelleft=False, which="both")
    evaluations.set_title(problem["name"], fontsize=8, loc="left")
    evaluations.set_xlabel("evaluations", fontsize=7)
    seconds.set_xlabel("seconds", fontsize=7)


def _stairs(curve: list[tuple[int, float]], seconds: float) -> tuple[list[float], list[float]]:
    return [count * seconds for count, _ in curve], [loss for _, loss in curve]
