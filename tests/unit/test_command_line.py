"""The command line without a server: its options, its output, which images it means, where it runs."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from rich.console import Console

from kernelscope import photos, results, terminal
from kernelscope.cli import app
from kernelscope.explain import _checked, _kernels
from shared.schemas import ExplainOptions, ExplainRequest, ItemResult, Losses, Metrics
from tests.conftest import noise, png
from tests.local import local

ROOT = Path(__file__).parents[2]
NO_DOCUMENT = ("up", "mcp", "csv")  # they run on, speak a protocol, or print a table as CSV


def commands() -> Iterator[tuple[str, Any]]:
    """Name and click command of every command of every group."""
    for name, command in typer.main.get_group(app).commands.items():
        inner = getattr(command, "commands", None)
        yield from ((f"{name} {own}", one) for own, one in inner.items()) if inner else [(name, command)]


def options_of(command: Any) -> set[str]:
    """Every name of every option."""
    return {name for parameter in command.params for name in parameter.opts}


def test_every_field_of_a_request_is_an_option_of_explain() -> None:
    """Named as the field with dashes; the images are arguments, and `names` and `layers` are not the caller's."""
    explain = dict(commands())["explain"]
    fields = set(ExplainRequest.model_fields) - {"images", "names", "layers"}
    assert fields == set(ExplainOptions.model_fields)
    assert {f"--{name.replace('_', '-')}" for name in fields} - options_of(explain) == set()


@pytest.mark.parametrize(
    ("name", "command"), list(commands()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_command_has_json_and_says_its_exit_codes(name: str, command: Any) -> None:
    """In its help; so does an example."""
    if name.rsplit(maxsplit=1)[-1] not in NO_DOCUMENT:
        assert "--json" in options_of(command), name
    assert re.search(r"Exit\s+code 0: .*[;,]\s+1: ", command.callback.__doc__, re.DOTALL), name


def test_kernels_and_methods_are_taken_repeated_or_by_commas() -> None:
    """`top:N` must be alone; anything else is refused."""
    assert _kernels(["3", "16,40"]) == [3, 16, 40]
    assert _kernels(["top:4"]) == "top:4"
    for wrong in (["three"], ["top:4", "3"], ["-1"], [","], ["٣"]):
        with pytest.raises(typer.BadParameter):
            _kernels(wrong)
    with pytest.raises(typer.BadParameter, match="fast"):
        _checked({"layer": "conv1_1", "kernels": [1], "solver": "reference", "target_ssim": 0.9})
    with pytest.raises(typer.BadParameter) as refused:
        _checked({"layer": "conv1_1", "kernels": [1], "methods": ["magic"]})
    assert refused.value.param_hint == "--methods"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images in folders, some of them with odd names, beside what is no image."""
    for name in (
        "photos[old]/a.png",
        "photos[old]/b/a.JPG",
        "photos[old]/.hidden/c.png",
        "photos[old]/.d.png",
        "x.webp",
    ):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    (tmp_path / "photos[old]" / "notes.txt").write_text("")
    return tmp_path


def test_images_are_files_folders_and_patterns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with all below it, each file once, what is hidden never; an existing name is no pattern."""
    monkeypatch.chdir(folder)
    old = Path("photos[old]")
    assert [one.label for one in photos.found([old])] == ["a", "b-a"]
    assert [one.label for one in photos.found([Path("*.webp"), Path("x.webp"), old / "a.png"])] == ["x", "a"]
    assert [one.path.name for one in photos.found([Path("**/*.webp")])] == ["x.webp"]
    for missing in ("nothing.png", "*.gif"):
        with pytest.raises(typer.BadParameter, match="does not exist"):
            photos.found([Path(missing)])
    (folder / "empty").mkdir()
    with pytest.raises(typer.BadParameter, match="no image in empty"):
        photos.found([Path("empty")])


def test_labels_are_different_and_fit_for_files() -> None:
    """Whatever the names of images are: those of a job come from its server."""
    names = [
        "a.png",
        "a.jpg",
        "../../etc/passwd.png",
        "b\\c.png",
        "…/é 写.webp",
        None,
        "x" * 300,
        "\x1b[31m.png",
        "a-2.png",
    ]
    found = results.labels_of(names)
    assert len(set(found)) == len(names)
    assert found[:6] == ["a", "a-2", "etc-passwd", "b-c", "é 写", "image5"]
    assert found[-1] == "a-2-2"
    assert all("/" not in one and "\x1b" not in one and len(one) <= 100 for one in found)


def test_a_job_takes_what_the_server_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 images, 2,048 items, a body of 24 MB."""
    for number in range(40):
        (tmp_path / f"{number:02}.png").write_bytes(b"x" * 1000)
    found = photos.found([tmp_path])

    def sizes(**options: Any) -> list[int]:
        return [len(batch) for batch in photos.batches(found, ExplainOptions(layer="conv1_1", **options))]

    assert sizes(kernels=[3]) == [16, 16, 8]
    assert sizes(kernels="top:512") == [4] * 10
    assert sizes(kernels="top:64", methods=["suppression", "lrp"], beta=[0, 1, 10]) == [8] * 5
    monkeypatch.setattr(photos, "BODY_BYTES", 5500)
    assert sizes(kernels=[3]) == [5] * 8


def test_names_and_messages_are_printed_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brackets are no markup, colons no emoji: in lines, tables and progress bars."""
    odd = "photos[old]/[/] [bold]:cat:.png"
    for name in ("out", "err"):
        assert not getattr(terminal, name)._markup
        console = Console(
            file=io.StringIO(), width=200, highlight=False, markup=False, emoji=False, force_terminal=True
        )
        monkeypatch.setattr(terminal, name, console)
    made = terminal.table(odd, odd)
    made.add_row(odd)
    terminal.out.print(made)
    terminal.say(odd, terminal.out)
    terminal.complain(odd)
    with terminal.progress(terminal.err) as bar:
        bar.add_task(odd)
    printed = terminal.out.file.getvalue()  # type: ignore[attr-defined]
    assert printed.count(odd) == 4
    assert terminal.err.file.getvalue().count(odd) >= 2  # type: ignore[attr-defined]


def test_with_url_it_runs_where_there_is_no_fcntl_and_no_sighup(tmp_path: Path) -> None:
    """As on Windows; a stack of its own is refused there in words."""
    code = (
        "import signal, sys\n"
        "sys.modules['fcntl'] = sys.modules['termios'] = None\n"
        "del signal.SIGHUP\n"
        "from kernelscope.__main__ import main\n"
        "main()"
    )

    def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT), "KERNELSCOPE_DATA_DIR": str(tmp_path), "COLUMNS": "200"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    (tmp_path / "photo.png").write_bytes(png(noise()))
    problem = {"type": "/problems/unauthorized", "title": "Unauthorized", "status": 401, "detail": "give a key"}
    with local(lambda _: httpx.Response(401, json=problem)) as url:
        for command in (["jobs"], ["explain", "photo.png", "-l", "conv1_1", "-m", "vgg16"], ["datasets", "list"]):
            found = ran(*command, "--url", url)
            assert found.stderr == "kernelscope: Unauthorized: give a key\n"
            assert found.returncode == 1
    for command in (["up"], ["explain", "photo.png", "-l", "conv1_1"], ["keys", "list"]):
        found = ran(*command)
        assert "needs Linux or macOS" in found.stderr, found.stderr
        assert found.returncode == 1


SHOWN = "import json; from shared.settings import Settings; print(json.dumps([Settings().port, Settings().access]))"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the `.env` of some project."""
    (tmp_path / ".env").write_text("KERNELSCOPE_PORT=1234\nKERNELSCOPE_ACCESS=keys\nOTHER=1\n")
    return tmp_path


def python(folder: Path, code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program in a folder."""
    own = {"PYTHONPATH": str(ROOT), "COLUMNS": "300", "KERNELSCOPE_DATA_DIR": str(folder / "data"), **environment}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **own}, capture_output=True, text=True, check=False, timeout=60
    )


def test_the_env_file_of_another_project_is_not_read(project: Path) -> None:
    """Unless it is named; then a line reports it. One that does not exist is refused."""
    assert json.loads(python(project, SHOWN).stdout) == [8000, "auto"]
    assert json.loads(python(project, SHOWN, KERNELSCOPE_ENV_FILE=".env").stdout) == [1234, "keys"]
    command = "from kernelscope.__main__ import main; main()"
    ran = python(project, command, "jobs", KERNELSCOPE_ENV_FILE=".env")
    assert ran.stderr.startswith("settings from .env\n")
    assert "http://127.0.0.1:1234" in ran.stderr
    ran = python(project, command, "jobs", KERNELSCOPE_ENV_FILE="missing.env")
    assert ran.returncode == 1
    assert "KERNELSCOPE_ENV_FILE names missing.env, which does not exist" in ran.stderr


@pytest.mark.parametrize("width", [60, 80, 120])
def test_numbers_are_not_cut_in_a_narrow_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns are left out instead, the least important first."""
    monkeypatch.setattr(terminal, "out", Console(file=io.StringIO(), width=width))
    other: Any = {"ssim_window": 7, "ssim_paper": 0.9, "mse_selected": 0.1, "mse_others": 0.1, "mse_others_before": 1}
    metrics = Metrics(ssim=0.9871, leakage=0.31, invention=0.12, sparsity=0.004, **other)
    losses = Losses(preservation=0.1, suppression=0.2, regularization=0.3, total=0.6125)
    shared: Any = {"image": "0" * 64, "kernel": 3, "method": "guided_backprop", "status": "succeeded", "seconds": 12.5}
    shared |= {"alpha": 1, "beta": 1, "loss_start": 1.5255, "loss_blank": 0.992}
    one = ItemResult(index=0, metrics=metrics, losses=losses, **shared)
    terminal.out.print(terminal.numbers_table("conv5_3 of vgg16", {"method": ["guided_backprop"]}, [one]))
    printed = terminal.out.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in printed
    assert all(number in printed for number in ("guided_backprop", "0.987", "31%", "12%", "0.613"))
    assert ("1.525" in printed or "1.526" in printed) == (width == 120)
