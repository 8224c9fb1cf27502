"""The command line as a person types it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from kernelscope.client import Client, ServerError
from kernelscope.datasets import _added
from kernelscope.stack import Stack, free_port, running_in
from shared.drawings import scene
from shared.errors import Problem
from shared.schemas import OddFile
from tests.integration.cli import COMMAND, run, until_said


def test_a_folder_becomes_a_data_set_however_often_it_is_sent(folder: Path, stack: Stack) -> None:
    """What is odd is named; archives are unpacked; a second run sends what is new, and nothing twice."""
    photos = folder / "photos"
    for seed in range(3):
        scene(seed, 64).image.save(photos / f"{seed}.png")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff and no more")
    (photos / "notes.txt").write_text("no image")
    shutil.make_archive(str(photos / "more"), "zip", photos, "0.png")
    sent = run(folder, "datasets", "add", "photos", "--name", "once", KERNELSCOPE_URL=stack.url)
    assert sent.returncode == 0, sent.stderr
    assert "has 4 images" in sent.stdout
    assert "photos/broken.jpg" in sent.stderr
    scene(7, 64).image.save(photos / "new.png")
    again = run(folder, "datasets", "add", "photos", "--name", "once", "--json", KERNELSCOPE_URL=stack.url)
    document = json.loads(again.stdout)
    assert (document["images"], [one["name"] for one in document["odd"]]) == (5, ["photos/broken.jpg"])
    with Client(stack.url) as client:
        assert [one.name for one in client.dataset_images(document["id"])][-1] == "photos/new.png"
        client.delete_dataset(document["id"])


def test_batches_are_as_small_as_the_server_wants() -> None:
    """Batches are halved until they fit; an image that does not fit is named."""
    accepted: list[list[str]] = []

    class Small:
        def add_images(self, _: str, files: dict[str, bytes]) -> str:
            if sum(map(len, files.values())) > 10:
                raise ServerError(Problem(type="", title="Body too large", status=413, detail="over 10 B"))
            accepted.append(list(files))
            return "added"

    odd: list[OddFile] = []
    batch = {"a": b"1" * 6, "b": b"2" * 4, "c": b"3" * 11, "d": b"4" * 9}
    assert list(_added(Small(), "id", batch, odd)) == ["added", "added"]  # type: ignore[arg-type,comparison-overlap]
    assert accepted == [["a", "b"], ["d"]]
    assert [(one.name, one.reason) for one in odd] == [("c", "over 10 B")]


def test_with_nothing_running_it_explains_and_leaves_nothing(folder: Path) -> None:
    """The table, the pictures, and no process, no socket, no file beside."""
    asked = ["photo.jpg", "--layer", "conv2_2", "--top", "3", "--effort", "quick"]
    ran = run(folder, "explain", *asked, KERNELSCOPE_ACCESS="keys")  # which is for `up`
    assert ran.returncode == 0, ran.stderr
    assert "vgg_mini" in ran.stderr  # the network that it took, because VGG16 has no weights here
    assert len(re.findall(r"^ +\d+ +[01]\.\d{3} ", ran.stdout, re.MULTILINE)) == 3
    pictures = sorted((folder / "photo-conv2_2").glob("*.png"))
    assert len(pictures) == 9
    with Image.open(pictures[0]) as picture:
        picture.verify()
    left = {entry.name for entry in folder.iterdir() if not entry.name.startswith("torchinductor_")}  # torch's own
    assert left - {"data"} == {"photo-conv2_2", "photo.jpg", "photos"}
    assert not [one for one in psutil.process_iter() if str(folder) in " ".join(_command(one))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["at once", "starting", "running"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_leaves_no_process_and_no_lock(folder: Path, moment: str, number: int) -> None:
    """At any moment; it says what happened, and the next run finds nothing in its way."""
    environment = {**os.environ, "TMPDIR": str(folder), "KERNELSCOPE_DOWNLOAD_WEIGHTS": "false"}
    asked = ["photo.jpg", "--layer", "conv3_1", "--model", "vgg_mini", "--top", "2", "--iterations", "100000"]
    with (folder / "said.txt").open("w") as said:
        process = subprocess.Popen(
            [*COMMAND, "explain", *asked], cwd=folder, env=environment, stdout=said, stderr=said, start_new_session=True
        )
        family = psutil.Process(process.pid)
        if moment == "starting":
            until_said(folder / "said.txt", "starting a private stack")
            time.sleep(0.5)
        elif moment == "running":
            until_running(folder)
        else:
            time.sleep(1)
        children = family.children(recursive=True)
        process.send_signal(number)
        try:
            assert process.wait(60) == 130 or (moment == "at once" and number != signal.SIGINT)
        finally:  # it ends its children with it
            process.kill()
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    assert not list(folder.glob("kernelscope-*"))
    if moment == "running":
        assert gone
        assert "cancelled" in (folder / "said.txt").read_text()


@pytest.mark.slow
def test_a_worker_that_ends_meanwhile_is_started_again(folder: Path) -> None:
    """As a worker does whose network was registered anew: the command continues."""
    environment = {**os.environ, "TMPDIR": str(folder), "KERNELSCOPE_DOWNLOAD_WEIGHTS": "false"}
    asked = ["photo.jpg", "--layer", "conv3_1", "--model", "vgg_mini", "--top", "2", "--iterations", "3000"]
    with (folder / "said.txt").open("w") as said:
        process = subprocess.Popen([*COMMAND, "explain", *asked], cwd=folder, env=environment, stdout=said, stderr=said)
        until_running(folder)
        (worker,) = (one for one in psutil.Process(process.pid).children() if one.cmdline()[-2:] == ["-m", "worker"])
        worker.terminate()
        assert process.wait(180) == 0
    text = (folder / "said.txt").read_text()
    assert "worker ended with exit code 0; starting it again" in text
    assert list(folder.rglob("*-panel.png"))


def until_running(folder: Path) -> None:
    """Waits until the private stack runs a job: its lock says where it listens."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        for found in map(running_in, folder.glob("kernelscope-*")):
            if found:
                with Client(found.url, patience=60) as client:
                    if any(client.jobs(status="running")):
                        return
        time.sleep(0.1)
    raise AssertionError("it never ran")


def test_ctrl_c_leaves_many_images_to_be_continued(folder: Path, stack: Stack) -> None:
    """The jobs are cancelled on the server, and the folder knows them."""
    for seed in range(3):
        scene(seed, 64).image.save(folder / "photos" / f"{seed}.png")
    asked = ["photos", "-l", "conv3_1", "-m", "vgg_mini", "-k", "1", "--iterations", "100000", "-o", "out"]
    with (folder / "said.txt").open("w") as said:
        process = subprocess.Popen(
            [*COMMAND, "explain", *asked, "--url", stack.url], cwd=folder, stdout=said, stderr=said
        )
        deadline = time.monotonic() + 60
        while not (folder / "out" / "explain.json").exists():
            assert time.monotonic() < deadline, (folder / "said.txt").read_text()
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert "the same command with --output out continues" in (folder / "said.txt").read_text()
    made = json.loads((folder / "out" / "explain.json").read_text())["images"]
    assert len(made) == 4
    with Client(stack.url) as client:
        for job in {one["job"] for one in made.values()}:
            assert client.job(job, wait=30).status == "cancelled"


def test_json_is_all_that_stdout_has(folder: Path, stack: Stack) -> None:
    """The job as the API returns it, and the files."""
    asked = ["photo.jpg", "-l", "conv2_1", "-m", "vgg_mini", "-k", "3", "--method", "lrp", "--method", "suppression"]
    ran = run(folder, "explain", *asked, "--effort", "quick", "--json", "-o", "there", "--url", stack.url)
    document = json.loads(ran.stdout)
    assert [result["method"] for result in document["job"]["results"]] == ["lrp", "suppression"]
    assert len(document["files"]) == 5  # two pictures of each, and one panel of both
    assert all((folder / name).is_file() for name in document["files"])


def test_a_failure_is_reported_in_words_and_by_the_exit_code(folder: Path, stack: Stack) -> None:
    """No such layer, a file that is no image, no server, two ways to name kernels at once."""
    url = {"KERNELSCOPE_URL": stack.url}
    ran = run(folder, "explain", "photo.jpg", "-l", "conv9_9", "-m", "vgg_mini", **url)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("kernelscope: Unknown layer: layer conv9_9 does not exist in vgg_mini")
    (folder / "notes.jpg").write_text("no picture")
    ran = run(folder, "explain", "notes.jpg", "-l", "conv2_1", "-m", "vgg_mini", **url)
    assert ran.returncode == 1
    assert "Unsupported image" in ran.stderr
    ran = run(folder, "jobs", "--url", "http://127.0.0.1:9")
    assert ran.returncode == 1
    assert "`kernelscope up` starts one" in ran.stderr
    ran = run(folder, "explain", "photo.jpg", "-l", "conv2_1", "-k", "1", "--top", "2", **url)
    assert ran.returncode == 2
    ran = run(folder, "explain", "missing.jpg", "-l", "conv2_1", **url)
    assert ran.returncode == 2
    ran = run(folder, "up", KERNELSCOPE_PORT="many")
    assert ran.returncode == 1
    assert "KERNELSCOPE_PORT" in ran.stderr


def test_a_second_run_takes_a_folder_of_its_own(folder: Path, stack: Stack) -> None:
    """Nothing is written over unless --output says where."""
    asked = ["photo.jpg", "-l", "conv2_1", "-m", "vgg_mini", "-k", "3", "--method", "lrp", "--url", stack.url]
    for _ in range(2):
        assert run(folder, "explain", *asked).returncode == 0
    assert {path.name for path in folder.glob("photo-*")} == {"photo-conv2_1", "photo-conv2_1-2"}


def test_figures_can_be_seen_in_any_terminal(folder: Path, stack: Stack) -> None:
    """As half blocks of colour, if requested."""
    asked = ["photo.jpg", "-l", "conv2_1", "-m", "vgg_mini", "-k", "3", "--method", "lrp", "--url", stack.url]
    assert "▀" in run(folder, "explain", *asked, "--show", FORCE_COLOR="1").stdout
    assert "▀" not in run(folder, "explain", *asked).stdout


def test_tables_of_a_server(folder: Path, stack: Stack) -> None:
    """Networks with why not, layers, jobs."""
    url = {"KERNELSCOPE_URL": stack.url}
    networks = run(folder, "models", **url).stdout
    assert re.search(r"vgg_mini +yes", networks)
    assert re.search(r"vgg16 +no +no weights for vgg16", networks)
    assert re.search(
        r"conv2_2 +features\.\d+ +32 +48 × 48 +\d+ px +2 +yes", run(folder, "models", "vgg_mini", **url).stdout
    )
    assert "nothing" in run(folder, "models", "nothing", **url).stderr
    assert re.search(r"[0-9a-f]{32} .* conv\d_\d", run(folder, "jobs", **url).stdout)


def test_names_are_completed(folder: Path) -> None:
    """Networks, and the layers of the one that was named."""
    words = "kernelscope explain photo.jpg --model vgg_mini --layer conv4"
    environment = {"_KERNELSCOPE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "6"}
    code = "from kernelscope.cli import app; app(prog_name='kernelscope')"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout.split() == ["conv4_1", "conv4_2"]


def test_an_address_without_our_server_is_reported_in_a_line(folder: Path) -> None:
    """An invalid address; the server of another program."""
    ran = run(folder, "models", "--url", "http://127.0.0.1:1 2")
    assert ran.returncode == 1
    assert ran.stderr.splitlines() == [
        "kernelscope: 'http://127.0.0.1:1 2' is not the address of a server (Invalid port: '1 2'); "
        "write it like http://127.0.0.1:8000"
    ]
    (folder / "models").write_text('{"hello": "there"}')
    port = free_port()
    other = subprocess.Popen(
        [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"], cwd=folder, stderr=subprocess.DEVNULL
    )
    try:
        ran = run(folder, "models", "--url", f"http://127.0.0.1:{port}")
    finally:
        other.kill()
        other.wait()
    assert ran.returncode == 1
    assert f"the server at http://127.0.0.1:{port} is not a Kernelscope server" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("module", ["typer", "pydantic", "annotated_types", "shared.schemas", "kernelscope.doctor"])
def test_ctrl_c_is_130_without_a_word_while_it_still_starts(folder: Path, module: str) -> None:
    """Whatever it is importing then, also where a library makes another error of it."""
    code = (
        "import os, signal, sys\n"
        "from kernelscope.__main__ import main\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}:\n"
        "            try:\n"
        "                os.kill(os.getpid(), signal.SIGINT)\n"
        "                for _ in range(1000): pass\n"
        "            except KeyboardInterrupt as error:\n"
        "                raise RuntimeError('error building a schema') from error\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "main()"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 130
    assert ran.stderr == ""
