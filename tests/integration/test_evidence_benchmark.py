"""The benchmark of evidence: its readings against plain ones, and that it continues after an interruption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.evidence.__main__ import main
from benchmarks.evidence.bench import METHODS
from benchmarks.evidence.grid import driven
from benchmarks.readings import deletion
from shared.drawings import scene
from tests.integration.test_real_weights import VGG16_MEAN, folder
from tests.recompute import VGG_BLOCKS, PlainVgg, numbers
from worker.networks.loaded import Networks

STD = (0.229, 0.224, 0.225)


def test_deletion_is_the_area_that_is_left() -> None:
    """1 if what is removed does not drive the kernel until the end; less the sooner its drivers are removed."""
    network = Networks(Path("/nonexistent"), torch.device("cpu"), download=False).get("vgg_mini")
    picture = np.asarray(scene(5, 96).image)
    maps = network.layer("conv1_2").features(
        network.space.from_bytes(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None])
    )
    kernel = int(maps[0].mean(dim=(1, 2)).argmax())
    driving = maps[0, kernel].numpy()
    first, last = (deletion(network, "conv1_2", kernel, picture, order) for order in (driving, -driving))
    assert first < deletion(network, "conv1_2", kernel, picture, None) < last


def test_a_quadrant_that_drives_a_kernel_alone() -> None:
    """A figure in one quadrant of grey: its kernels are driven by that quadrant only."""
    network = Networks(Path("/nonexistent"), torch.device("cpu"), download=False).get("vgg_mini")
    picture = np.full((96, 96, 3), 128, np.uint8)
    picture[:48, 48:] = np.asarray(scene(5, 96).image)[:48, :48]
    found = driven(network, "conv2_2", picture)
    assert found
    assert {quadrant for _, quadrant in found} == {1}


@pytest.mark.weights
def test_rows_are_right_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One photograph, one layer of the complete VGG-16; the same command then computes the missing row."""
    weights, photographs = folder("KERNELSCOPE_TEST_VGG16"), folder("KERNELSCOPE_TEST_IMAGES")
    rows = tmp_path / "rows.jsonl"
    command = ["--weights-dir", str(weights), "--images-dir", str(photographs), "--quick", "--json"]
    command += ["--layers", "conv2_2", "--photographs", "1"]
    command += ["--other-weights-dir", str(folder("KERNELSCOPE_TEST_WEIGHTS")), "--rows", str(rows)]
    command += ["--pictures", str(tmp_path / "pictures"), "--plot", str(tmp_path / "evidence.png")]
    assert main(command) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert set(report["summary"]) == {*METHODS, "X", "t·X", "masked X"}
    assert report["cost"]["conv2_2"] < 2
    own = {row["method"]: row for row in report["rows"]}
    assert own["X"]["invention"] == own["X"]["other_invention"] == 0
    assert own["evidence"]["invention"] < own["paper"]["invention"]
    network = PlainVgg(next(weights.glob("*.safetensors")), VGG_BLOCKS["vgg16"], "conv2_2", VGG16_MEAN, STD)
    original = (photographs / own["evidence"]["image"]).read_bytes()
    for method in ("evidence", "masked X"):
        row = own[method]
        delivered = (tmp_path / "pictures" / f"{row['key'].replace('/', '-')}.png").read_bytes()
        reported = numbers(network, original, delivered, 224, row["kernel"])
        assert row["loss"] == pytest.approx(reported["total"], rel=1e-3)
        assert row["invention"] == pytest.approx(reported["invention"], rel=1e-3)
    with Image.open(tmp_path / "evidence.png") as drawn:
        assert drawn.width > 1000

    lines = rows.read_text().splitlines()
    rows.write_text("\n".join([*lines[1:], lines[0][:40]]))  # the first is lost, and a line is torn
    assert main(command) == 0
    again = {row["method"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert set(again) == set(own)
    assert again["lrp"] == own["lrp"]
