"""`make setup TORCH=cpu`: the locked requirements without CUDA, and an environment that was made otherwise."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKED = ROOT / "requirements"
NAME = re.compile(r"^([a-z0-9][\w.-]*)==", re.MULTILINE)


pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")

# A Python that only makes empty environments: what they run succeeds, and does nothing.
PYTHON = """#!/bin/sh
mkdir -p .venv/bin .venv/lib/python3.12/site-packages
ln -sf /bin/true .venv/bin/python
"""


def recipe(kind: str) -> str:
    """What would be run."""
    command = ["make", "--dry-run", "--always-make", "setup", f"TORCH={kind}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


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


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What `make setup` needs of this repository."""
    for name in ("Makefile", "pyproject.toml", "requirements"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def make(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it, with a Python that installs nothing."""
    clean = {name: value for name, value in os.environ.items() if name not in {"TORCH", "MAKEFLAGS", "MAKELEVEL"}}
    return subprocess.run(
        ["make", *arguments, "PYTHON=./python"], cwd=checkout, env=clean, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("kind", "other"), [("cuda", "cpu"), ("cpu", "cuda")])
@pytest.mark.parametrize("noted", [True, False], ids=["noted", "seen in torch"])
def test_the_other_torch_needs_a_new_environment(checkout: Path, kind: str, other: str, *, noted: bool) -> None:
    """It is refused with the command that makes one; without TORCH the environment stays what it is."""
    made = make(checkout, "setup", f"TORCH={kind}")
    assert made.returncode == 0, made.stderr
    if not noted:  # one that an earlier Makefile has made
        (checkout / ".venv" / ".torch").unlink()
        torch = checkout / ".venv" / "lib" / "python3.12" / "site-packages" / "torch"
        torch.mkdir()
        version = "'13.2'" if kind == "cuda" else "None"
        (torch / "version.py").write_text(f"cuda: Optional[str] = {version}\nhip: Optional[str] = None\n")
    refused = make(checkout, "setup", f"TORCH={other}")
    assert refused.returncode == 2
    assert f".venv was made with TORCH={kind}; to make it anew: make clean setup TORCH={other}" in refused.stdout
    assert make(checkout, "setup", f"TORCH={kind}").returncode == 0
    (checkout / ".venv" / ".ready").unlink()  # as where the lock file is newer
    again = make(checkout, "setup")
    assert again.returncode == 0
    assert ("CPU builds" in again.stdout) == (kind == "cpu")
    assert make(checkout, "clean", "setup", f"TORCH={other}").returncode == 0
    assert (checkout / ".venv" / ".torch").read_text() == f"{other}\n"


def test_another_torch_than_the_two_is_refused(checkout: Path) -> None:
    """Before anything is made."""
    refused = make(checkout, "setup", "TORCH=rocm")
    assert refused.returncode == 2
    assert "TORCH is 'rocm'; it must be cuda or cpu" in refused.stdout
    assert not (checkout / ".venv").exists()
