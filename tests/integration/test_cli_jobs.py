"""The command line beside a stack that runs on this machine: many images, jobs left behind, one JSON document."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kernelscope.client import Client
from kernelscope.stack import Stack
from shared.drawings import scene
from tests.integration.conftest import ROOT, local_settings

HOW = ("-m", "vgg_mini", "-l", "conv2_2", "-k", "3", "--effort", "quick")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack that answers at once, without a network."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("KERNELSCOPE_ENGINE", "dummy")
        with Stack(local_settings(tmp_path_factory.mktemp("here")), print).running() as stack:
            yield stack


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder `photos[old]` of twenty images, two of them with one name, and one that is damaged."""
    photos = tmp_path / "photos[old]"
    (photos / "more").mkdir(parents=True)
    for seed in range(18):
        scene(seed, 32).image.save(photos / f"{seed:02}.png")
    scene(18, 32).image.save(photos / "00.jpg")
    scene(19, 32).image.save(photos / "more" / "00.png")
    (photos / "damaged.jpg").write_bytes(b"\xff\xd8\xff and no more")
    return tmp_path


def run(
    here: Stack, folder: Path, *arguments: str, code: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A command that has no --url, but the same data folder."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KERNELSCOPE_")}
    own = {"KERNELSCOPE_DATA_DIR": str(here.settings.data_dir), "COLUMNS": "160", **environment}
    command = [sys.executable, "-m", "kernelscope", *arguments]
    ran = subprocess.run(
        command, cwd=folder, env={**clean, **own}, capture_output=True, text=True, check=False, timeout=120
    )
    assert ran.returncode == code, ran.stderr
    return ran


def test_a_folder_is_explained_by_several_jobs_and_continued(here: Stack, folder: Path) -> None:
    """One table; damaged files are named; a second run explains only new images; names are printed unchanged."""
    ran = run(here, folder, "explain", "photos[old]/", *HOW, "-o", "out[1]")
    assert f"using the stack that runs here, {here.url}" in ran.stderr
    assert "skipped: damaged: " in ran.stderr
    assert re.search(r"\b20 of 21 images|\b21 of 21 images", ran.stderr)
    rows = re.findall(r"^ ?(\S+) +3 +\S+ +\d+%", ran.stdout, re.MULTILINE)
    assert len(rows) == 20
    assert {"00", "00-2", "more-00", "17"} <= set(rows)
    assert "pictures in out[1]/; " in ran.stdout
    panels = {path.name for path in (folder / "out[1]").glob("*-panel.png")}
    assert len(panels) == 20
    assert {"00-conv2_2-kernel3-panel.png", "more-00-conv2_2-kernel3-panel.png"} <= panels
    with Client(here.url) as client:
        before = sum(1 for _ in client.jobs())
        scene(20, 32).image.save(folder / "photos[old]" / "20.png")
        (folder / "photos[old]" / "damaged.jpg").unlink()
        again = json.loads(run(here, folder, "explain", "photos[old]/", *HOW, "-o", "out[1]", "--json").stdout)
        assert sum(1 for _ in client.jobs()) == before + 1
    assert len(again["files"]) == 3 * 21
    assert sum(len(job["results"]) for job in again["jobs"]) == 21
    assert again["refused"] == {}
    other = run(here, folder, "explain", "photos[old]/01.png", *HOW, "-o", "out[1]", "--beta", "2", "--json")
    assert json.loads(other.stdout)["job"]["request"]["beta"] == [2.0]  # other options are not what the folder has
    assert "out[1] has explanations with another beta: pictures of the same name are replaced" in other.stderr
    (folder / "out[1]" / "explain.json").write_text("{")
    assert "cannot be read" in run(here, folder, "explain", "photos[old]/01.png", *HOW, "-o", "out[1]").stderr


def test_a_job_of_an_earlier_run_that_the_server_still_has_is_followed(here: Stack, folder: Path) -> None:
    """As after a closed terminal: the record says that it was not finished."""
    run(here, folder, "explain", "photos[old]/01.png", *HOW, "-o", "out")
    record = folder / "out" / "job.json"
    job = json.loads(record.read_text())
    record.write_text(json.dumps({**job, "status": "running", "results": [], "finished_at": None}))
    (folder / "out" / "01-conv2_2-kernel3-panel.png").unlink()
    ran = run(here, folder, "explain", "photos[old]/01.png", *HOW, "-o", "out", "--json")
    assert json.loads(ran.stdout)["job"]["id"] == job["id"]
    assert (folder / "out" / "01-conv2_2-kernel3-panel.png").exists()
    failed = {"type": "x", "title": "Device out of memory", "status": 500, "detail": "too large"}
    item = {**job["results"][0], "status": "failed", "error": failed}
    record.write_text(json.dumps({**job, "results": [item]}))
    again = json.loads(run(here, folder, "explain", "photos[old]/01.png", *HOW, "-o", "out", "--json").stdout)
    assert again["job"]["id"] != job["id"]
    job = again["job"]
    record = folder / "out" / "job-2.json"
    record.write_text(json.dumps({**job, "status": "running", "id": "0" * 32}))
    manifest = folder / "out" / "explain.json"
    manifest.write_text(manifest.read_text().replace(job["id"], "0" * 32))
    again = json.loads(run(here, folder, "explain", "photos[old]/01.png", *HOW, "-o", "out", "--json").stdout)
    assert again["job"]["id"] not in {job["id"], "0" * 32}


def test_continuing_mixes_no_images_up(here: Stack, folder: Path) -> None:
    """An old name is not given again; missing pictures are made again; unfinished X̂ and copies are no results."""
    for number in range(3):
        (folder / f"{number}").mkdir()
        scene(20 + number, 32).image.save(folder / f"{number}" / "f.png")

    def explain(*images: str) -> dict[str, Any]:
        ran = run(here, folder, "explain", *images, *HOW, "-o", "out", "--json")
        found: dict[str, Any] = json.loads(ran.stdout)
        return found

    explain("1/f.png", "2/f.png")
    panel = folder / "out" / "f-conv2_2-kernel3-panel.png"
    before = panel.read_bytes()
    found = explain("0/f.png", "1/f.png", "2/f.png")
    assert (len(found["files"]), len(set(found["files"])), panel.read_bytes()) == (9, 9, before)
    (folder / "out" / "f-2-conv2_2-kernel3-optimized.png").unlink()
    (folder / "copy.png").write_bytes((folder / "1" / "f.png").read_bytes())
    found = explain("0/f.png", "1/f.png", "2/f.png", "copy.png")
    assert found["refused"] == {"copy": f"the same image as {(folder / '1' / 'f.png').resolve()}"}
    assert len(found["files"]) == 9
    assert all((folder / file).exists() for file in found["files"])
    jobs = {job["id"] for job in found["jobs"]}
    for record in (folder / "out").glob("job*.json"):
        job = json.loads(record.read_text())
        record.write_text(json.dumps({**job, "results": [{**one, "stopped": "deadline"} for one in job["results"]]}))
    assert not jobs & {job["id"] for job in explain("0/f.png", "1/f.png", "2/f.png")["jobs"]}


def test_a_detached_job(here: Stack, folder: Path) -> None:
    """Its id is all that is printed; it is waited for, shown, saved, deleted."""
    ids = run(here, folder, "explain", "photos[old]/", *HOW, "--detach").stdout.split()
    assert len(ids) > 1
    assert all(re.fullmatch(r"[0-9a-f]{32}", one) for one in ids)
    waited = run(here, folder, "wait", *ids).stdout.splitlines()
    assert [line.split()[:2] for line in waited] == [[one, "succeeded:"] for one in ids]
    shown = run(here, folder, "get", ids[0]).stdout
    assert shown.startswith(f"job {ids[0]}: succeeded: 1")
    assert len(re.findall(r"^ ?\d\d +3 ", shown, re.MULTILINE)) > 5
    run(here, folder, "save", ids[0], "-o", "saved")
    assert (folder / "saved" / "00-conv2_2-kernel3-panel.png").exists()
    assert not list((folder / "saved").glob("*maps*"))
    assert json.loads((folder / "saved" / "job.json").read_text())["id"] == ids[0]
    run(here, folder, "save", *ids, "-o", "all")
    assert len(list((folder / "all").glob("*-panel.png"))) == 20
    run(here, folder, "save", ids[1], "--all")
    assert list((folder / f"conv2_2-{ids[1][:8]}").glob("*-maps.npz"))
    run(here, folder, "delete", *ids)
    assert "was deleted" in run(here, folder, "get", ids[0], code=1).stderr
    run(here, folder, "explain", "photos[old]/01.png", *HOW, "--detach", "-o", "x", code=2)


def test_the_exit_code_of_wait_is_the_outcome(here: Stack, folder: Path) -> None:
    """0 where each has an explanation, 1 where there is no such job."""
    with Client(here.url) as client:
        job = client.explain(folder / "photos[old]" / "01.png", layer="conv2_2", model="vgg_mini", kernels=[1]).wait()
    run(here, folder, "wait", job.id, "--timeout", "0")
    run(here, folder, "wait", "0" * 32, code=1)


def test_without_a_server_detach_is_refused(folder: Path, here: Stack) -> None:
    """It says what would help."""
    ran = run(
        here, folder, "explain", "photos[old]/01.png", *HOW, "--detach", code=1, KERNELSCOPE_DATA_DIR=str(folder / "no")
    )
    assert "start `kernelscope up`, or give --url" in ran.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("jobs", "--limit", "2"),
        ("models",),
        ("models", "vgg_mini"),
        ("get", "ID"),
        ("wait", "ID"),
        ("save", "ID"),
        ("cancel", "ID"),
        ("activations", "photos[old]/01.png", "-m", "vgg_mini", "-l", "conv2_2", "--top", "2"),
        ("datasets", "list"),
        ("datasets", "add", "photos[old]"),
        ("surveys", "list"),
        ("keys", "list"),
        ("delete", "ID"),
    ],
    ids=" ".join,
)
def test_json_is_one_document_and_all_of_stdout(here: Stack, folder: Path, words: tuple[str, ...]) -> None:
    """Of each command that has it, with the stack that runs here found by its lock."""
    with Client(here.url) as client:
        job = client.explain(folder / "photos[old]" / "01.png", layer="conv2_2", model="vgg_mini", kernels=[3]).wait()
    found: Any = json.loads(run(here, folder, *(job.id if word == "ID" else word for word in words), "--json").stdout)
    if words == ("get", "ID"):
        assert (found["id"], len(found["results"])) == (job.id, 1)


def test_keys_of_a_server_that_is_not_here_are_refused_in_words(here: Stack, folder: Path) -> None:
    """That of the stack that runs here is its own; --url of another says why not and what to do."""
    assert "no keys" in run(here, folder, "keys", "list", "--url", here.url).stdout
    ran = run(here, folder, "keys", "list", "--url", "https://lab.example", code=2)
    words = " ".join(re.sub(r"[│╭╮╰╯─]", " ", ran.stderr).split())
    assert "cannot be managed over HTTP" in words
    assert f"is {here.url}" in words
    assert "KERNELSCOPE_REDIS_URL" in words
    note = run(here, folder, "keys", "list", KERNELSCOPE_URL="https://lab.example").stderr
    assert "not of KERNELSCOPE_URL: https://lab.example" in note
    redis = here.environment["KERNELSCOPE_REDIS_URL"]
    ran = run(here, folder, "keys", "list", "--url", here.url, code=2, KERNELSCOPE_REDIS_URL=redis)
    assert "leave out --url" in " ".join(re.sub(r"[│╭╮╰╯─]", " ", ran.stderr).split())


def test_the_page_of_the_documentation_runs(here: Stack, folder: Path) -> None:
    """Its blocks, in order, by a shell."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs" / "command-line.md").read_text(), re.MULTILINE | re.DOTALL)
    (folder / "photos").mkdir()
    for name in ("00.png", "01.png", "02.png"):
        (folder / "photos[old]" / name).rename(folder / "photos" / name)
    scene(1, 64).image.save(folder / "photo.jpg")
    (folder / "bin").mkdir()
    program = folder / "bin" / "kernelscope"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m kernelscope "$@"\n')
    program.chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KERNELSCOPE_")}
    own = {"PATH": f"{program.parent}:{os.environ['PATH']}", "KERNELSCOPE_DATA_DIR": str(here.settings.data_dir)}
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(blocks)],
        cwd=folder,
        env={**clean, **own},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert ran.returncode == 0, ran.stderr
    assert "photo-conv2_2-kernel3-panel.png" in ran.stdout
    assert "continuing in many" in ran.stderr
    assert len(list((folder / "later").glob("*-panel.png"))) == 2 * 3
