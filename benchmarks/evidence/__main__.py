"""Does X̂ show what is in X? `python -m benchmarks.evidence --weights-dir W --other-weights-dir O --images-dir I`.

On VGG-16 conv2_2, conv3_3, conv4_3 and conv5_3, the third most active kernel of each of 12 photographs:

methods    the paper's method, evidence, the paper's method with only_remove, guided backpropagation, deconvolution,
           LRP, and three controls: X itself, t·X with the t of the lowest loss, X masked by the upsampled F_i
readings   of each delivered picture: the loss, SSIM, leakage, invention; invention in SqueezeNet 1.1, which is not
           optimised; deletion; SSIM after small changes of the picture
pairs      discrimination (api/pictures/consistency.py): three kernels on three photographs
grid       four photographs in one image: the fraction of X̂² in the quadrant that drives the kernel, for the 16 most
           active kernels that a single quadrant drives (an hour and a half)
efforts    `--efforts`, three quarters of an hour: γ × effort on the problems of `--reference`
           (docs/evidence/deep.json), and iterates of the paper's procedure, from the pictures beside that file
`--effort` the methods that optimise, also with an SSIM of at least 0.95, and the pairs, at another effort than
           `quick` (at `standard` conv2_2 took half an hour on two cores; deeper layers take longer)
cost       time of an evaluation with γ·L_e relative to one without

Each row is appended to `--rows` at once, so that the same command continues after an interruption. `--quick` uses two
photographs per layer. `--plot FILE` draws images × methods, and beside that file the curve of `--efforts`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.evidence import plots
from benchmarks.evidence.bench import LAYERS, MODEL, QUICK, Bench
from benchmarks.evidence.cost import cost
from benchmarks.evidence.efforts import EFFORTS, efforts
from benchmarks.evidence.grid import grid
from benchmarks.evidence.methods import methods, pairs
from benchmarks.evidence.tables import markdown, summary
from benchmarks.figures import shown as photographs
from benchmarks.readings import OtherNetwork
from benchmarks.table1 import pictures, read
from worker.engine.device import TorchDevice
from worker.engine.engine import Engine
from worker.engine.memory import reuse_memory
from worker.engine.questions import Picture
from worker.networks.loaded import Networks


def main(arguments: Sequence[str] | None = None) -> int:
    """Compute the missing rows, then print the summary."""
    options = _options(arguments)
    reuse_memory()
    logging.getLogger("worker").setLevel(logging.WARNING)
    networks = Networks(options.weights_dir, torch.device("cpu"), download=False)
    network = networks.get(MODEL)
    options.rows.parent.mkdir(parents=True, exist_ok=True)
    options.pictures.mkdir(parents=True, exist_ok=True)
    shown = pictures(options.images_dir, options.photographs, network.frame) if options.images_dir else shipped()
    known = {row["key"]: row for row in read(options.rows)}
    engine = Engine(TorchDevice(networks))
    bench = Bench(
        engine,
        network,
        options.layers,
        OtherNetwork(options.other_weights_dir),
        shown,
        known,
        options.rows,
        options.pictures,
        options.effort,
    )
    try:
        costs = {layer: engine.call(cost, network, layer, next(iter(shown.values()))) for layer in options.layers}
        methods(bench, 2 if options.quick else options.photographs)
        if not options.quick:
            pairs(bench)
            if "conv5_3" in options.layers and options.effort == QUICK:
                grid(bench)
        if options.efforts:
            efforts(bench, options.reference, options.images_dir)
    except KeyboardInterrupt:
        sys.stderr.write(f"\ninterrupted; the same command continues with {options.rows}\n")
        return 130
    finally:
        engine.close()
    rows = list(bench.rows.values())
    if options.plot:
        plots.mosaic(rows, shown, options.pictures, options.plot)
        if any(row["part"] == "efforts" for row in rows):
            plots.curve(rows, options.plot.with_stem(f"{options.plot.stem}-efforts"))
    report = {"rows": rows, "summary": summary(rows, options.effort), "cost": costs}
    print(json.dumps(report, indent=1) if options.json else markdown(report))
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights-dir", type=Path, required=True, help="the complete VGG-16")
    parser.add_argument("--images-dir", type=Path, help="photographs; default: four of scikit-image")
    parser.add_argument("--other-weights-dir", type=Path, required=True, help="SqueezeNet 1.1")
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=LAYERS, help="default: all four")
    parser.add_argument("--photographs", type=int, default=12, metavar="N", help="of a layer")
    parser.add_argument("--reference", type=Path, metavar="FILE", help="deep.json, with pictures beside it")
    parser.add_argument("--effort", choices=EFFORTS, default=QUICK)
    parser.add_argument("--efforts", action="store_true", help="also the curve of leakage against invention")
    parser.add_argument("--quick", action="store_true", help="two photographs a layer; no pairs, no grid")
    parser.add_argument("--rows", type=Path, default=Path("docs/evidence/evidence.jsonl"))
    parser.add_argument("--pictures", type=Path, default=Path("evidence/pictures"))
    parser.add_argument("--plot", type=Path, metavar="FILE", help="as evidence.png")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.efforts and not (options.reference and options.images_dir):
        parser.error("--efforts needs --reference with its problems, and --images-dir with their photographs")
    return options


def shipped() -> dict[str, Picture]:
    """The photographs of `benchmarks.figures`, by name."""
    names = ("cat", "astronaut", "coffee", "rocket")
    return {name: np.asarray(Image.open(BytesIO(file))) for name, file in zip(names, photographs(None), strict=True)}


if __name__ == "__main__":
    sys.exit(main())
