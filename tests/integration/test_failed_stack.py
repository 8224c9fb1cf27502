"""`kernelscope explain` whose private stack cannot be kept running."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from shared.drawings import scene
from tests.integration.cli import COMMAND, until_said


@pytest.mark.slow
@pytest.mark.parametrize("module", ["api", "worker"])
def test_it_ends_soon_with_the_reason_and_says_how_to_continue(folder: Path, module: str) -> None:
    """Not as if it was interrupted; its folder and its processes are gone."""
    scene(1, 64).image.save(folder / "photos" / "1.png")
    environment = {**os.environ, "TMPDIR": str(folder), "KERNELSCOPE_DOWNLOAD_WEIGHTS": "false", "COLUMNS": "200"}
    asked = ["photos", "-l", "conv3_1", "-m", "vgg_mini", "-k", "1", "--iterations", "100000", "-o", "out"]
    said = folder / "said.txt"
    with said.open("w") as output:
        process = subprocess.Popen(
            [*COMMAND, "explain", *asked], cwd=folder, env=environment, stdout=output, stderr=output
        )
        deadline = time.monotonic() + 90
        while not (folder / "out" / "explain.json").exists():
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.1)
        children = psutil.Process(process.pid).children()
        while process.poll() is None and time.monotonic() < deadline + 90:
            with suppress(psutil.Error):  # it has just ended
                for child in psutil.Process(process.pid).children():
                    if child.cmdline()[-2:] == ["-m", module]:
                        child.kill()
            if "in a row" in said.read_text():
                break
            time.sleep(0.1)
        assert process.wait(40) == 1
    until_said(said, f"the private stack failed: {module} was killed by signal 9 5 times in a row. Its log")
    text = said.read_text()
    assert "the same command with --output out continues" in text
    assert "interrupted" not in text
    assert not list(folder.glob("kernelscope-*/lock"))  # that of the private stack
    assert psutil.wait_procs(children, timeout=10)[1] == []
