"""What all parts of the benchmark share: the engine, the rows of the results, and the controls."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from benchmarks.readings import OtherNetwork
from worker.engine.answers import measured, pose
from worker.engine.engine import Engine
from worker.engine.questions import Answer, Picture, Question
from worker.methods.suppression import Solution
from worker.networks.layer import LoadedNetwork

Row = dict[str, Any]

MODEL = "vgg16"
LAYERS = ("conv2_2", "conv3_3", "conv4_3", "conv5_3")
METHODS: dict[str, dict[str, Any]] = {
    "paper": {"method": "suppression"},
    "evidence": {"method": "evidence"},
    "only_remove": {"method": "suppression", "only_remove": True},
    "guided_backprop": {"method": "guided_backprop"},
    "deconvnet": {"method": "deconvnet"},
    "lrp": {"method": "lrp"},
}
QUICK = "quick"
BOUND = 0.95  # the SSIM that is demanded in the rows "SSIM ≥ 0.95"
LONGER: dict[str, dict[str, Any]] = {  # at more than `quick`
    name + suffix: METHODS[name] | bound
    for name in ("paper", "evidence")
    for suffix, bound in (("", {}), (f", SSIM ≥ {BOUND}", {"target_ssim": BOUND}))
}
CONTROLS = ("X", "t·X", "masked X")
FADES = [step / 10 for step in range(1, 10)]
MEASURES = (
    "loss",
    "ssim",
    "leakage",
    "invention",
    "other_invention",
    "grid_energy",
    "grid_ssim",
    "deletion_auc",
    "deletion_random",
    "jpeg75_ssim",
    "blur_ssim",
    "noise_ssim",
    "shift_ssim",
    "other_rank",
    "discrimination",
    "consistency",
)


@dataclass
class Bench:
    """The state of a run."""

    engine: Engine
    network: LoadedNetwork
    layers: Sequence[str]
    other: OtherNetwork
    shown: dict[str, Picture]
    rows: dict[str, Row]  # by key
    file: Path
    pictures: Path
    effort: str = QUICK

    @property
    def key_suffix(self) -> str:
        """Behind the keys of a part, so that each effort has rows of its own."""
        return "" if self.effort == QUICK else f"/{self.effort}"

    def missing(self, key: str, question: Question) -> bool:
        """Whether a row must be computed: there is none, or its fingerprint is not this question's."""
        row = self.rows.get(key)
        return row is None or row["fingerprint"] != self.fingerprint(question)

    def fingerprint(self, question: Question) -> str:
        """A digest of pixels, weights, parameters and the solver's version."""
        return question.fingerprint(self.network.weights, self.engine.device.version)[:16]

    def keep(self, key: str, question: Question, row: Row, picture: Picture | None = None) -> None:
        """Append a row to the file, and save its picture."""
        if picture is not None:
            Image.fromarray(picture).save(self.pictures / f"{key.replace('/', '-')}.png")
        self.rows[key] = {"key": key, "fingerprint": self.fingerprint(question), **row}
        with self.file.open("a") as lines:
            lines.write(json.dumps(self.rows[key]) + "\n")
        line = " ".join(f"{name} {row[name]:.3f}" for name in MEASURES[:6] if isinstance(row.get(name), float))
        sys.stderr.write(f"{key}: {line}\n")

    def asked(self, questions: dict[str, Question]) -> Iterator[tuple[str, Answer]]:
        """(name, answer) in the order of completion, without failed questions."""
        names = list(questions)
        for number, answer in self.engine.ask(list(questions.values())):
            if isinstance(answer, Answer):
                yield names[number], answer

    def ranking(self, layer: str, picture: Picture) -> list[int]:
        """The active kernels, most active first."""
        return self.engine.call(self.engine.device.ranking, MODEL, layer, picture)


def numbers(answer: Answer) -> Row:
    """The numbers of an answer."""
    metrics, losses = answer.metrics, answer.losses
    return {
        "loss": losses.total,
        "preservation": losses.preservation,
        "suppression": losses.suppression,
        "regularization": losses.regularization,
        "ssim": metrics.ssim,
        "leakage": metrics.leakage,
        "invention": metrics.invention,
        "invention_by_layer": {name: round(value, 4) for name, value in (metrics.invention_by_layer or {}).items()},
        "gamma": answer.gamma,
        "iterations": answer.iterations,
        "seconds": round(answer.seconds, 2),
    }


def controls(network: LoadedNetwork, question: Question) -> dict[str, Answer]:
    """The controls: X itself, t·X with the lowest loss, and X masked by its upsampled feature map, measured as X̂."""
    (posed,) = pose([question], network.layer(question.layer))
    image, target = posed.problem.image[0], posed.problem.target
    fades = [given(network, question, t * image) for t in FADES]
    mask = interpolate((target / target.amax())[:, None], image.shape[1:], mode="bilinear", align_corners=False)[0]
    return {
        "X": given(network, question, image),
        "t·X": min(fades, key=lambda answer: answer.losses.total),
        "masked X": given(network, question, mask * image),
    }


def given(network: LoadedNetwork, question: Question, x: Tensor) -> Answer:
    """The measurements of a given X̂."""
    layer = network.layer(question.layer)
    (posed,) = pose([question], layer)
    # As a baseline's X̂, which is not replaced by X if that has the lower loss.
    shown = replace(question, method="guided_backprop")
    (answer,) = measured(layer, [(shown, posed, Solution(x, nan, 1, 0.0, "converged", "float32", []))])
    assert isinstance(answer, Answer)
    return answer
