"""Schemathesis: thousands of generated requests compared with `/openapi.json`, including links between routes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import FULL
from tests.contract.conftest import Plant, alive
from tests.contract.schema_setup import (
    EVERY,
    EXAMPLES,
    RARE,
    REQUEST_SECONDS,
    SECONDS,
    configuration_of,
    toml_text,
)

CASES = 5_000 if FULL else 1_200  # the least number
SEED = 2021
pytestmark = [pytest.mark.contract, pytest.mark.timeout(SECONDS + 300)]


def test_every_response_is_as_documented(
    service: Plant, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """2,000 cases (5,000 in full) over all routes; each response is as documented, and none is a 500."""
    service.start_worker("worker")
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(toml_text(configuration_of(service)))
    begin = time.monotonic()
    process = _run(service, configuration, tmp_path)
    seconds = time.monotonic() - begin
    report = json.loads((tmp_path / "report.json").read_text())
    answers = _answers(tmp_path / "events.ndjson")
    good = {label for label, status in answers if status < 400}
    for name, value in (
        ("cases", report["test_cases"]["generated"]),
        ("failures", report["test_cases"]["unique_failures"]),
        ("requests", answers.total()),
        ("requests_answered_2xx_or_3xx", sum(count for (_, status), count in answers.items() if status < 400)),
        ("seconds", round(seconds, 1)),
    ):
        record_property(name, value)
    assert alive(service)
    assert process.returncode == 0, process.stdout
    assert not [entry for entry in answers if entry[1] >= 500]
    assert report["complete"]
    assert not report["errors"]
    assert report["operations"]["tested"] == len(EVERY) + len(RARE)
    assert report["phases"]["stateful"]["status"] == "success"
    assert report["test_cases"]["generated"] >= CASES
    assert good >= set(EVERY), set(EVERY) - good
    assert seconds < SECONDS


def _run(plant: Plant, configuration: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("schemathesis")), "--no-color", "--config-file", str(configuration)]
    reports = ["--report-json-path", str(folder / "report.json"), "--report-ndjson-path", str(folder / "events.ndjson")]
    options = ["--checks", "all", "--seed", str(SEED), "--max-examples", str(EXAMPLES), "--continue-on-failure"]
    quiet = [
        "--request-timeout",
        str(REQUEST_SECONDS),
        "--max-response-time",
        str(REQUEST_SECONDS),
        "--generation-database",
        "none",
        "--warnings",
        "off",
    ]
    location = f"{plant.url}/openapi.json"
    return subprocess.run(
        [*command, "run", location, *options, *quiet, *reports],
        cwd=folder,
        timeout=SECONDS + 60,
        capture_output=True,
        text=True,
        check=False,
    )


def _answers(path: Path) -> Counter[tuple[str, int]]:
    """The number of responses of each operation and status."""
    counts: Counter[tuple[str, int]] = Counter()
    with path.open() as lines:
        for line in lines:
            counts.update(_statuses(json.loads(line)))
    return counts


def _statuses(event: dict[str, Any]) -> Iterator[tuple[str, int]]:
    recorder = event.get("ScenarioFinished", {}).get("recorder") or {}
    for case, interaction in recorder.get("interactions", {}).items():
        if interaction.get("response"):
            value = recorder["cases"][case]["value"]
            yield f"{value['method']} {value['path']}", interaction["response"]["status_code"]
