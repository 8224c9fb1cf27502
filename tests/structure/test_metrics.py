"""The dashboard and the alerts ask for metrics that there are. That those are the documented ones: test_operation."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana.json").read_text())
RULES = yaml.safe_load((ROOT / "docs" / "alerts.yml").read_text())["groups"][0]["rules"]
KINDS = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}


def documented() -> dict[str, set[str]]:
    """The series of docs/metrics.md, and the labels that each has."""
    rows = re.findall(
        r"^\| `(kernelscope_\w+)` \| (\w+) \| ([\w, ]*)\|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE
    )
    series = {}
    for name, kind, labels in rows:
        for suffix in KINDS[kind]:
            own = set(labels.replace(",", " ").split())
            series[name.removesuffix("_total") + suffix] = own | ({"le"} if kind == "histogram" else set())
    return series


def asked(expression: str) -> tuple[set[str], set[str]]:
    """The series of ours that an expression names, and the labels that it groups or selects by."""
    names = set(re.findall(r"kernelscope_\w+", expression))
    grouped = re.findall(r"\b(?:by|on) \(([\w, ]+)\)", expression)
    chosen = re.findall(r"(\w+)=~?\"", expression)
    return names, set(" ".join(grouped).replace(",", " ").split()) | set(chosen)


def expressions() -> dict[str, str]:
    """Of every panel and every alert."""
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    found = {f"{each['title']} {one['refId']}": one["expr"] for each in panels for one in each["targets"]}
    return found | {rule["alert"]: rule["expr"] for rule in RULES}


def test_the_dashboard_and_the_alerts_ask_for_what_there_is() -> None:
    """By the names that Prometheus has, suffix included, and by labels that these have."""
    series = documented()
    for title, expression in expressions().items():
        names, labels = asked(expression)
        assert names <= set(series), title
        known = set().union(*(series[name] for name in names), {"job", "instance"})
        assert labels <= known, title


def test_the_dashboard_shows_every_metric() -> None:
    """Each has a panel."""
    shown = {name for expression in expressions().values() for name in asked(expression)[0]}
    assert {name for name in documented() if not name.endswith(("_count", "_sum"))} <= shown


def test_the_dashboard_can_be_read() -> None:
    """Each panel has an id, a title and a place of its own, and asks the data source that is chosen."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["title"] for panel in panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    sources = [one["datasource"]["uid"] for panel in panels for one in panel.get("targets", [])]
    assert set(sources) == {"${datasource}"}


def test_the_guide_says_what_each_alert_means() -> None:
    """docs/alerts.yml and the table agree."""
    reported = re.findall(r"^\| `(Kernelscope\w+)` \|", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    assert reported == [rule["alert"] for rule in RULES]
