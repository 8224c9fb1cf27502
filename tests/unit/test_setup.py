"""`make setup TORCH=cpu`: the locked requirements without CUDA."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKED = ROOT / "requirements"
NAME = re.compile(r"^([a-z0-9][\w.-]*)==", re.MULTILINE)


def recipe(kind: str) -> str:
    """What would be run."""
    command = ["make", "--dry-run", "--always-make", "setup", f"TORCH={kind}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_without_cuda_everything_else_stays_as_it_is_locked() -> None:
    """With its hashes; torch and torchvision are those of the lock file, from another index."""
    text = recipe("cpu")
    (program,) = re.findall(r"awk '(.*?)' requirements/all.txt", text)
    whole = (LOCKED / "all.txt").read_text()
    kept = subprocess.run(["awk", program, LOCKED / "all.txt"], capture_output=True, text=True, check=True).stdout
    left_out = set(NAME.findall(whole)) - set(NAME.findall(kept))
    assert {"torch", "torchvision", "triton"} <= left_out
    assert all(name in {"torch", "torchvision", "triton"} or name.startswith(("cuda-", "nvidia-")) for name in left_out)
    assert set(NAME.findall((LOCKED / "worker-cpu.txt").read_text())) <= set(NAME.findall(kept))
    (pattern,) = re.findall(r"grep -oE '(.*?)' requirements/all.txt", text)
    found = subprocess.run(["grep", "-oE", pattern, LOCKED / "all.txt"], capture_output=True, text=True, check=True)
    assert [line.partition("==")[0] for line in found.stdout.splitlines()] == ["torch", "torchvision"]
