"""Summaries of the rows, as JSON and in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.evidence.bench import MEASURES, QUICK, Row


def summary(rows: Sequence[Row], effort: str = QUICK) -> dict[str, dict[str, dict[str, float]]]:
    """{method: {layer: {measure: mean over its rows of this effort}}}; without `efforts`, which are a curve."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    own = [row for row in rows if row["part"] != "efforts" and row.get("effort", QUICK) == effort]
    for method, layer in dict.fromkeys((row["method"], row["layer"]) for row in own):
        these = [row for row in own if (row["method"], row["layer"]) == (method, layer)]
        means = {measure: mean(row.get(measure) for row in these) for measure in MEASURES}
        found.setdefault(method, {})[layer] = {name: value for name, value in means.items() if value is not None}
    return found


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def markdown(report: dict[str, Any]) -> str:
    """A table for each layer, the curves of `efforts`, the cost."""
    lines: list[str] = []
    for layer in dict.fromkeys(layer for of in report["summary"].values() for layer in of):
        own = {method: of[layer] for method, of in report["summary"].items() if layer in of}
        shown = [measure for measure in MEASURES if any(measure in of for of in own.values())]
        lines += [f"**{layer}**\n", _line(["method", *shown]), _line(["---"] * (len(shown) + 1))]
        lines += [_line([method, *(_number(of.get(name)) for name in shown)]) for method, of in own.items()]
        lines.append("")
    curves = [row for row in report["rows"] if row["part"] == "efforts"]
    if curves:
        shown = ["loss", "ssim", "leakage", "invention", "other_invention", "iterations"]
        lines += [_line(["efforts", *shown]), _line(["---"] * (len(shown) + 1))]
        lines += [_line([row["key"], *(_number(row[name]) for name in shown)]) for row in curves]
        lines.append("")
    lines.append("cost: " + ", ".join(f"{layer} {ratio:.2f}×" for layer, ratio in report["cost"].items()))
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
