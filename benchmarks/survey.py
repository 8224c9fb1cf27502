"""The cost of a survey: `python -m benchmarks.survey [--weights-dir W] [--images-dir I] [--json] [--quick]`.

A survey of all layers of VGG-16 on many image files, as by a worker (read from the store, decode, forward pass,
statistics, write), against the forward passes of the decoded images up to the last layer, measured alternately. `ratio`
is the median over the rounds. The images are photographs at several shifts, or drawn scenes; without weights they are
random, which does not affect the speed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.random_weights import vgg16_file
from benchmarks.readings import tensor
from shared import collection, images
from shared.datasets import DataSets
from shared.drawings import scene
from shared.jobs import Claim, new_id
from shared.schemas import ExplainRequest, plan
from shared.store import BlobStore
from shared.surveys.store import SurveyFacts, Surveys, cut
from worker.engine.accelerator import choose
from worker.engine.device import TorchDevice
from worker.engine.engine import Engine
from worker.engine.memory import reuse_memory
from worker.engine.questions import SURVEY_BATCH
from worker.engine.scheduling import Account
from worker.jobs.inputs import Decoder
from worker.jobs.surveying import Surveying
from worker.networks.layer import LoadedNetwork
from worker.networks.loaded import Networks

MODEL = "vgg16"
PHOTOGRAPHS = 20
MAX_PIXELS = 10**8


def measured(engine: Engine, network: LoadedNetwork, files: list[bytes], rounds: int, folder: Path) -> dict[str, Any]:
    """Seconds for all images, and the ratio."""
    layers, pixels = list(network.layers), _pixels(network, files)
    store = BlobStore(folder.as_uri())
    datasets = DataSets(store, len(files))
    dataset = datasets.create("", "photographs").id
    upload = datasets.open(dataset, "")
    for number, data in enumerate(files):
        upload.take(str(number), data)
    upload.close()
    _survey(engine, layers[:1], datasets, dataset)  # warm
    bare, surveyed = [], []
    for _ in range(rounds):
        bare.append(_seconds(engine.call, _bare, network, layers[-1], pixels))
        surveyed.append(_seconds(_survey, engine, layers, datasets, dataset))
    return {
        "images": len(files),
        "layers": len(layers),
        "bare_s": round(statistics.median(bare), 2),
        "survey_s": round(statistics.median(surveyed), 2),
        "ratio": round(statistics.median(mine / other for mine, other in zip(surveyed, bare, strict=True)), 3),
    }


@torch.no_grad()
def _bare(network: LoadedNetwork, layer: str, pixels: Tensor) -> None:
    for start in range(0, len(pixels), SURVEY_BATCH):
        shown = network.space.from_bytes(pixels[start : start + SURVEY_BATCH])
        network.layer(layer).features(shown.contiguous(memory_format=torch.channels_last)).sum().item()


def _survey(engine: Engine, layers: list[str], datasets: DataSets, dataset: str) -> None:
    surveys, survey_id = Surveys(datasets.store, datasets), new_id()
    parts = cut(datasets.images(dataset, ""))
    facts = SurveyFacts(
        owner="",
        created_at=collection.now(),
        dataset=dataset,
        dataset_name="photographs",
        model=MODEL,
        layers=layers,
        images=sum(map(len, parts)),
    )
    surveys.create(survey_id, facts, parts)
    request = ExplainRequest(
        model=MODEL, layer=layers[-1], layers=layers, kernels=[], methods=["survey"], images=["0" * 64] * len(parts)
    )
    items = [item for part in plan(request, len(parts)) for item in part]
    claim = Claim(f"{survey_id}:0", survey_id, "", 1, items, request, 0.0, "bulk", "")
    run = Surveying(claim, engine, Account(urgent=False), surveys, Decoder(MAX_PIXELS), _at_once, lambda: True)
    for item in items:
        run.part(item)


def _at_once(action: Callable[..., Any], *arguments: Any) -> Any:
    return action(*arguments)


def _seconds(run: Callable[..., Any], *what: Any) -> float:
    begin = time.perf_counter()
    run(*what)
    return time.perf_counter() - begin


def _pixels(network: LoadedNetwork, files: list[bytes]) -> Tensor:
    decoded = (images.resized(images.decode(data, MAX_PIXELS), network.frame) for data in files)
    return tensor(*map(np.asarray, decoded))


def _files(folder: Path | None, count: int) -> list[bytes]:
    """JPEG files of photographs or drawn scenes, at several shifts."""
    found = (
        sorted(file for file in folder.iterdir() if file.suffix.lower() in (".jpeg", ".jpg", ".png")) if folder else []
    )
    shown = [images.decode(file.read_bytes(), MAX_PIXELS) for file in found[:PHOTOGRAPHS]]
    shown = shown or [scene(seed, 400).image for seed in range(PHOTOGRAPHS)]
    files = []
    for number in range(count):
        file = BytesIO()
        pixels = np.asarray(shown[number % len(shown)].convert("RGB"))
        Image.fromarray(np.roll(pixels, number // len(shown), axis=1)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def main() -> int:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights-dir", type=Path, help="the complete VGG-16")
    parser.add_argument("--images-dir", type=Path, help="photographs")
    parser.add_argument("--images", type=int, default=1000, metavar="N")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto", help="`cpu`, `cuda`; default: a card if there is one")
    parser.add_argument("--quick", action="store_true", help="96 images, two rounds")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.images, options.rounds = 96, 2
    reuse_memory()
    with TemporaryDirectory() as folder:
        weights = options.weights_dir or vgg16_file(Path(folder)).parent
        networks = Networks(weights, choose(options.device), download=False)
        engine = Engine(TorchDevice(networks))
        try:
            files = _files(options.images_dir, options.images)
            report = measured(engine, networks.get(MODEL), files, options.rounds, Path(folder) / "store")
        finally:
            engine.close()
    print(json.dumps(report, indent=1) if options.json else "\n".join(f"{name}: {it}" for name, it in report.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
