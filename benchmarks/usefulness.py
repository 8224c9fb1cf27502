"""How much do pictures of a kernel say about it? `python -m benchmarks.usefulness --weights-dir W --images-dir I`.

The task that Borowski et al. (ICLR 2021) gave to people, solved by a program. It gets nine pictures of a kernel: X̂ of
the crops that activate it most. Which of two further crops activates the kernel more? The answer is the crop that is on
average more similar to the nine, by one of two descriptions without training:

description    that of the consistency score (api/pictures/consistency.py): colours and patterns at the layer's stride
SqueezeNet     activations of another network, for which no picture is optimised (`--other-weights-dir`)

evidence, paper, guided_backprop, deconvnet, lrp    the nine pictures by this method
crops                                               the nine crops themselves

Crops are squares of the size of the layer's receptive field at regular steps, from photographs whose shorter side is
three crops. Every other photograph is for the nine, the others for the pairs: a crop of the tenth that activates the
kernel most, and a random one of the lower half. At most three crops are of one photograph. Random answers are right in
half of the cases.

Kernels are chosen at random among those that are active in both halves. Each row is appended to `--rows` at once, so
that the same command continues after an interruption. `--pictures` gets a sheet for each kernel with its nine crops and
their X̂. `--quick`: three kernels per layer, fewer crops.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image

from api.pictures.consistency import WINDOW, Description, description, likeness
from benchmarks.crops import HIGH, OF_ONE, PAIRS, SEED, Crops, seen
from benchmarks.evidence.bench import METHODS, Row
from benchmarks.figures import shown as shipped
from benchmarks.readings import OtherNetwork, tensor
from benchmarks.table1 import FIRES, MAX_PIXELS, SUFFIXES, read
from shared import images
from shared.catalogue import network as described
from worker.engine.accelerator import choose
from worker.engine.device import TorchDevice
from worker.engine.engine import Engine
from worker.engine.memory import reuse_memory
from worker.engine.questions import Answer, Picture, Question
from worker.methods.suppression import PixelSpace
from worker.networks.definitions import FILE
from worker.networks.layer import LoadedLayer
from worker.networks.loaded import Networks
from worker.networks.weights import find

MODEL = "vgg16"
LAYERS = ("conv4_3", "conv5_3")
ASKED = ("evidence", "paper", "guided_backprop", "deconvnet", "lrp")
GRID = 16  # a crop's side is a multiple, so that pooling leaves no remainder
NINE = 9  # pictures of a kernel
WHAT = ("layer", "eye", "method")

Seen = Description | None
Eye = Callable[[Sequence[Picture]], list[Seen]]  # (pictures) → their descriptions


@dataclass(frozen=True)
class Trial:
    """A layer with its crops, and the descriptions."""

    engine: Engine
    layer: LoadedLayer
    learned: Crops  # for the nine
    asked: Crops  # for the pairs
    eyes: Mapping[str, Eye]
    settings: Mapping[str, str]  # of each description

    def kernels(self, count: int) -> list[int]:
        """Random kernels that are active in nine crops of one half and have all pairs in the other."""
        enough = [
            kernel
            for kernel in range(self.learned.peaks.shape[1])
            if (self.learned.peaks[self.learned.best(kernel, NINE), kernel] > 0).all()
            and len(self.asked.pairs(kernel)) == PAIRS
        ]
        return sorted(random.Random(SEED).sample(enough, min(count, len(enough))))  # noqa: S311 - not for secrets

    def rows(self, kernel: int, folder: Path) -> Iterator[Row]:
        """A row for each description and each method, and for the crops themselves."""
        nine = [self.learned.pictures[number] for number in self.learned.best(kernel, NINE)]
        shown = {"crops": nine}
        for method in ASKED:
            own = partial(Question, self.layer.network, self.layer.name, effort="quick", **METHODS[method])
            questions = [own(picture=picture, kernel=kernel, alpha=1.0, beta=1.0) for picture in nine]
            answers = {number: one for number, one in self.engine.ask(questions) if isinstance(one, Answer)}
            shown[method] = [answers[number].picture for number in sorted(answers)]
        folder.mkdir(parents=True, exist_ok=True)
        _sheet(list(shown.values())).save(folder / f"{self.layer.name}-{kernel}.png")
        pairs = self.asked.pairs(kernel)
        high, low = ([self.asked.pictures[number] for number in side] for side in zip(*pairs, strict=True))
        for eye, see in self.eyes.items():
            more, less = see(high), see(low)
            for method, pictures in shown.items():
                right = answered(see(pictures), more, less)
                where = {"layer": self.layer.name, "kernel": kernel, "eye": eye, "method": method}
                yield {**where, "settings": self.settings[eye], "right": round(right, 4), "pictures": len(pictures)}


def answered(nine: Sequence[Seen], more: Sequence[Seen], less: Sequence[Seen]) -> float:
    """The fraction of pairs whose more active crop is more similar to the nine; ties count half."""
    known = [one for one in nine if one is not None]

    def like(crop: Seen) -> float:
        return statistics.fmean(likeness(crop, one) for one in known) if known and crop is not None else 0.0

    similarities = [(like(one), like(other)) for one, other in zip(more, less, strict=True)]
    return statistics.fmean(0.5 if one == other else float(one > other) for one, other in similarities)


def plain(space: PixelSpace, stride: int, pictures: Sequence[Picture]) -> list[Seen]:
    """The descriptions of the consistency score."""
    return [description(space.from_bytes(tensor(one))[0].cpu().numpy(), stride) for one in pictures]


@torch.no_grad()
def squeezenet(other: OtherNetwork, pictures: Sequence[Picture]) -> list[Seen]:
    """The highest activations of four layers minus those of a blank picture, with equal norms of the layers."""
    if not pictures:
        return []
    network = other.network
    images = network.space.from_bytes(tensor(*pictures))
    blank = network.space.weighed(network.space.mean_bytes.expand(1, *images.shape[1:]))
    found = []
    for name in FIRES:
        peaks = (network.layer(name).features(images) - network.layer(name).features(blank)).amax(dim=(2, 3))
        found.append(torch.nn.functional.normalize(peaks, dim=1) / len(FIRES) ** 0.5)
    return list(torch.cat(found, dim=1).double().numpy())


def summary(rows: Sequence[Row]) -> list[Row]:
    """The mean over the kernels with its standard error, by layer, description and method."""
    found = []
    for what in dict.fromkeys(tuple(row[name] for name in WHAT) for row in rows):
        own = [row["right"] for row in rows if tuple(row[name] for name in WHAT) == what]
        error = statistics.stdev(own) / math.sqrt(len(own)) if len(own) > 1 else None
        where = dict(zip(WHAT, what, strict=True))
        found.append({**where, "kernels": len(own), "right": statistics.fmean(own), "error": error})
    return found


def markdown(found: Sequence[Row]) -> Iterator[str]:
    """The table in Markdown."""
    columns = list(dict.fromkeys((row["layer"], row["eye"]) for row in found))
    yield f"| nine pictures by | {' | '.join(', '.join(column) for column in columns)} |"
    yield f"|---|{'---|' * len(columns)}"
    for method in dict.fromkeys(row["method"] for row in found):
        own = {(row["layer"], row["eye"]): row for row in found if row["method"] == method}
        yield f"| {method} | {' | '.join(_mean(own.get(column)) for column in columns)} |"


def _mean(row: Row | None) -> str:
    if row is None:
        return "–"
    return f"{row['right']:.2f}" + (f" ± {row['error']:.2f}" if row["error"] is not None else "")


def _sheet(rows: Sequence[Sequence[Picture]]) -> Image.Image:
    """The pictures in a grid: the crops, evidence, the paper and the baselines."""
    side = rows[0][0].shape[0]
    sheet = Image.new("RGB", (side * max(map(len, rows)), side * len(rows)), "white")
    for line, row in enumerate(rows):
        for place, picture in enumerate(row):
            sheet.paste(Image.fromarray(picture), (place * side, line * side))
    return sheet


def main(arguments: Sequence[str] | None = None) -> int:
    """Compute the missing rows, then print the summary."""
    options = _options(arguments)
    reuse_memory()
    logging.getLogger("worker").setLevel(logging.WARNING)
    options.rows.parent.mkdir(parents=True, exist_ok=True)
    photographs = _photographs(options.images_dir)
    rows: list[Row] = []
    try:
        for layer in options.layers:
            rows += _of_layer(layer, photographs, options)
    except KeyboardInterrupt:
        sys.stderr.write(f"\ninterrupted; the same command continues with {options.rows}\n")
        return 130
    found = summary(rows)
    print(json.dumps({"rows": rows, "summary": found}, indent=1) if options.json else "\n".join(markdown(found)))
    return 0


def _of_layer(name: str, photographs: Sequence[Image.Image], options: argparse.Namespace) -> list[Row]:
    """The rows of a layer, in a network whose input has the size of the layer's receptive field."""
    known = described(MODEL).layer(name)
    side = GRID * math.ceil(known.receptive_field / GRID)
    step = side // (2 if options.quick else 4)
    with TemporaryDirectory() as folder:
        own = _registered(options.weights_dir, Path(folder), side)
        networks = Networks(Path(folder), choose(options.device), download=False)
        engine = Engine(TorchDevice(networks))
        try:
            layer = networks.get(own).layer(name)
            compute = partial(engine.call, seen, layer)  # on the engine's thread
            learned, asked = compute(photographs[::2], step), compute(photographs[1::2], step)
            sys.stderr.write(f"{name}: {len(learned.pictures)} and {len(asked.pictures)} crops of {side}×{side}\n")
            what = f"{len(photographs)} photographs {_digest(learned, asked)}"
            settings = f"{engine.device.version}, {layer.weights.sha256[:8]}, {what}"
            eyes: dict[str, Eye] = {"description": partial(plain, layer.space, known.stride)}
            by_description = {"description": settings}
            if options.other_weights_dir:
                other = OtherNetwork(options.other_weights_dir)
                eyes["SqueezeNet"] = partial(squeezenet, other)
                by_description["SqueezeNet"] = f"{settings}, {other.network.weights.sha256[:8]} {' '.join(FIRES)}"
            trial = Trial(engine, layer, learned, asked, eyes, by_description)
            kernels = trial.kernels(3 if options.quick else options.kernels)
            return [row for kernel in kernels for row in _rows_of(trial, kernel, options)]
        finally:
            engine.close()


def _rows_of(trial: Trial, kernel: int, options: argparse.Namespace) -> list[Row]:
    """A kernel's rows: those of an earlier run, else new ones."""
    asked = {"layer": trial.layer.name, "kernel": kernel}
    known = [row for row in read(options.rows) if asked.items() <= row.items()]
    kept = {(row["eye"], row["method"]): row for row in known if row["settings"] == trial.settings.get(row["eye"])}
    rows = list(kept.values())
    if len(rows) < len(trial.eyes) * len(("crops", *ASKED)):
        rows = list(trial.rows(kernel, options.pictures))
        with options.rows.open("a") as lines:
            lines.writelines(json.dumps(row) + "\n" for row in rows)
    line = ", ".join(f"{row['eye']} {row['method']} {row['right']:.2f}" for row in rows)
    sys.stderr.write(f"{trial.layer.name} kernel {kernel}: {line}\n")
    return rows


def _digest(*halves: Crops) -> str:
    """The digest of all crops and parameters."""
    found = hashlib.sha256(repr((NINE, PAIRS, OF_ONE, HIGH, SEED, WINDOW)).encode())
    for half in halves:
        for picture in half.pictures:
            found.update(picture.tobytes())
    return found.hexdigest()[:8]


def _registered(weights: Path, folder: Path, side: int) -> str:
    """Register the weights in a folder for a network with this input size. Returns its name."""
    file = find(MODEL, weights, download=False).file
    (folder / file.name).symlink_to(file.absolute())
    name = f"{MODEL}-crops"
    (folder / FILE).write_text(f'["{name}"]\narch = "{MODEL}"\nweights = "{file.name}"\ninput_size = {side}\n')
    return name


def _photographs(folder: Path | None) -> list[Image.Image]:
    """The photographs of the folder, or those of scikit-image."""
    if folder is None:
        return [images.decode(data, MAX_PIXELS) for data in shipped(None)]
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if len(files) < 2:
        raise SystemExit(
            f"{folder} has {len(files)} images ({', '.join(SUFFIXES)}); at least two are needed, twenty recommended"
        )
    return [images.decode(file.read_bytes(), MAX_PIXELS) for file in files]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights-dir", type=Path, required=True, help="the complete VGG-16")
    parser.add_argument("--images-dir", type=Path, help="photographs; default: four of scikit-image")
    parser.add_argument("--other-weights-dir", type=Path, help="SqueezeNet 1.1, for a second description")
    parser.add_argument("--layers", nargs="+", default=LAYERS, help="default: %(default)s")
    parser.add_argument("--kernels", type=int, default=10, metavar="N", help="of a layer")
    parser.add_argument("--device", default="auto", help="`cpu`, `cuda`; default: a card if there is one")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", type=Path, default=Path("docs/evidence/usefulness.jsonl"))
    parser.add_argument("--pictures", type=Path, default=Path("evidence/kernels"))
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
