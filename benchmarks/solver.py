"""How good and how fast the solvers are: `python -m benchmarks.solver [--json] [--quick]`.

With `--images-dir` and any number of pairs `--weights-dir DIR --reference FILE`: the problems of that file, which holds
the reference procedure's trajectory on each, on the weights of that folder. Always: a set on `vgg_mini`, for which the
reference procedure is run here, and VGG16 conv5_3 with random weights at effort `quick`, for its speed. The summary
covers the reference files' problems only. `--effort`, or `--evals N` for one descent of N evaluations, says how long
the fast solver tries.

A problem's `loss`, `ssim` and `mse_others` are those of the delivered 8-bit picture; the reference's are of its float
X̂.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks import curves
from benchmarks.random_weights import vgg16_cut
from shared import catalogue, images
from shared.drawings import all_colours, scene
from worker.engine.memory import reuse_memory
from worker.engine.quality import map_ssim, png_regularization
from worker.engine.speed import Speed, measured_speed
from worker.methods.suppression import (
    EFFORTS,
    FastSolver,
    PixelSpace,
    Problems,
    ReferenceSolver,
    Solution,
    losses,
    solve,
)
from worker.networks.loaded import Networks

CPU = torch.device("cpu")
CHECKPOINTS = (25, 50, 100, 150, 200, 400)
NEAR = 1.01  # the reference's final loss + 1 % counts as reached
MINI_PROBLEMS = (("conv1_2", 0), ("conv2_2", 1), ("conv3_2", 0), ("conv4_2", 2))  # layer, rank of the kernel
TIMED_STEPS = 10


Curve = list[tuple[int, float]]  # (evaluations, lowest loss until then)


@dataclass(frozen=True)
class Reference:
    """What the reference procedure reached, where that is known."""

    loss: float | None = None
    evals: int | None = None  # until it was that near; None where it diverged
    ssim: float | None = None
    mse_others: float | None = None
    curve: Curve = field(default_factory=list)


@dataclass
class Case:
    """One problem with what is known of the reference procedure on it."""

    name: str
    cut: nn.Module
    problem: Problems
    space: PixelSpace
    reference: Reference
    target_loss: float | None
    best_known: float | None
    from_file: bool

    @property
    def frame(self) -> images.Frame:
        """Of the input."""
        return images.Frame(*self.problem.image.shape[-2:])


def posed(cut: nn.Module, space: PixelSpace, picture: Image.Image, kernel: int) -> Problems:
    """The problem of one kernel on one picture, α = β = 1."""
    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None]
    image = space.from_bytes(pixels).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        features = cut(image).clamp_min(0)
    one = torch.ones(1)
    return Problems.pose(image, features, torch.tensor([kernel]), one, one)


def reference_cases(weights: Path, folder: Path, file: Path) -> Iterator[Case]:
    """The problems of a reference file."""
    networks = Networks(weights, CPU, download=False)
    for entry in json.loads(file.read_text())["problems"]:
        network = networks.get(entry["model"])
        layer = catalogue.network(entry["model"]).layer(entry["layer"]).name
        picture = images.resized(images.decode((folder / entry["image"]).read_bytes(), 10**9), network.frame)
        found = entry["reference"]
        reference = Reference(
            loss=found["final_loss"],
            evals=_first_near(found),
            ssim=found.get("ssim"),
            mse_others=found.get("mse_others"),
            curve=sorted((int(count), loss) for count, loss in found["curve"].items()),
        )
        yield Case(
            name=entry["name"],
            cut=network.layer(layer).cut,
            problem=posed(network.layer(layer).cut, network.space, picture, entry["kernel"]),
            space=network.space,
            reference=reference,
            target_loss=entry["target_loss"],
            best_known=entry["best_known"],
            from_file=True,
        )


def _first_near(reference: dict[str, Any]) -> int | None:
    """The first recorded count at which the reference is within 1 % of its end; None where it diverged."""
    if reference.get("diverged"):
        return None
    curve = {int(count): loss for count, loss in reference["curve"].items()}
    return next(count for count, loss in sorted(curve.items()) if loss <= NEAR * reference["final_loss"])


def mini_cases(iterations: int) -> Iterator[Case]:
    """Kernels of the network that comes with the program; the reference procedure is run here."""
    network = Networks(Path("/nonexistent"), CPU, download=False).get("vgg_mini")
    for layer, rank in MINI_PROBLEMS:
        picture = all_colours(network.frame.width) if layer == "conv1_2" else scene(5, network.frame.width).image
        cut = network.layer(layer).cut
        pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None]
        means = network.layer(layer).features(network.space.from_bytes(pixels))[0].mean(dim=(1, 2))
        kernel = int(means.argsort(descending=True)[rank])
        problem = posed(cut, network.space, picture, kernel)
        (solution,) = solve(cut, problem, ReferenceSolver(budget=iterations))
        final, alike = _measured(cut, problem, solution.x)
        curve = _best_so_far(solution)
        near = next(count for count, loss in curve if loss <= NEAR * final)
        reference = Reference(final, near, alike, _others(cut, problem, solution.x), curve)
        name = f"vgg_mini/{layer}/{kernel}"
        yield Case(name, cut, problem, network.space, reference, NEAR * final, final, from_file=False)


def random_case() -> Case:
    """VGG16 conv5_3 with random weights: nothing to compare with, but the size of the real thing."""
    cut = vgg16_cut("conv5_3")
    space = PixelSpace.of((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    problem = posed(cut, space, scene(5, 224).image, 0)
    return Case("vgg16-random/conv5_3/0", cut, problem, space, Reference(), None, None, from_file=False)


def run(case: Case, solver: FastSolver, save: Path | None) -> dict[str, Any]:
    """Solve one case with the fast solver and measure what came out."""
    speed = measured_speed(case.cut, case.frame, CPU)
    (solution,) = solve(case.cut, case.problem, solver, precision=speed.precision)
    if save:
        _save(case, solution.x, save)
    unrounded, unrounded_alike = _measured(case.cut, case.problem, solution.x)
    final, alike = _delivered(case, solution.x)
    best = _best_so_far(solution)
    reached = [count for count, loss in best if case.target_loss is not None and loss <= case.target_loss]
    reference = case.reference
    return {
        "name": case.name,
        "target_loss": case.target_loss,
        "reference_loss": reference.loss,
        "reference_evals": reference.evals,
        "best_known": None if case.best_known is None else min(case.best_known, final),
        "loss": final,
        "loss_at": {count: _at(best, count) for count in CHECKPOINTS if count <= solution.iterations},
        "evals": solution.iterations,
        "stopped": solution.stopped,
        "evals_to_reference": reached[0] if reached else None,
        "seconds_per_eval": solution.seconds / solution.iterations,
        "reference_seconds_per_eval": _reference_pace(case),
        "ssim": alike,
        "reference_ssim": reference.ssim,
        "loss_float": unrounded,
        "png_loss_gap": max(0.0, final - 1.01 * unrounded),
        "png_ssim_gap": unrounded_alike - alike,
        "mse_others": _others(case.cut, case.problem, case.space.from_bytes(case.space.to_bytes(solution.x))),
        "reference_mse_others": reference.mse_others,
        "precision": str(speed.precision).removeprefix("torch."),
        "peak_share": _peak_share(case, speed),
        "curve": best,
        "reference_curve": reference.curve,
    }


def _save(case: Case, x: Tensor, folder: Path) -> None:
    """Keep X̂ as float32 and as the 8-bit picture, so that others can compute the losses again."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / case.name.replace("/", "-")
    np.save(f"{path}.npy", x.numpy())
    Image.fromarray(case.space.to_bytes(x).permute(1, 2, 0).numpy()).save(f"{path}.png")


@torch.no_grad()
def _measured(cut: nn.Module, problem: Problems, x: Tensor) -> tuple[float, float]:
    """Total loss and SSIM of a float X̂, in float32."""
    after = cut(x[None]).clamp_min(0)
    alike = map_ssim(after[0, int(problem.kernel)], problem.target[0])
    assert alike is not None
    return float(losses(problem, after, x[None]).total), alike


@torch.no_grad()
def _delivered(case: Case, x: Tensor) -> tuple[float, float]:
    """The same of the 8-bit picture."""
    picture = case.space.to_bytes(x[None])
    shown = case.space.from_bytes(picture)
    after = case.cut(shown).clamp_min(0)
    terms = losses(case.problem, after, shown)
    _, alike = _measured(case.cut, case.problem, shown[0])
    total = terms.preservation + terms.suppression + png_regularization(picture, case.space)
    return float(total), alike


@torch.no_grad()
def _others(cut: nn.Module, problem: Problems, x: Tensor) -> float:
    """Mean of F̂_j² over the other kernels."""
    after = cut(x[None])[0].clamp_min(0)
    keep = torch.arange(len(after)) != int(problem.kernel)
    return float(after[keep].square().mean())


def _best_so_far(solution: Solution) -> Curve:
    """From the history."""
    best, rows = float("inf"), []
    for row in solution.history:
        best = min(best, row[-1])
        rows.append((row[0], best))
    return rows


def _at(best: Curve, count: int) -> float:
    return [loss for evaluation, loss in best if evaluation <= count][-1]


def _reference_pace(case: Case) -> float:
    """Seconds of one evaluation of the reference procedure, in this run."""
    (solution,) = solve(case.cut, case.problem, ReferenceSolver(budget=TIMED_STEPS))
    return solution.seconds / solution.iterations


def _peak_share(case: Case, speed: Speed) -> float:
    """Operations of the truncated network forward and back over time, against a large matrix product."""
    return operations(case.cut, case.frame) / speed.seconds / _peak(speed.precision)


def operations(cut: nn.Module, frame: images.Frame) -> float:
    """Multiplications and additions of the convolutions, forward and for the gradient of the input."""
    total = 0

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d)
        total += 2 * 2 * module.weight[0].numel() * output.numel()

    device = next(cut.parameters()).device
    hooks = [module.register_forward_hook(count) for module in cut.modules() if isinstance(module, nn.Conv2d)]
    try:
        with torch.no_grad():
            cut(torch.zeros(1, frame.channels, frame.height, frame.width, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return float(total)


_peaks: dict[torch.dtype, float] = {}


def _peak(precision: torch.dtype, side: int = 3072) -> float:
    """Operations a second of a matrix product in this precision, the best of five."""
    if precision not in _peaks:
        matrix = torch.randn(side, side).to(precision)
        best = float("inf")
        for _ in range(5):
            begin = time.perf_counter()
            matrix @ matrix
            best = min(best, time.perf_counter() - begin)
        _peaks[precision] = 2 * side**3 / best
    return _peaks[precision]


def summary(problems: list[dict[str, Any]]) -> dict[str, float | None]:
    """Over the reference file's problems; one that never reached its target counts as never."""
    if not problems:
        return {}
    reached = [p["evals_to_reference"] or float("inf") for p in problems]
    judged = [p for p in problems if p["reference_evals"]]
    sped = [_speedup(p) for p in judged]
    timed = [
        _speedup(p) * p["reference_seconds_per_eval"] / p["seconds_per_eval"] for p in problems if p["reference_evals"]
    ]
    return {
        "share_reached_200": sum(count <= 200 for count in reached) / len(reached),
        "share_reached_1000": sum(count <= 1000 for count in reached) / len(reached),
        "median_evals_to_reference": _finite(statistics.median(reached)),
        "median_speedup_evals": statistics.median(sped),
        "median_speedup_time": statistics.median(timed),
        "worst_png_loss_gap": max(p["png_loss_gap"] for p in problems),
        "worst_png_ssim_gap": max(p["png_ssim_gap"] for p in problems),
        "peak_share": statistics.median(p["peak_share"] for p in problems),
    }


def _speedup(problem: dict[str, Any]) -> float:
    count = problem["evals_to_reference"]
    return float(problem["reference_evals"] / count) if count else 0.0


def _finite(value: float) -> float | None:
    return value if value != float("inf") else None


def _line(row: dict[str, Any]) -> str:
    def number(value: float | None) -> str:
        return "    –" if value is None else f"{value:.4f}"

    return (
        f"{row['name']:36} loss {number(row['loss'])} (reference {number(row['reference_loss'])})  "
        f"SSIM {row['ssim']:.3f} ({number(row['reference_ssim'])})  evals {row['evals']} "
        f"(to reference: {row['evals_to_reference']} / {row['reference_evals']})  "
        f"{1e3 * row['seconds_per_eval']:.1f} ms/eval ({1e3 * row['reference_seconds_per_eval']:.1f})"
    )


def main() -> None:
    """Run the cases, print a line each and the summary, or everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights-dir", type=Path, action="append", default=[])
    parser.add_argument("--images-dir", type=Path)
    parser.add_argument("--reference", type=Path, action="append", default=[])
    parser.add_argument("--quick", action="store_true", help="ends within 5 minutes on two cores")
    parser.add_argument("--effort", choices=list(EFFORTS), default="standard")
    parser.add_argument("--evals", type=int, metavar="N", help="one descent of N evaluations instead")
    parser.add_argument("--save", type=Path, metavar="DIR", help="keep every X̂ there, as .npy and .png")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw loss against evaluations and seconds, both solvers"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if len(options.reference) != len(options.weights_dir) or (options.reference and not options.images_dir):
        parser.error("each --reference needs its --weights-dir, and all --images-dir: their problems are on these")
    if options.evals is not None and options.evals < 1:
        parser.error(f"--evals is {options.evals}; it must be 1 or more")
    reuse_memory()
    logging.getLogger("worker").setLevel(logging.WARNING)
    files = zip(options.weights_dir, options.reference, strict=True)
    cases = [case for weights, file in files for case in reference_cases(weights, options.images_dir, file)]
    cases += [*mini_cases(500 if options.quick else 3000), random_case()]
    rows = []
    for case in cases:
        solver = FastSolver.of(case.space, options.effort if case.reference.curve else "quick", options.evals)
        rows.append(run(case, solver, options.save))
        sys.stderr.write(_line(rows[-1]) + "\n")
    report = {
        "problems": rows,
        "summary": summary([row for row, case in zip(rows, cases, strict=True) if case.from_file]),
    }
    if options.plot:
        curves.draw([row for row in rows if row["reference_curve"]], options.plot)
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        print(json.dumps(report["summary"], indent=1))


if __name__ == "__main__":
    main()
