"""The Dockerfiles and the locked requirements of the images, without building them (deploy/verify.sh does)."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from api.app import create_app
from shared.version import VERSION
from tests.structure.deployment import DOCKERFILES, ROOT, instructions

LOCKS = ["all", "api", "worker", "worker-cpu"]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_is_copied_exists_and_is_not_ignored(name: str) -> None:
    """Every COPY from the context."""
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for word, arguments in instructions(name):
        if word == "COPY" and "--from" not in arguments:
            for source in arguments.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source.split('/')[0]}" in ignored, source


@pytest.mark.parametrize("name", DOCKERFILES)
def test_images_run_as_a_user_of_their_own(name: str) -> None:
    """The last USER is not root, by number, so that a host can tell; the stop signal is one that is understood."""
    words = instructions(name)
    assert [arguments for word, arguments in words if word == "USER"] == ["10001:10001"]
    assert ("STOPSIGNAL", "SIGTERM") in words
    assert sum(word == "HEALTHCHECK" for word, _ in words) == 1


@pytest.mark.parametrize("name", DOCKERFILES)
def test_images_say_what_they_are(name: str) -> None:
    """By the labels of the Open Container Initiative."""
    labels = dict(re.findall(r'org\.opencontainers\.image\.([a-z.]+)="([^"]*)"', (ROOT / name).read_text()))
    assert labels["title"] == name.replace("Dockerfile.", "kernelscope-")
    assert labels["version"] == VERSION
    assert labels["revision"] == "$REVISION"
    assert ("ENV", "KERNELSCOPE_REVISION=$REVISION") in instructions(name)
    assert f"FROM {labels['base.name'].removeprefix('docker.io/library/')}\n" in (ROOT / name).read_text()
    assert {"description", "licenses"} <= set(labels)


def test_the_dockerfiles_please_a_linter() -> None:
    """hadolint, from its warnings up."""
    path = shutil.which("hadolint") or str(Path(sys.executable).with_name("hadolint"))
    ran = subprocess.run(
        [path, "--failure-threshold", "warning", *DOCKERFILES], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout


def test_the_api_s_health_check_asks_a_route_that_exists() -> None:
    """On the port that is exposed."""
    text = (ROOT / "Dockerfile.api").read_text()
    (port, path) = re.findall(r"http://127\.0\.0\.1:(\d+)(/\w+)", text)[0]
    assert ("EXPOSE", port) in instructions("Dockerfile.api")
    assert path in create_app().openapi()["paths"]


def test_the_api_s_image_has_no_torch() -> None:
    """Neither in its lock file nor in what is copied; the worker's has it, pinned like the developers' one."""
    pinned = {name: (ROOT / "requirements" / f"{name}.txt").read_text() for name in LOCKS}
    assert "\ntorch==" not in pinned["api"]
    assert "\ntorch==" not in pinned["worker-cpu"]
    versions = [re.findall(r"^torch(?:vision)?==\S+", pinned[name], re.MULTILINE) for name in ("all", "worker")]
    assert versions[0] == versions[1]
    assert len(versions[0]) == 2
    copied = [arguments.split()[0] for word, arguments in instructions("Dockerfile.api") if word == "COPY"]
    assert "worker" not in copied


@pytest.mark.parametrize("name", LOCKS)
def test_the_lock_files_have_hashes_and_no_addresses(name: str) -> None:
    """Every requirement is pinned and hashed; nothing says where it came from."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    requirements = re.findall(r"^[a-z0-9].*$", text, re.MULTILINE)
    assert all("==" in line and line.endswith("\\") for line in requirements)
    assert len(re.findall(r"--hash=sha256:", text)) >= len(requirements)
    assert "://" not in text
