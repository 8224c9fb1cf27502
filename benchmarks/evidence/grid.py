"""Four photographs in one image: whether X̂ is in the quadrant that drives the kernel."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from benchmarks.evidence.bench import CONTROLS, METHODS, MODEL, Bench, controls
from benchmarks.readings import tensor
from worker.engine.questions import Picture, Question
from worker.networks.layer import LoadedNetwork

GRID = 16  # kernels of the grid
ALONE, WITHOUT = 0.7, 0.25  # a quadrant drives a kernel: fractions of ΣF_i with this quadrant only, and without it


def grid(bench: Bench, layer: str = "conv5_3") -> None:
    """The most active kernels that a single one of four photographs drives."""
    four = list(bench.shown.values())[:4]
    side = bench.network.frame.width // 2
    small = [np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BILINEAR)) for one in four]
    picture = np.vstack([np.hstack(small[:2]), np.hstack(small[2:])])
    for kernel, quadrant in bench.engine.call(driven, bench.network, layer, picture)[:GRID]:
        questions = {
            name: Question(MODEL, layer, picture, kernel, 1.0, 1.0, effort="quick", **METHODS[name]) for name in METHODS
        }
        prefix, question = f"{layer}/grid/{kernel}", Question(MODEL, layer, picture, kernel, 1.0, 1.0)
        found = dict(bench.asked({n: one for n, one in questions.items() if bench.missing(f"{prefix}/{n}", one)}))
        if any(bench.missing(f"{prefix}/{name}", question) for name in CONTROLS):
            found |= bench.engine.call(controls, bench.network, question)
        for name, answer in found.items():
            deviation = bench.network.space.weighed(tensor(answer.picture))[0].abs().numpy()
            own = {"grid_energy": deviation**2, "grid_share": deviation}
            fractions = {
                n: float(_quadrant(d.sum(0), quadrant).sum() / max(float(d.sum()), 1e-12)) for n, d in own.items()
            }
            row = {"part": "grid", "layer": layer, "kernel": kernel, "quadrant": quadrant, "method": name}
            row |= {**fractions, "grid_ssim": answer.metrics.ssim, "seconds": round(answer.seconds, 2)}
            bench.keep(f"{prefix}/{name}", questions.get(name, question), row, answer.picture)


def driven(network: LoadedNetwork, layer: str, picture: Picture) -> list[tuple[int, int]]:
    """(kernel, quadrant) where ΣF_i is at least 70 % with that quadrant alone, and at most 25 % without it.

    The kernel with the highest ΣF_i first.
    """
    image = network.space.from_bytes(tensor(picture))
    alone, without = [], []
    for quadrant in range(4):
        mask = np.zeros(picture.shape[:2], np.float32)
        _quadrant(mask, quadrant)[:] = 1
        alone.append(image * torch.from_numpy(mask))
        without.append(image * torch.from_numpy(1 - mask))
    with torch.no_grad():
        sums = network.layer(layer).features(torch.cat([image, *alone, *without])).sum(dim=(2, 3))  # (9, C)
    whole, kept, left = sums[0].clamp_min(1e-9), sums[1:5], sums[5:]
    rows = ((kept >= ALONE * whole) & (left <= WITHOUT * whole) & (sums[0] > 0)).nonzero().tolist()
    return sorted(((kernel, quadrant) for quadrant, kernel in rows), key=lambda pair: -float(sums[0, pair[0]]))


def _quadrant(maps: np.ndarray, number: int) -> np.ndarray:
    side = maps.shape[0] // 2
    top, left = number // 2 * side, number % 2 * side
    return maps[top : top + side, left : left + side]
