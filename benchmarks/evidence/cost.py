"""What an evaluation costs with the term."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.evidence.bench import MODEL
from benchmarks.readings import tensor
from worker.engine.answers import pose
from worker.engine.pace import pace
from worker.engine.questions import Picture, Question
from worker.methods.suppression import Batch, FastSolver
from worker.networks.layer import LoadedNetwork

TIMED = 12


def cost(network: LoadedNetwork, layer: str, picture: Picture) -> float:
    """Time of an evaluation with the term over one without, the median of both in turns."""
    chosen, kernel = network.layer(layer), _loudest(network, layer, picture)
    (posed,) = pose([Question(MODEL, layer, picture, kernel, 1.0, 1.0)], chosen)
    cut, watched = chosen.cut, chosen.watched
    precision = pace(cut, network.frame, network.space.mean.device).precision
    one = torch.ones(1)
    asked = posed.problem.watching([watched.bounds(posed.problem.image, precision)], one, one * torch.inf)
    batches: list[Batch[Any]] = [Batch(cut, precision), Batch(watched, precision)]
    for batch, problem in zip(batches, (posed.problem, asked.only_removing(torch.tensor([True]))), strict=True):
        batch.add(problem, FastSolver.of(network.space, "standard"))
    steps: list[Callable[[], object]] = [batch.step for batch in batches]
    times: list[list[float]] = [[], []]
    for _ in range(TIMED):
        for step, taken in zip(steps, times, strict=True):
            begin = time.perf_counter()
            step()
            taken.append(time.perf_counter() - begin)
    plain, tapped = (statistics.median(taken[2:]) for taken in times)
    return tapped / plain


def _loudest(network: LoadedNetwork, layer: str, picture: Picture) -> int:
    with torch.no_grad():
        maps = network.layer(layer).features(network.space.from_bytes(tensor(picture)))
        return int(maps[0].mean(dim=(1, 2)).argmax())
