"""The curve of leakage against invention: γ × effort, iterates of the paper's procedure, and t·X."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.evidence.bench import METHODS, MODEL, Bench, Row, given, numbers
from benchmarks.readings import tensor
from shared import images
from worker.engine.questions import Answer, Question
from worker.networks.layer import LoadedNetwork

WEIGHTED: dict[str, dict[str, Any]] = {
    "paper": METHODS["paper"],
    **{f"γ = {gamma:g}": {"method": "evidence", "gamma": gamma} for gamma in (0.0, 0.3, 1.0, 3.0, 10.0)},
}
EFFORTS = ("quick", "standard", "thorough")
FADES_OF_EFFORTS = (0.1, 0.3, 0.5, 0.7, 0.9)
ITERATES = (300, 1000, 3000, 6000)  # evaluations of the paper's procedure


def efforts(bench: Bench, reference: Path, folder: Path) -> None:
    """The curve of leakage against invention: γ × effort, iterates of the paper's procedure, and t·X."""
    for problem in json.loads(reference.read_text())["problems"]:
        layer, kernel, file = problem["layer"], problem["kernel"], problem["image"]
        data = (folder / file).read_bytes()
        picture = np.asarray(images.resized(images.decode(data, 10**9), bench.network.frame))
        where = {"part": "efforts", "layer": layer, "image": file, "kernel": kernel}

        def keep(name: str, asked: Question, row: Row, answer: Answer, *, whose: Row = where) -> None:
            other = bench.engine.call(bench.other.read, asked.picture, answer.picture)
            bench.keep(_of_effort(whose, name), asked, whose | numbers(answer) | row | other, answer.picture)

        for effort in EFFORTS:
            asked = {
                f"{effort} {name}": Question(MODEL, layer, picture, kernel, 1.0, 1.0, effort=effort, **options)
                for name, options in WEIGHTED.items()
            }
            for name, answer in bench.asked(
                {name: one for name, one in asked.items() if bench.missing(_of_effort(where, name), one)}
            ):
                keep(name, asked[name], {"method": name.partition(" ")[2], "effort": effort}, answer)
        question = Question(MODEL, layer, picture, kernel, 1.0, 1.0)
        for count in ITERATES:
            x = reference.parent / f"{problem['name'].replace('/', '-')}-{count}.png"
            if x.exists() and bench.missing(_of_effort(where, f"procedure {count}"), question):
                picture_x = bench.network.space.from_bytes(tensor(np.asarray(Image.open(x))))[0]
                answer = bench.engine.call(given, bench.network, question, picture_x)
                keep(f"procedure {count}", question, {"method": "procedure", "evaluations": count}, answer)
        for t in FADES_OF_EFFORTS:
            if bench.missing(_of_effort(where, f"t·X {t:g}"), question):
                answer = bench.engine.call(_faded, bench.network, question, t)
                keep(f"t·X {t:g}", question, {"method": "t·X", "t": t}, answer)


def _of_effort(where: Row, name: str) -> str:
    return f"{where['layer']}/efforts/{where['image']}/{where['kernel']}/{name}"


def _faded(network: LoadedNetwork, question: Question, t: float) -> Answer:
    return given(network, question, t * network.space.from_bytes(tensor(question.picture))[0])
