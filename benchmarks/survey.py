"""What a survey costs: `python -m benchmarks.survey [--weights-dir W] [--images-dir I] [--json] [--quick]`.

Every layer of VGG-16 on many images, on the engine's thread as in a worker, against the bare forward passes up to the
last layer, in turns: `ratio` is the median over the rounds. Images are photographs, each at several shifts, or drawn
scenes without a folder; without weights they are random: the arithmetic is the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.random_weights import vgg16_file
from benchmarks.readings import tensor
from benchmarks.table1 import pictures
from worker.engine.accelerator import choose
from worker.engine.device import TorchDevice
from worker.engine.engine import Engine
from worker.engine.memory import keep_memory
from worker.engine.questions import SURVEYED
from worker.engine.survey import survey
from worker.networks.layer import LoadedNetwork
from worker.networks.loaded import Networks

MODEL = "vgg16"
PHOTOGRAPHS = 20
PART = 256  # images at once, as in a slice of a survey


def measured(network: LoadedNetwork, pixels: Tensor, rounds: int, run: Callable[..., Any]) -> dict[str, Any]:
    """Seconds for all images, and the ratio."""
    layers = list(network.layers)
    run(survey, network, layers, pixels[:SURVEYED])  # warm
    bare, surveyed = [], []
    for _ in range(rounds):
        bare.append(_seconds(run, _bare, network, layers[-1], pixels))
        surveyed.append(_seconds(run, _survey, network, layers, pixels))
    return {
        "images": len(pixels),
        "layers": len(layers),
        "bare_s": round(statistics.median(bare), 2),
        "survey_s": round(statistics.median(surveyed), 2),
        "ratio": round(statistics.median(mine / other for mine, other in zip(surveyed, bare, strict=True)), 3),
    }


@torch.no_grad()
def _bare(network: LoadedNetwork, layer: str, pixels: Tensor) -> None:
    for start in range(0, len(pixels), SURVEYED):
        images = network.space.from_bytes(pixels[start : start + SURVEYED])
        network.layer(layer).features(images.contiguous(memory_format=torch.channels_last)).sum().item()


def _survey(network: LoadedNetwork, layers: list[str], pixels: Tensor) -> None:
    for start in range(0, len(pixels), PART):
        survey(network, layers, pixels[start : start + PART], start)


def _seconds(run: Callable[..., Any], *what: Any) -> float:
    begin = time.perf_counter()
    run(*what)
    return time.perf_counter() - begin


def _pixels(network: LoadedNetwork, folder: Path | None, count: int) -> Tensor:
    """Photographs at several shifts, (N, 3, H, W)."""
    found = list(pictures(folder, PHOTOGRAPHS, network.frame).values())
    return tensor(*[np.roll(found[number % len(found)], number // len(found), axis=1) for number in range(count)])


def main() -> int:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights-dir", type=Path, help="the complete VGG-16")
    parser.add_argument("--images-dir", type=Path, help="photographs")
    parser.add_argument("--images", type=int, default=1000, metavar="N")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto", help="`cpu`, `cuda`; default: a card where there is one")
    parser.add_argument("--quick", action="store_true", help="96 images, two rounds")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.images, options.rounds = 96, 2
    keep_memory()
    with TemporaryDirectory() as folder:
        weights = options.weights_dir or vgg16_file(Path(folder)).parent
        networks = Networks(weights, choose(options.device), download=False)
        engine = Engine(TorchDevice(networks))
        try:
            network = networks.get(MODEL)
            pixels = _pixels(network, options.images_dir, options.images)
            report = measured(network, pixels, options.rounds, engine.call)
        finally:
            engine.close()
    print(json.dumps(report, indent=1) if options.json else "\n".join(f"{name}: {it}" for name, it in report.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
