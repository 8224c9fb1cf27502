"""The paper's Tables 1 and 2 and Figure 3: `python -m benchmarks.table1 [--json] [--quick]`.

For the last layer of each block that the weights cover: every method on the same kernels and images, measured by the
service's engine. Then the ablation on fewer images: suppression without L_r (β = 0), without L_s (α = 0), and with a
bound on the SSIM instead of L_p in the loss. SqueezeNet's blocks are its fire modules 3, 5, 7 and 9.

The images are in a random order with a fixed seed. So are the kernels, without those that are silent on an image and,
unless `--choose any`, those without an explanation for α = β = 1: whose map a short suppression does not preserve
(SSIM ≥ 0.9) on two further images. The number of kernels tried is printed.

Each result is written to `--out` at once with its picture, so that the same command continues after an interruption. At
the end `table1.json`, `table1.md` and the joint distributions of the two errors are written there.

Without `--weights-dir` the network is `vgg_mini`; without `--images-dir` the images are drawn.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import tables
from benchmarks.arithmetic import operations
from benchmarks.kernel_choice import SEED, KernelChoices
from shared import catalogue, images
from shared.drawings import scene
from shared.schemas import OPTIMIZED
from worker.engine.device import TorchDevice
from worker.engine.engine import Engine
from worker.engine.memory import reuse_memory
from worker.engine.questions import Answer, Picture, Question
from worker.methods.suppression import EFFORTS
from worker.networks.loaded import Networks

METHODS = ("guided_backprop", "deconvnet", "lrp", "suppression", "evidence")
ABLATION: dict[str, dict[str, Any]] = {
    "without L_r": {"alpha": 1.0, "beta": 0.0},
    "without L_s": {"alpha": 0.0, "beta": 1.0},
    "SSIM ≥ 0.95": {"alpha": 1.0, "beta": 1.0, "target_ssim": 0.95},
}
FIRES = ("fire3", "fire5", "fire7", "fire9")
HELD_OUT = 2  # images on which kernels are chosen
PASSES = 8  # the cost of a baseline in gradient evaluations
MAX_PIXELS = 10**9
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Cell:
    """One X̂ of the table."""

    network: str
    block: int
    layer: str
    image: str  # its file's name
    variant: str  # a method, or a row of the ablation
    question: Question
    fingerprint: str
    cost: float  # in arbitrary units


def main(arguments: Sequence[str] | None = None) -> int:
    """Compute the missing results, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights-dir", type=Path, help="weights folder")
    parser.add_argument("--images-dir", type=Path, help="folder of photographs")
    parser.add_argument("--networks", nargs="+", metavar="NAME", help="default: those of the weights folder")
    parser.add_argument(
        "--blocks", nargs="+", type=int, choices=range(1, 6), help="default: all that the weights cover"
    )
    parser.add_argument("--kernels", type=int, default=4, help="of each layer")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--choose", choices=("explained", "any"), default="explained", help="which kernels")
    parser.add_argument("--ablation-images", type=int, metavar="N", help="default: a quarter of --images")
    parser.add_argument("--effort", choices=list(EFFORTS), default="standard")
    parser.add_argument("--rule", choices=("zplus", "gamma_epsilon"), default="zplus", help="of LRP")
    parser.add_argument("--quick", action="store_true", help="2 kernels, 2 images, effort quick: within 10 minutes")
    parser.add_argument("--out", type=Path, default=Path("evidence/table1"), help="folder of the results")
    parser.add_argument("--json", action="store_true", help="print the tables as JSON instead of Markdown")
    options = parser.parse_args(arguments)
    if options.quick:
        options.kernels, options.images, options.effort = 2, 2, "quick"
    few = options.images // 4 if options.ablation_images is None else options.ablation_images
    options.ablation_images = min(options.images, max(1, few))
    if min(options.kernels, options.images) < 1:
        parser.error(f"--kernels is {options.kernels} and --images {options.images}; each must be 1 or more")
    reuse_memory()
    logging.getLogger("worker").setLevel(logging.WARNING)
    networks = Networks(options.weights_dir or Path("/nonexistent"), torch.device(_device()), download=False)
    try:
        rows = measured(networks, options)
    except KeyboardInterrupt:
        sys.stderr.write(f"\ninterrupted; the same command continues with {options.out}\n")
        return 130
    report = tables.report(rows)
    (options.out / "table1.json").write_text(json.dumps(report, indent=1))
    (options.out / "table1.md").write_text(tables.markdown(report))
    for block in report["blocks"]:
        tables.joint([row for row in rows if tables.of_block(row, block)], block, options.out)
    print(json.dumps(report, indent=1) if options.json else tables.markdown(report))
    return 0


def measured(networks: Networks, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows of the tables; those of an earlier run are read from `--out`."""
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "pictures").mkdir(exist_ok=True)
    file = options.out / "cells.jsonl"
    known = {row["fingerprint"]: row for row in read(file)}
    engine = Engine(TorchDevice(networks))
    try:
        cells = list(plan(engine, options))
        left = [cell for cell in cells if cell.fingerprint not in known]
        progress = _Progress(len(cells), len(left), sum(cell.cost for cell in left))
        with file.open("a") as lines:
            for cell, row, picture in answers(engine, left):
                if picture is not None:
                    Image.fromarray(picture).save(options.out / "pictures" / f"{cell.fingerprint}.png")
                lines.write(json.dumps(row) + "\n")
                lines.flush()
                known[cell.fingerprint] = row
                progress.report(cell, row)
    finally:
        engine.close()
    return [known[cell.fingerprint] for cell in cells]


def read(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of an earlier run; an incomplete last line is removed."""
    if not file.exists():
        return
    whole = file.read_text()
    end = whole.rfind("\n") + 1
    if end < len(whole):
        file.write_text(whole[:end])
    yield from map(json.loads, whole[:end].splitlines())


def plan(engine: Engine, options: argparse.Namespace) -> Iterator[Cell]:
    """All cells, block by block."""
    device = engine.device
    choices = KernelChoices(engine, options)
    states = device.states()
    names = options.networks or [name for name, state in states.items() if state.available and name != "vgg_mini"]
    for name in names or ["vgg_mini"]:
        network = catalogue.network(name)
        frame, weights = device.frame(name), device.weights(name)
        shown = pictures(options.images_dir, options.images + HELD_OUT, frame)
        chosen, held_out = dict(list(shown.items())[: options.images]), list(shown.values())[options.images :]
        covered = [layer.name for layer in network.layers if layer.name in (states[name].layers or [])]
        for block, layer in blocks(network, covered):
            if options.blocks and block not in options.blocks:
                continue
            kernels = choices.get(name, layer, list(chosen.values()), held_out)
            work = operations(device.networks.get(name).layer(layer).cut, frame)  # type: ignore[attr-defined]
            for number, (image, picture) in enumerate(chosen.items()):
                for kernel in kernels:
                    for variant, question in variants(name, layer, picture, kernel, options):
                        if variant in ABLATION and number >= options.ablation_images:
                            continue
                        fingerprint = question.fingerprint(weights, device.version)
                        passes = PASSES if question.method not in OPTIMIZED else EFFORTS[options.effort].first
                        yield Cell(name, block, layer, image, variant, question, fingerprint, passes * work)


def variants(
    model: str, layer: str, picture: Picture, kernel: int, options: argparse.Namespace
) -> Iterator[tuple[str, Question]]:
    """Each method's question, then those of the ablation."""
    for method in METHODS:
        own: dict[str, Any] = {"effort": options.effort} if method in OPTIMIZED else {}
        own |= {"rule": options.rule} if method == "lrp" else {}
        yield method, Question(model, layer, picture, kernel, 1.0, 1.0, method=method, **own)
    for name, weights in ABLATION.items():
        yield name, Question(model, layer, picture, kernel, effort=options.effort, **weights)


def blocks(network: catalogue.Network, covered: list[str]) -> list[tuple[int, str]]:
    """(block, its last layer) of the blocks that the weights cover."""
    if network.name.startswith("squeezenet"):
        last = dict(enumerate(FIRES, start=1))
    else:
        last = {int(layer.name.removeprefix("conv").split("_")[0]): layer.name for layer in network.layers}
    return [(block, layer) for block, layer in last.items() if layer in covered]


def pictures(folder: Path | None, count: int, frame: images.Frame) -> dict[str, Picture]:
    """Photographs of the folder in a random order, or drawn scenes, by name."""
    if folder is None:
        return {f"scene-{seed}": np.asarray(scene(seed, frame.width).image) for seed in range(count)}
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    random.Random(SEED).shuffle(files)  # noqa: S311 - not for secrets
    found = {
        file.name: np.asarray(images.resized(images.decode(file.read_bytes(), MAX_PIXELS), frame))
        for file in files[:count]
    }
    if len(files) < count - HELD_OUT:
        raise SystemExit(f"{folder} has {len(files)} images ({', '.join(SUFFIXES)}), fewer than --images")
    return found | dict(list(pictures(None, count, frame).items())[len(files) :])


def answers(engine: Engine, cells: list[Cell]) -> Iterator[tuple[Cell, dict[str, Any], Picture | None]]:
    """(cell, its row, its picture) in the order of completion, layer by layer."""
    for layer in dict.fromkeys((cell.network, cell.layer) for cell in cells):
        these = [cell for cell in cells if (cell.network, cell.layer) == layer]
        for number, answer in engine.ask([cell.question for cell in these]):
            yield these[number], row(these[number], answer), answer.picture if isinstance(answer, Answer) else None


def row(cell: Cell, answer: Answer | Exception) -> dict[str, Any]:
    """The row of an answer; its numbers are of the 8-bit picture."""
    found: dict[str, Any] = {name: getattr(cell, name) for name in ("network", "block", "layer", "image", "variant")}
    found |= {"kernel": cell.question.kernel, "effort": cell.question.effort, "fingerprint": cell.fingerprint}
    if not isinstance(answer, Answer):
        return found | {"error": str(answer)}
    numbers = answer.metrics.model_dump() | answer.losses.model_dump()
    numbers["mse_ratio"] = answer.metrics.mse_others / answer.metrics.mse_others_before
    return found | numbers | {"iterations": answer.iterations, "seconds": answer.seconds, "stopped": answer.stopped}


class _Progress:
    """Prints a line for each result with an estimate of the remaining time, by cost."""

    def __init__(self, total: int, left: int, cost: float) -> None:
        self.total, self.done = total, total - left
        self.cost, self.spent = cost, 0.0
        self.begin = time.monotonic()

    def report(self, cell: Cell, row: dict[str, Any]) -> None:
        self.done += 1
        self.spent += cell.cost
        left = (time.monotonic() - self.begin) * (self.cost - self.spent) / self.spent
        number = "silent" if "error" in row else f"SSIM {row['ssim'] or 0:.3f}, leakage {row['leakage']:.1%}"
        sys.stderr.write(
            f"[{self.done}/{self.total}] {cell.network} {cell.layer} kernel {cell.question.kernel}, {cell.image}, "
            f"{cell.variant}: {number}; about {left / 60:.0f} min left\n"
        )


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    sys.exit(main())
