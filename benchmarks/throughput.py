"""Explanations per second: `python -m benchmarks.throughput [--json] [--quick] [--device cuda]`.

For each layer: one question after another, then all at once in batches of at most 1, 2, 4, … and the engine's choice.
Each explanation is one descent of `--evals` evaluations (100, as in `effort=quick`), including the measurement of the
delivered picture. VGG-16 has random weights, which do not affect the speed.

`gain` is relative to one after another in the same run; `loss_difference` is the largest relative difference of a final
loss from that of the same question alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.random_weights import vgg16_file
from shared.drawings import scene
from worker.engine.device import TorchDevice
from worker.engine.engine import Engine
from worker.engine.memory import reuse_memory
from worker.engine.questions import Answer, Question
from worker.engine.speed import measured_speed
from worker.networks.loaded import Networks

LAYERS = (("vgg_mini", "conv3_1"), ("vgg16", "conv3_3"), ("vgg16", "conv5_3"))
CPU_SIZES = (1, 2, 4, 8, 16)
GPU_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def questions(engine: Engine, model: str, layer: str, count: int, evaluations: int) -> list[Question]:
    """Different kernels on a few pictures."""
    size = engine.device.frame(model).width
    asked: list[Question] = []
    for seed in range(4):
        picture = np.asarray(scene(seed, size).image)
        ranking = engine.call(engine.device.ranking, model, layer, picture)
        kernels = ranking[: -(-count // 4)]
        asked += [Question(model, layer, picture, k, 1.0, 1.0, "fast", "quick", evaluations) for k in kernels]
    return asked[:count]


def measure(engine: Engine, asked: list[Question], *, one_by_one: bool) -> tuple[float, list[float]]:
    """The seconds, and each question's final loss."""
    begin = time.perf_counter()
    rounds = [[question] for question in asked] if one_by_one else [asked]
    losses: list[float] = []
    for part in rounds:
        answers = dict(engine.ask(part))
        for number in range(len(part)):
            answer = answers[number]
            if not isinstance(answer, Answer):
                raise answer
            losses.append(answer.losses.total)
    return time.perf_counter() - begin, losses


def runs(device: TorchDevice, model: str, layer: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for one after another, one for each batch size, and one for the engine's choice."""
    engine = Engine(device)
    cut = device.networks.get(model).layer(layer).cut
    speed = measured_speed(cut, device.frame(model), device.networks.device)
    cuda = device.networks.device.type == "cuda"
    sizes = [size for size in (GPU_SIZES if cuda else CPU_SIZES) if size <= max(1, min(options.most, 2 * speed.batch))]
    few = questions(engine, model, layer, 4 if not cuda else 8, options.evals)
    device.most = 1
    measure(engine, few[:1], one_by_one=True)  # warm
    seconds, alone = measure(engine, few, one_by_one=True)
    base = len(few) / seconds
    yield {"model": model, "layer": layer, "batch": "one by one", "explanations": len(few), "per_second": base}
    for size in [*sizes, None]:
        device.most = size
        count = max(len(few), 2 * (size or speed.batch) if not cuda else 4 * (size or speed.batch))
        asked = [*few, *questions(engine, model, layer, count, options.evals)[len(few) :]]
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds, losses = measure(engine, asked, one_by_one=False)
        rate = len(asked) / seconds
        differences = [abs(a - b) / b for a, b in zip(losses, alone, strict=False)]
        yield {
            "model": model,
            "layer": layer,
            "batch": size or "engine's choice",
            "explanations": len(asked),
            "per_second": rate,
            "gain": rate / base,
            "loss_difference": max(differences),
            "loss_difference_median": statistics.median(differences),
            "device_memory_mb": torch.cuda.max_memory_allocated() / 1e6 if cuda else speed.bytes * (size or 1) / 1e6,
        }
    engine.close()


def main() -> int:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="20 evaluations per explanation, batches up to 4")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--evals", type=int, default=100)
    parser.add_argument("--most", type=int, default=256, help="largest batch")
    parser.add_argument("--layer", action="append", help="`vgg16/conv3_3`; may be repeated")
    options = parser.parse_args()
    if options.quick:
        options.evals, options.most = 20, 4
    reuse_memory()
    layers = [tuple(name.split("/")) for name in options.layer] if options.layer else LAYERS
    torch_device = torch.device(options.device)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        vgg16_file(Path(folder))
        device = TorchDevice(Networks(Path(folder), torch_device, download=False))
        for model, layer in layers:
            for line in runs(device, model, layer, options):
                found.append(line)
                if not options.json:
                    print(_line(line), flush=True)
    if options.json:
        print(json.dumps({"machine": _machine(device), "evals": options.evals, "runs": found}, indent=1))
    return 0


def _line(run: dict[str, Any]) -> str:
    text = f"{run['model']:9}{run['layer']:9}{run['batch']!s:>16} {run['per_second']:8.3f}/s"
    if "gain" not in run:
        return text
    difference = f"loss ±{100 * run['loss_difference']:.2f} %"
    return f"{text} {run['gain']:6.2f}× {difference:>16} {run['device_memory_mb']:9.0f} MB"


def _machine(device: TorchDevice) -> dict[str, Any]:
    return {
        "device": device.name,
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }


if __name__ == "__main__":
    sys.exit(main())
