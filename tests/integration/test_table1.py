"""The paper's table against a second, plain implementation; and an interrupted run."""

from __future__ import annotations

import json
import random
from io import BytesIO
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from PIL import Image

from benchmarks import table1
from shared.drawings import scene
from tests.conftest import FULL
from tests.integration.test_real_weights import MEAN, STD, folder
from tests.recompute import VGG_BLOCKS, PlainVgg, numbers
from worker.networks.vgg_mini import WEIGHTS_FILE, VggMini

SAMPLE = 20
COLUMNS = {"mse": "mse_others", "ssim": "ssim", "leakage": "leakage"}


def run(out: Path, *options: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The report and the cells."""
    assert table1.main(["--json", "--out", str(out), *options]) == 0
    cells = [json.loads(line) for line in (out / "cells.jsonl").read_text().splitlines()]
    return json.loads((out / "table1.json").read_text()), cells


def png(picture: Image.Image) -> bytes:
    """The picture as a PNG."""
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def check(out: Path, report: dict[str, Any], cells: list[dict[str, Any]], networks: Any, originals: Any) -> None:
    """Twenty random cells (or all) recomputed, and each block's means and deviations from its cells."""
    for cell in random.Random(5).sample(cells, min(SAMPLE, len(cells))):
        network, size = networks(cell)
        delivered = (out / "pictures" / f"{cell['fingerprint']}.png").read_bytes()
        again = numbers(network, originals(cell["image"]), delivered, size, cell["kernel"])
        for name in ("ssim", "mse_others", "mse_selected", "leakage", "sparsity"):
            assert cell[name] == pytest.approx(again[name], abs=1e-3, rel=1e-3), (cell["variant"], name)
        assert cell["mse_ratio"] == pytest.approx(again["mse_others"] / again["mse_others_before"], abs=1e-3)
    for block in report["blocks"]:
        for method, reported in block["methods"].items():
            own = [c for c in cells if c["variant"] == method]
            own = [c for c in own if (c["network"], c["layer"]) == (block["network"], block["layer"])]
            assert reported["cells"] == len(own) == len(block["kernels"]) * len(block["images"])
            for name, column in COLUMNS.items():
                assert reported[f"{name}_mean"] == pytest.approx(fmean(c[column] for c in own), abs=1e-9)
                assert reported[f"{name}_sd"] == pytest.approx(stdev(c[column] for c in own), abs=1e-9)


@pytest.mark.slow
def test_the_table_is_what_a_plain_implementation_computes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the bundled network; then the run is repeated after its last line was truncated."""
    size = ["--quick"] if FULL else ["--quick", "--effort", "quick"]
    report, cells = run(tmp_path, *size)
    assert [block["layer"] for block in report["blocks"]] == ["conv1_2", "conv2_2", "conv3_2", "conv4_2"]
    assert list(report["blocks"][0]["methods"]) == list(table1.METHODS)
    rows = {(row["layer"], row["terms"]) for row in report["ablation"]}
    assert {terms for _, terms in rows} == {"without L_r", "without L_s", "all three", "SSIM ≥ 0.95"}

    def network(cell: dict[str, Any]) -> tuple[PlainVgg, int]:
        return PlainVgg(WEIGHTS_FILE, VGG_BLOCKS["vgg_mini"], cell["layer"], VggMini.MEAN, VggMini.STD), 96

    check(tmp_path, report, cells, network, lambda name: png(scene(int(name.removeprefix("scene-")), 96).image))
    file = tmp_path / "cells.jsonl"
    whole = file.read_text()
    file.write_text(whole[:-30])
    capsys.readouterr()
    again, _ = run(tmp_path, *size)
    assert len(capsys.readouterr().err.splitlines()) == 1  # one cell was lost, and done again
    assert again["blocks"][0] == report["blocks"][0]
    assert len(list(tmp_path.glob("joint-*.png"))) == 4
    assert "| suppression |" in (tmp_path / "table1.md").read_text()


@pytest.mark.weights
def test_the_table_of_real_weights_is_too(tmp_path: Path) -> None:
    """VGG-16 on photographs; suppression preserves the map better than the other methods."""
    weights, photographs = folder("KERNELSCOPE_TEST_WEIGHTS"), folder("KERNELSCOPE_TEST_IMAGES")
    folders = ("--weights-dir", str(weights), "--images-dir", str(photographs))
    size = ["--quick"] if FULL else ["--kernels", "1", "--images", "2", "--effort", "quick", "--blocks", "1"]
    report, cells = run(tmp_path, "--networks", "vgg16", *size, *folders)
    file = next(weights.glob("vgg16*"))

    def network(cell: dict[str, Any]) -> tuple[PlainVgg, int]:
        return PlainVgg(file, VGG_BLOCKS["vgg16"], cell["layer"], MEAN, STD), 224

    check(tmp_path, report, cells, network, lambda name: (photographs / name).read_bytes())
    for block in report["blocks"]:
        kept = {name: method["ssim_mean"] for name, method in block["methods"].items()}
        assert max(kept, key=kept.__getitem__) == "suppression", kept
        assert kept["suppression"] >= 0.9
