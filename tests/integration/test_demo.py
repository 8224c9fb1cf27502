"""`kernelscope demo`, as `make demo` runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.integration.conftest import ROOT

PROXY = {"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "", "no_proxy": ""}


def demo(out: Path, **environment: str) -> str:
    """Run it, in spite of a proxy; what it printed, in one line."""
    command = [sys.executable, "-m", "kernelscope", "demo", "--out", str(out)]
    ran = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **PROXY, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return " ".join((ran.stdout + ran.stderr).split())


@pytest.mark.slow
def test_without_imagenet_weights_it_says_so_and_uses_the_small_network(tmp_path: Path) -> None:
    """Which network instead, and why; a table; panels that can be opened; nothing left behind."""
    said = demo(
        tmp_path / "out",
        KERNELSCOPE_WEIGHTS_DIR=str(tmp_path),
        KERNELSCOPE_DOWNLOAD_WEIGHTS="false",
        TORCH_HOME=str(tmp_path),
    )
    assert "VGG-16 is not available here" in said
    assert "downloading is turned off" in said
    assert "VGG-mini" in said
    panels = sorted((tmp_path / "out").glob("*-panel.png"))
    assert len(panels) >= 3
    for panel in panels:
        with Image.open(panel) as picture:
            assert picture.width > 500
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.slow
@pytest.mark.weights
def test_with_partial_vgg16_weights_it_uses_what_they_cover(tmp_path: Path) -> None:
    """conv1_1 and the deepest layer that is covered."""
    weights = os.environ.get("KERNELSCOPE_TEST_WEIGHTS")
    if not weights:
        pytest.skip("KERNELSCOPE_TEST_WEIGHTS is not set")
    said = demo(tmp_path, KERNELSCOPE_WEIGHTS_DIR=weights)
    assert "VGG-16, weights vgg16-blocks1-2.safetensors; explained here: conv1_1 and conv2_2" in said
    assert len(list(tmp_path.glob("photograph-conv2_2-*-panel.png"))) >= 2
