"""Do the methods keep what drives a kernel, and nothing else? `python -m benchmarks.ground_truth [--json] [--quick]`.

The ground truth of the planted network (`benchmarks/planted.py`) is exact for each pixel and channel. A kernel of
`vgg_mini` is labelled with a colour or texture by intervention (only that is changed in a drawn figure, and the
response measured, `benchmarks/labels.py`), and the truth T is the pixels of the figures that have it. Each delivered
picture is scored without a threshold by average precision (the area under the precision-recall curve), mass accuracy
(the fraction of |X̂| on true pixels) and rank accuracy (the fraction of the |T| pixels with the largest |X̂| that is
true); and by precision, recall and F1 of the values that it keeps.

Kernels of `vgg_mini` respond to the mean colour itself, so that X̂ must contain patterns that suppress this. Therefore a
second network of this architecture without biases, which does not respond to a blank picture, is trained here in some
minutes and saved in `--unbiased`.

The thresholds were fixed before any scoring: a value is kept if it differs from the mean colour by a tenth of the
picture's largest deviation; it drives a planted kernel if ΣF_i decreases without it by a tenth of the largest decrease;
a label requires twice the response to every alternative, and to the background without the figure.

Finally, the concordance of the scores consistency and discrimination (`api/pictures/consistency.py`) with the truth on
the planted kernels: the fraction of pairs with different truths that are ordered correctly.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from api.pictures.consistency import Description, consistency, description, discrimination
from benchmarks import planted
from benchmarks.labels import MINI_SIZE, labels, shown
from benchmarks.unbiased import UnbiasedNetworks
from shared.drawings import scene
from worker.engine.device import TorchDevice
from worker.engine.engine import Engine
from worker.engine.memory import reuse_memory
from worker.engine.questions import Answer, Picture, Question
from worker.methods.suppression import EFFORTS, PixelSpace
from worker.networks.loaded import Networks

Mask = NDArray[np.bool_]

METHODS: dict[str, dict[str, Any]] = {
    "evidence": {"method": "evidence"},
    "guided_backprop": {"method": "guided_backprop"},
    "deconvnet": {"method": "deconvnet"},
    "lrp": {"method": "lrp"},
    "suppression": {"method": "suppression"},
    "suppression, only removing": {"method": "suppression", "only_remove": True},
}
OPTIMIZED = ("evidence", "suppression", "suppression, only removing")
SCORES = ("average_precision", "mass_accuracy", "rank_accuracy", "precision", "recall", "f1")
KEPT = 0.1  # of the picture's largest deviation from the mean colour
MINI_LAYERS = ("conv1_2", "conv2_2", "conv3_2", "conv4_2")


def main() -> int:
    """Score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--effort", choices=list(EFFORTS), default="quick")
    parser.add_argument("--quick", action="store_true", help="few pictures and kernels")
    parser.add_argument("--unbiased", type=Path, default=Path("evidence/unbiased.safetensors"), metavar="FILE")
    options = parser.parse_args()
    reuse_memory()
    logging.getLogger("worker").setLevel(logging.WARNING)
    (count, most), how = (3, 2) if options.quick else (8, 6), {"effort": options.effort}
    mini = Networks(Path("/nonexistent"), torch.device("cpu"), download=False)
    free = UnbiasedNetworks(options.unbiased)
    rows = [*planted_rows(count, how)]
    rows += [row for networks in (mini, free) for row in mini_rows(networks, count, most, how)]
    report = {"kept": KEPT, "rows": rows, "summary": summary(rows), "ranking": ranking(2 * count, how)}
    print(json.dumps(report, indent=1) if options.json else markdown(report))
    return 0


def planted_rows(count: int, how: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of all kernels of the planted network, on the pictures on which they are active."""
    engine = Engine(TorchDevice(planted.PlantedNetworks()))
    space = planted.PlantedNetworks().planted.space
    for layer, names in planted.LAYERS.items():
        cut = planted.PlantedNetworks().planted.layer(layer).cut
        for seed in range(count):
            picture = planted.picture(seed)
            image = space.from_bytes(_tensor(picture))
            for kernel in engine.call(engine.device.ranking, "planted", layer, picture):
                truth = planted.drivers(cut, image, kernel).numpy()
                where = {"network": "planted", "layer": layer, "kernel": kernel, "what": names[kernel], "picture": seed}
                questions = _questions("planted", layer, picture, kernel, how)
                yield from _scored(engine, questions, where, truth, space)
    engine.close()


def mini_rows(networks: Networks, count: int, most: int, how: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of labelled kernels of `vgg_mini`, or of its architecture, on drawn scenes with their labels."""
    engine = Engine(TorchDevice(networks))
    network = networks.get("vgg_mini")
    space = network.space
    for layer in MINI_LAYERS:
        for label in sorted(labels(engine, layer), key=lambda label: -label.ratio)[:most]:
            for seed in range(count):
                drawing = scene(seed, MINI_SIZE)
                truth = shown(drawing, label)
                if not truth.any():
                    continue
                picture = np.asarray(drawing.image)
                where = {"network": network.name, "layer": layer, "kernel": label.kernel, "what": label.text}
                questions = _questions("vgg_mini", layer, picture, label.kernel, how)
                yield from _scored(engine, questions, {**where, "picture": seed}, truth, space)
    engine.close()


def _questions(model: str, layer: str, picture: Picture, kernel: int, how: dict[str, Any]) -> list[Question]:
    return [
        Question(model, layer, picture, kernel, 1.0, 1.0, **options, **(how if name in OPTIMIZED else {}))
        for name, options in METHODS.items()
    ]


def _scored(
    engine: Engine, questions: list[Question], where: dict[str, Any], truth: Mask, space: PixelSpace
) -> Iterator[dict[str, Any]]:
    for number, answer in engine.ask(questions):
        if isinstance(answer, Answer):
            deviation = space.weighed(_tensor(answer.picture)).abs()[0].numpy()
            found = score(deviation if truth.ndim == 3 else deviation.max(axis=0), truth)
            row = {**where, "method": list(METHODS)[number], **found, "ssim": answer.metrics.ssim}
            sys.stderr.write(
                f"{row['network']} {row['layer']} {row['what']}, picture {row['picture']}, {row['method']}: "
                f"average precision {row['average_precision']:.2f}\n"
            )
            yield row


def score(deviation: NDArray[Any], truth: Mask) -> dict[str, float]:
    """The scores of a picture's deviation from the mean colour against the truth, of the same shape."""
    kept = deviation >= KEPT * deviation.max() if deviation.any() else np.zeros_like(truth)
    hits = float((kept & truth).sum())
    precision = hits / kept.sum() if kept.any() else 0.0
    recall = hits / truth.sum()
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    order = np.random.default_rng(0).permutation(truth.size)  # breaks ties
    ranked = truth.ravel()[order[np.argsort(-deviation.ravel()[order], kind="stable")]]
    at = np.cumsum(ranked) / np.arange(1, ranked.size + 1)
    return {
        "average_precision": float(at[ranked].mean()),
        "mass_accuracy": float(deviation[truth].sum() / max(float(deviation.sum()), 1e-12)),
        "rank_accuracy": float(ranked[: int(truth.sum())].mean()),
        "precision": precision,
        "recall": recall,
        "f1": f1,
    }


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each layer and method, the means over kernels and pictures."""
    found = []
    for network, layer, method in dict.fromkeys((row["network"], row["layer"], row["method"]) for row in rows):
        own = [row for row in rows if (row["network"], row["layer"], row["method"]) == (network, layer, method)]
        means = {name: fmean(row[name] for row in own) for name in (*SCORES, "ssim")}
        kernels = len({row["kernel"] for row in own})
        found.append(
            {"network": network, "layer": layer, "method": method, "kernels": kernels, "cells": len(own)} | means
        )
    order = {method: place for place, method in enumerate(METHODS)}
    return sorted(found, key=lambda one: (one["network"], one["layer"], order[one["method"]]))


def ranking(count: int, how: dict[str, Any]) -> dict[str, Any]:
    """Consistency against the number of a kernel's alternatives, discrimination against the overlap of two kernels."""
    found = described("conv2", count, **how)
    scores = {kernel: value for kernel, one in found.items() if (value := consistency(one)) is not None}
    truth = planted.alternatives("conv2")
    pairs = [
        (score_, -planted.overlap("conv2", one, other))
        for one, other in combinations(scores, 2)
        if (score_ := discrimination(found[one], [found[other]])) is not None
    ]
    return {
        "kernels": [
            {"what": planted.LAYERS["conv2"][kernel], "alternatives": truth[kernel], "consistency": value}
            for kernel, value in sorted(scores.items(), key=lambda item: -item[1])
        ],
        "consistency_concordance": concordance([(value, -truth[kernel]) for kernel, value in scores.items()]),
        "discrimination_concordance": concordance(pairs),
    }


def described(layer: str, count: int, **how: Any) -> dict[int, dict[int, Description]]:
    """Descriptions of X̂ of each active kernel of the planted network, by kernel and picture."""
    engine = Engine(TorchDevice(planted.PlantedNetworks()))
    pictures = {seed: planted.picture(seed) for seed in range(count)}
    asked = [
        (seed, Question("planted", layer, picture, kernel, 1.0, 1.0, **how))
        for seed, picture in pictures.items()
        for kernel in engine.call(engine.device.ranking, "planted", layer, picture)
    ]
    found: dict[int, dict[int, Description]] = {}
    for number, answer in engine.ask([question for _, question in asked]):
        seed, question = asked[number]
        if isinstance(answer, Answer) and (one := description(answer.x, 1)) is not None:
            found.setdefault(question.kernel, {})[seed] = one
    engine.close()
    return {kernel: dict(sorted(found[kernel].items())) for kernel in sorted(found)}


def concordance(pairs: Sequence[tuple[float, float]]) -> float:
    """The fraction of pairs with different truths (second) whose scores (first) have the same order; ties: half."""
    wins = [
        0.5 if one[0] == other[0] else float((one[0] > other[0]) == (one[1] > other[1]))
        for one, other in combinations(pairs, 2)
        if one[1] != other[1]
    ]
    return fmean(wins)


def markdown(report: dict[str, Any]) -> str:
    """The summary as a table, and the ranking."""
    heads = " | ".join(name.replace("_", " ") for name in (*SCORES, "ssim"))
    lines = [f"| network, layer | method | kernels | {heads} |", "|---" * (len(SCORES) + 4) + "|"]
    for one in report["summary"]:
        numbers = " | ".join(f"{one[name]:.2f}" for name in (*SCORES, "ssim"))
        lines.append(f"| {one['network']} {one['layer']} | {one['method']} | {one['kernels']} | {numbers} |")
    lines += ["", "| planted kernel | things that it responds to | consistency |", "|---|---|---|"]
    for one in report["ranking"]["kernels"]:
        lines.append(f"| {one['what']} | {one['alternatives']} | {one['consistency']:.2f} |")
    ranks = report["ranking"]
    lines.append(
        f"\nin the right order: {ranks['consistency_concordance']:.0%} of the pairs of kernels by consistency, "
        f"{ranks['discrimination_concordance']:.0%} of the pairs of pairs by discrimination"
    )
    return "\n".join(lines)


def _tensor(picture: Picture) -> torch.Tensor:
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]


if __name__ == "__main__":
    sys.exit(main())
