"""Does X̂ show what is in X? `python -m benchmarks.evidence --weights-dir W --other-weights-dir O --images-dir I`.

On VGG-16 conv2_2, conv3_3, conv4_3 and conv5_3, the third most active kernel of each of 12 photographs:

methods    the paper's method, evidence, the paper's method with only_remove, guided backpropagation, deconvolution,
           LRP, and three controls: X itself, t·X with the t of the lowest loss, X masked by the upsampled F_i
readings   of each delivered picture: the loss, SSIM, leakage, invention; invention in SqueezeNet 1.1, which is never
           optimised; deletion; SSIM after small changes of the picture
pairs      discrimination (api/consistency.py): three kernels on three photographs
grid       four photographs in one image: the share of X̂² in the one quadrant that drives the kernel; the most active
           16 kernels of those that one quadrant drives (there are 167 of them, an hour and a half)
efforts    `--efforts`, more than an hour: γ × effort on the problems of `--reference` (docs/evidence/deep.json), and
           the paper's own procedure on its way, from the pictures beside that file
cost       ms of an evaluation with the term over one without

Each row is kept in `--rows` as soon as it is there: the same command goes on where it was interrupted. `--quick` takes
two photographs a layer. `--plot FILE` draws images × methods there, and beside it the curve of `--efforts`.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from api.consistency import consistency, description, discrimination
from benchmarks import evidence_plots as plots
from benchmarks.figures import shown as photographs
from benchmarks.readings import OtherEye, deletion, small_changes, strength, tensor
from benchmarks.table1 import pictures, read
from shared import catalogue, images
from worker.answers import measured, pose
from worker.device import TorchDevice
from worker.engine import Engine
from worker.memory import keep_memory
from worker.networks import LoadedNetwork, Networks
from worker.pace import pace
from worker.questions import Answer, Picture, Question
from worker.suppression import Batch, FastSolver, Solution

Row = dict[str, Any]

MODEL = "vgg16"
LAYERS = ("conv2_2", "conv3_3", "conv4_3", "conv5_3")
IMAGES, RANK = 12, 2  # photographs of a layer; the third most active kernel
METHODS: dict[str, dict[str, Any]] = {
    "paper": {"method": "suppression"},
    "evidence": {"method": "evidence"},
    "only_remove": {"method": "suppression", "only_remove": True},
    "guided_backprop": {"method": "guided_backprop"},
    "deconvnet": {"method": "deconvnet"},
    "lrp": {"method": "lrp"},
}
CONTROLS = ("X", "t·X", "masked X")
FADES = [step / 10 for step in range(1, 10)]
PAIRS = 3  # kernels, and photographs, of a layer
GRID = 16  # kernels of the grid
ALONE, WITHOUT = 0.7, 0.25  # a quadrant drives a kernel: ΣF_i with nothing else, and without it, over all of it
WEIGHED: dict[str, dict[str, Any]] = {
    "paper": METHODS["paper"],
    **{f"γ = {gamma:g}": {"method": "evidence", "gamma": gamma} for gamma in (0.0, 0.3, 1.0, 3.0, 10.0)},
}
EFFORTS = ("quick", "standard", "thorough")
FADES_OF_EFFORTS = (0.1, 0.3, 0.5, 0.7, 0.9)
ON_THE_WAY = (300, 1000, 3000, 6000)  # evaluations of the paper's procedure
TIMED = 12
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
    """What all parts share."""

    engine: Engine
    network: LoadedNetwork
    other: OtherEye
    shown: dict[str, Picture]
    rows: dict[str, Row]  # by key
    file: Path
    pictures: Path

    def missing(self, key: str, question: Question) -> bool:
        """Whether a row is still to be made: there is none, or it is of other work than this question's."""
        row = self.rows.get(key)
        return row is None or row["fingerprint"] != self.fingerprint(question)

    def fingerprint(self, question: Question) -> str:
        """Of pixels, weights, parameters and the solver's version."""
        return question.fingerprint(self.network.weights, self.engine.device.version)[:16]

    def keep(self, key: str, question: Question, row: Row, picture: Picture | None = None) -> None:
        """A row, at once; its picture for `--plot` and for people."""
        if picture is not None:
            Image.fromarray(picture).save(self.pictures / f"{key.replace('/', '-')}.png")
        self.rows[key] = {"key": key, "fingerprint": self.fingerprint(question), **row}
        with self.file.open("a") as lines:
            lines.write(json.dumps(self.rows[key]) + "\n")
        told = " ".join(f"{name} {row[name]:.3f}" for name in MEASURES[:6] if isinstance(row.get(name), float))
        sys.stderr.write(f"{key}: {told}\n")

    def asked(self, questions: dict[str, Question]) -> dict[str, Answer]:
        """The answers by name; a kernel that has none is left out."""
        names = list(questions)
        return {
            names[number]: answer
            for number, answer in self.engine.ask(list(questions.values()))
            if isinstance(answer, Answer)
        }

    def ranking(self, layer: str, picture: Picture) -> list[int]:
        """The active kernels, the most active first."""
        return self.engine.call(self.engine.device.ranking, MODEL, layer, picture)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what is not there yet, then sum up."""
    options = _options(arguments)
    keep_memory()
    logging.getLogger("worker").setLevel(logging.WARNING)
    networks = Networks(options.weights_dir, torch.device("cpu"), download=False)
    network = networks.get(MODEL)
    options.rows.parent.mkdir(parents=True, exist_ok=True)
    options.pictures.mkdir(parents=True, exist_ok=True)
    shown = pictures(options.images_dir, IMAGES, network.input_size) if options.images_dir else shipped()
    known = {row["key"]: row for row in read(options.rows)}
    engine = Engine(TorchDevice(networks))
    bench = Bench(engine, network, OtherEye(options.other_weights_dir), shown, known, options.rows, options.pictures)
    try:
        cost = {layer: engine.call(_cost, network, layer, next(iter(shown.values()))) for layer in LAYERS}
        _methods(bench, 2 if options.quick else IMAGES)
        if not options.quick:
            _pairs(bench)
            _grid(bench)
        if options.efforts:
            _efforts(bench, options.reference, options.images_dir)
    except KeyboardInterrupt:
        sys.stderr.write(f"\ninterrupted; the same command goes on from what is in {options.rows}\n")
        return 130
    finally:
        engine.close()
    rows = list(bench.rows.values())
    if options.plot:
        plots.mosaic(rows, shown, options.pictures, options.plot)
        if any(row["part"] == "efforts" for row in rows):
            plots.curve(rows, options.plot.with_stem(f"{options.plot.stem}-efforts"))
    report = {"rows": rows, "summary": summary(rows), "cost": cost}
    print(json.dumps(report, indent=1) if options.json else markdown(report))
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights-dir", type=Path, required=True, help="the complete VGG-16")
    parser.add_argument("--images-dir", type=Path, help="photographs; four that scikit-image ships unless given")
    parser.add_argument("--other-weights-dir", type=Path, required=True, help="SqueezeNet 1.1")
    parser.add_argument("--reference", type=Path, metavar="FILE", help="deep.json, with pictures beside it")
    parser.add_argument("--efforts", action="store_true", help="the curve of leakage against invention, too")
    parser.add_argument("--quick", action="store_true", help="two photographs a layer; no pairs, no grid")
    parser.add_argument("--rows", type=Path, default=Path("docs/evidence/evidence.jsonl"))
    parser.add_argument("--pictures", type=Path, default=Path("evidence/pictures"))
    parser.add_argument("--plot", type=Path, metavar="FILE", help="as evidence.png")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.efforts and not (options.reference and options.images_dir):
        parser.error("--efforts needs --reference, whose problems it takes, and --images-dir with their photographs")
    return options


def shipped() -> dict[str, Picture]:
    """By name: the photographs that `benchmarks.figures` draws on."""
    names = ("cat", "astronaut", "coffee", "rocket")
    return {name: np.asarray(Image.open(BytesIO(file))) for name, file in zip(names, photographs(None), strict=True)}


def _methods(bench: Bench, count: int) -> None:
    """The methods and the controls on `count` photographs of each layer."""
    for image, picture in list(bench.shown.items())[:count]:
        for layer in LAYERS:
            kernel = bench.ranking(layer, picture)[RANK]
            prefix = f"{layer}/{image}/{kernel}"
            questions = {
                name: Question(MODEL, layer, picture, kernel, 1.0, 1.0, effort="quick", **options)
                for name, options in METHODS.items()
            }
            found = bench.asked({n: one for n, one in questions.items() if bench.missing(f"{prefix}/{n}", one)})
            question = Question(MODEL, layer, picture, kernel, 1.0, 1.0)
            if any(bench.missing(f"{prefix}/{name}", question) for name in CONTROLS):
                found |= bench.engine.call(controls, bench.network, question)
            where = {"part": "methods", "layer": layer, "image": image, "kernel": kernel}
            if found:
                chance = bench.engine.call(deletion, bench.network, layer, kernel, picture, None)
                where |= {"deletion_random": chance}
            for name, answer in found.items():
                row = where | {"method": name} | numbers(answer) | _readings(bench, layer, kernel, picture, answer)
                bench.keep(f"{prefix}/{name}", questions.get(name, question), row, answer.picture)


def numbers(answer: Answer) -> Row:
    """What the service says of a result."""
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


def _readings(bench: Bench, layer: str, kernel: int, original: Picture, answer: Answer) -> Row:
    """What nothing was optimised for; on the engine's thread, which has the cores."""

    def all_of_them() -> Row:
        found: Row = bench.other.read(original, answer.picture)
        found |= small_changes(bench.network, layer, kernel, original, answer.picture)
        order = strength(bench.network, answer.picture)
        return found | {"deletion_auc": deletion(bench.network, layer, kernel, original, order)}

    return bench.engine.call(all_of_them)


def controls(network: LoadedNetwork, question: Question) -> dict[str, Answer]:
    """X itself, the fade t·X of the lowest loss, and X masked by its upsampled feature map, measured as X̂ is."""
    (posed,) = pose([question], network)
    image, target = posed.problem.image[0], posed.problem.target
    fades = [_given(network, question, t * image) for t in FADES]
    mask = interpolate((target / target.amax())[:, None], image.shape[1:], mode="bilinear", align_corners=False)[0]
    return {
        "X": _given(network, question, image),
        "t·X": min(fades, key=lambda answer: answer.losses.total),
        "masked X": _given(network, question, mask * image),
    }


def _given(network: LoadedNetwork, question: Question, x: Tensor) -> Answer:
    """The measurement of an X̂ that no solver made."""
    (posed,) = pose([question], network)
    answer = measured(network, question, posed, Solution(x, nan, 1, 0.0, "converged", "float32", []))
    assert isinstance(answer, Answer)
    return answer


def _pairs(bench: Bench) -> None:
    """Discrimination and consistency: the kernels that are most active on all of three photographs."""
    shown = dict(list(bench.shown.items())[:PAIRS])
    for layer in LAYERS:
        kernels = _common(bench, layer, list(shown.values()))
        for method in ("paper", "evidence", "X", "masked X"):
            questions = {
                f"{image}/{kernel}": Question(
                    MODEL, layer, picture, kernel, 1.0, 1.0, effort="quick", **METHODS.get(method, {})
                )
                for image, picture in shown.items()
                for kernel in kernels
            }
            key, last = f"{layer}/pairs/{method}", list(questions.values())[-1]
            if not bench.missing(key, last):
                continue
            if method in CONTROLS:
                answers = {name: bench.engine.call(controls, bench.network, q)[method] for name, q in questions.items()}
            else:
                answers = bench.asked(questions)
            row = {"part": "pairs", "layer": layer, "method": method, "kernels": kernels}
            bench.keep(key, last, row | _apart(answers, list(shown), kernels, layer))


def _apart(answers: dict[str, Answer], shown: list[str], kernels: list[int], layer: str) -> Row:
    """The means over the kernels."""
    stride = catalogue.network(MODEL).layer(layer).stride
    described = {
        kernel: {
            number: found
            for number, image in enumerate(shown)
            if (answer := answers.get(f"{image}/{kernel}")) is not None
            and (found := description(answer.x, stride)) is not None
        }
        for kernel in kernels
    }
    rivals = {kernel: [own for other, own in described.items() if other != kernel] for kernel in kernels}
    return {
        "discrimination": _mean(discrimination(own, rivals[kernel]) for kernel, own in described.items()),
        "consistency": _mean(consistency(own) for own in described.values()),
    }


def _common(bench: Bench, layer: str, shown: list[Picture]) -> list[int]:
    """The kernels of the best worst rank."""
    ranks = [{kernel: place for place, kernel in enumerate(bench.ranking(layer, picture))} for picture in shown]
    everywhere = set.intersection(*(set(one) for one in ranks))
    return sorted(everywhere, key=lambda kernel: max(one[kernel] for one in ranks))[:PAIRS]


def _grid(bench: Bench, layer: str = "conv5_3") -> None:
    """The most active kernels that one of four photographs drives alone."""
    four = list(bench.shown.values())[:4]
    side = bench.network.input_size // 2
    small = [np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BILINEAR)) for one in four]
    picture = np.vstack([np.hstack(small[:2]), np.hstack(small[2:])])
    for kernel, quadrant in bench.engine.call(driven, bench.network, layer, picture)[:GRID]:
        questions = {
            name: Question(MODEL, layer, picture, kernel, 1.0, 1.0, effort="quick", **METHODS[name]) for name in METHODS
        }
        prefix, question = f"{layer}/grid/{kernel}", Question(MODEL, layer, picture, kernel, 1.0, 1.0)
        found = bench.asked({n: one for n, one in questions.items() if bench.missing(f"{prefix}/{n}", one)})
        if any(bench.missing(f"{prefix}/{name}", question) for name in CONTROLS):
            found |= bench.engine.call(controls, bench.network, question)
        for name, answer in found.items():
            deviation = bench.network.space.weighed(tensor(answer.picture))[0].abs().numpy()
            own = {"grid_energy": deviation**2, "grid_share": deviation}
            shares = {
                n: float(_quadrant(d.sum(0), quadrant).sum() / max(float(d.sum()), 1e-12)) for n, d in own.items()
            }
            row = {"part": "grid", "layer": layer, "kernel": kernel, "quadrant": quadrant, "method": name}
            row |= {**shares, "grid_ssim": answer.metrics.ssim, "seconds": round(answer.seconds, 2)}
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
        sums = network.features_of(layer, torch.cat([image, *alone, *without])).sum(dim=(2, 3))  # (9, C)
    whole, kept, left = sums[0].clamp_min(1e-9), sums[1:5], sums[5:]
    rows = ((kept >= ALONE * whole) & (left <= WITHOUT * whole) & (sums[0] > 0)).nonzero().tolist()
    return sorted(((kernel, quadrant) for quadrant, kernel in rows), key=lambda pair: -float(sums[0, pair[0]]))


def _quadrant(maps: np.ndarray, number: int) -> np.ndarray:
    side = maps.shape[0] // 2
    top, left = number // 2 * side, number % 2 * side
    return maps[top : top + side, left : left + side]


def _efforts(bench: Bench, reference: Path, folder: Path) -> None:
    """The curve of leakage against invention: γ × effort, the paper's procedure on its way, and t·X."""
    for problem in json.loads(reference.read_text())["problems"]:
        layer, kernel, file = problem["layer"], problem["kernel"], problem["image"]
        data = (folder / file).read_bytes()
        picture = np.asarray(images.resized(images.decode(data, 10**9), bench.network.input_size))
        where = {"part": "efforts", "layer": layer, "image": file, "kernel": kernel}

        def keep(name: str, asked: Question, row: Row, answer: Answer, *, whose: Row = where) -> None:
            other = bench.engine.call(bench.other.read, asked.picture, answer.picture)
            bench.keep(_of_effort(whose, name), asked, whose | numbers(answer) | row | other, answer.picture)

        for effort in EFFORTS:
            asked = {
                f"{effort} {name}": Question(MODEL, layer, picture, kernel, 1.0, 1.0, effort=effort, **options)
                for name, options in WEIGHED.items()
            }
            for name, answer in bench.asked(
                {name: one for name, one in asked.items() if bench.missing(_of_effort(where, name), one)}
            ).items():
                keep(name, asked[name], {"method": name.partition(" ")[2], "effort": effort}, answer)
        question = Question(MODEL, layer, picture, kernel, 1.0, 1.0)
        for count in ON_THE_WAY:
            x = reference.parent / f"{problem['name'].replace('/', '-')}-{count}.png"
            if x.exists() and bench.missing(_of_effort(where, f"procedure {count}"), question):
                seen = bench.network.space.from_bytes(tensor(np.asarray(Image.open(x))))[0]
                answer = bench.engine.call(_given, bench.network, question, seen)
                keep(f"procedure {count}", question, {"method": "procedure", "evaluations": count}, answer)
        for t in FADES_OF_EFFORTS:
            if bench.missing(_of_effort(where, f"t·X {t:g}"), question):
                answer = bench.engine.call(_faded, bench.network, question, t)
                keep(f"t·X {t:g}", question, {"method": "t·X", "t": t}, answer)


def _of_effort(where: Row, name: str) -> str:
    return f"{where['layer']}/efforts/{where['image']}/{where['kernel']}/{name}"


def _faded(network: LoadedNetwork, question: Question, t: float) -> Answer:
    return _given(network, question, t * network.space.from_bytes(tensor(question.picture))[0])


def _cost(network: LoadedNetwork, layer: str, picture: Picture) -> float:
    """Time of an evaluation with the term over one without, the median of both in turns."""
    (posed,) = pose([Question(MODEL, layer, picture, _loudest(network, layer, picture), 1.0, 1.0)], network)
    cut, watched = network.cut(layer), network.watched(layer)
    precision = pace(cut, network.input_size, network.space.mean.device).precision
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
        return int(network.features_of(layer, network.space.from_bytes(tensor(picture)))[0].mean(dim=(1, 2)).argmax())


def summary(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """{method: {layer: {measure: mean over its rows}}}; of `efforts` nothing, which are a curve."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    own = [row for row in rows if row["part"] != "efforts"]
    for method, layer in dict.fromkeys((row["method"], row["layer"]) for row in own):
        these = [row for row in own if (row["method"], row["layer"]) == (method, layer)]
        means = {measure: _mean(row.get(measure) for row in these) for measure in MEASURES}
        found.setdefault(method, {})[layer] = {name: value for name, value in means.items() if value is not None}
    return found


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def markdown(report: dict[str, Any]) -> str:
    """A table for each layer, the curves of `efforts`, the cost."""
    lines: list[str] = []
    for layer in LAYERS:
        own = {method: of[layer] for method, of in report["summary"].items() if layer in of}
        shown = [measure for measure in MEASURES if any(measure in of for of in own.values())]
        lines += [f"**{layer}**\n", _line(["method", *shown]), _line(["---"] * (len(shown) + 1))]
        lines += [_line([method, *(_number(of.get(name)) for name in shown)]) for method, of in own.items()]
        lines.append("")
    curves = [row for row in report["rows"] if row["part"] == "efforts"]
    if curves:
        shown = ["loss", "ssim", "leakage", "invention", "other_invention", "iterations"]
        lines += [_line(["efforts", *shown]), _line(["---"] * (len(shown) + 1))]
        lines += [_line([row["key"], *(_number(row[name]) for name in shown)]) for row in curves]
        lines.append("")
    lines.append("cost: " + ", ".join(f"{layer} {ratio:.2f}×" for layer, ratio in report["cost"].items()))
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
