"""How much slower an explanation is beside other busy programs: `python -m benchmarks.neighbours [--json] [--busy N]`.

One question on this machine's CPU: alone, beside N busy processes, and alone again. `--fixed` disables the engine's
adaptation of the number of threads (worker/engine/threads.py). Without `--weights-dir` VGG-16's weights are random.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from worker.networks.loaded import Networks

CASES = (("vgg16", "conv2_2"), ("vgg_mini", "conv2_2"))
ROUNDS = 3
SETTLE_SECONDS = 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights-dir", type=Path)
    parser.add_argument("--busy", type=int, default=1, help="number of busy processes")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--fixed", action="store_true", help="use all threads throughout")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    reuse_memory()
    with tempfile.TemporaryDirectory() as folder:
        networks = Networks(options.weights_dir or vgg16_file(Path(folder)).parent, torch.device("cpu"), download=False)
        rows = [measured(networks, model, layer, options) for model, layer in CASES]
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            beside = f"beside {row['busy']} {row['beside']:.2f} s ({row['ratio']:.2f}×)"
            print(f"{row['model']} {row['layer']}: alone {row['alone']:.2f} s, {beside}")
    return 0


def measured(networks: Networks, model: str, layer: str, options: argparse.Namespace) -> dict[str, Any]:
    """The median times alone and beside busy processes."""
    device = TorchDevice(networks)
    if options.fixed:
        device.threads.most = 1  # disables the adaptation
    engine = Engine(device)
    picture = np.asarray(scene(5, device.frame(model).width).image)
    kernel = engine.call(device.ranking, model, layer, picture)[0]
    question = Question(model, layer, picture, kernel, 1.0, 1.0, effort="quick")
    _seconds(engine, question)  # warm
    times = {"alone": [_seconds(engine, question) for _ in range(options.rounds)]}
    with busy(options.busy):
        times["beside"] = [_seconds(engine, question) for _ in range(options.rounds)]
    time.sleep(SETTLE_SECONDS)
    times["after"] = [_seconds(engine, question) for _ in range(options.rounds)]
    engine.close()
    alone, beside = (statistics.median(times[name]) for name in ("alone", "beside"))
    times_ = {"alone": alone, "beside": beside, "ratio": beside / alone, "times": times}
    return {"model": model, "layer": layer, "busy": options.busy, **times_}


def _seconds(engine: Engine, question: Question) -> float:
    begin = time.perf_counter()
    ((_, answer),) = engine.ask([question])
    if not isinstance(answer, Answer):
        raise answer
    return time.perf_counter() - begin


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Runs this many busy processes."""
    command = [sys.executable, "-c", "while True: pass"]
    programs = [subprocess.Popen(command) for _ in range(count)]
    time.sleep(SETTLE_SECONDS)
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


if __name__ == "__main__":
    sys.exit(main())
