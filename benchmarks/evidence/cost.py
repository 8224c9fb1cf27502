"""The cost of an evaluation with γ·L_e."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.evidence.bench import MODEL
from benchmarks.readings import tensor
from worker.engine.answers import pose
from worker.engine.questions import Picture, Question
from worker.engine.speed import measured_speed
from worker.methods.suppression import FastSolver, SolverBatch
from worker.networks.layer import LoadedNetwork

TIMED = 12


def cost(network: LoadedNetwork, layer: str, picture: Picture) -> float:
    """The median time of an evaluation with γ·L_e relative to one without, measured alternately."""
    chosen, kernel = network.layer(layer), _most_active(network, layer, picture)
    (posed,) = pose([Question(MODEL, layer, picture, kernel, 1.0, 1.0)], chosen)
    cut, tapped = chosen.cut, chosen.tapped
    precision = measured_speed(cut, network.frame, network.space.mean.device).precision
    one = torch.ones(1)
    asked = posed.problem.with_invention([tapped.bounds(posed.problem.image, precision)], one, one * torch.inf)
    batches: list[SolverBatch[Any]] = [SolverBatch(cut, precision), SolverBatch(tapped, precision)]
    for batch, problem in zip(batches, (posed.problem, asked.with_only_remove(torch.tensor([True]))), strict=True):
        batch.add(problem, FastSolver.of(network.space, "standard"))
    steps: list[Callable[[], object]] = [batch.step for batch in batches]
    times: list[list[float]] = [[], []]
    for _ in range(TIMED):
        for step, taken in zip(steps, times, strict=True):
            begin = time.perf_counter()
            step()
            taken.append(time.perf_counter() - begin)
    without, with_term = (statistics.median(taken[2:]) for taken in times)
    return with_term / without


def _most_active(network: LoadedNetwork, layer: str, picture: Picture) -> int:
    with torch.no_grad():
        maps = network.layer(layer).features(network.space.from_bytes(tensor(picture)))
        return int(maps[0].mean(dim=(1, 2)).argmax())
