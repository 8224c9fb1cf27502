"""The images, built and run: deploy/verify.sh."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# A part of the 250 MB that the API's whole image may have; Python's own image has about 120 MB.
API_MB_OVER_BASE = 135


@pytest.mark.containers
@pytest.mark.timeout(3600)
def test_the_images_are_built_and_run(record_property: Callable[[str, object], None]) -> None:
    """From this checkout; sizes, build and start times go into the report."""
    done = subprocess.run([ROOT / "deploy" / "verify.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    for name, value in figures.items():
        record_property(name, value)
    assert figures["kernelscope-api_mb_over_base"] <= API_MB_OVER_BASE
