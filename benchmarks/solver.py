"""The quality and speed of the solvers: `python -m benchmarks.solver [--json] [--quick]`.

The problems (`benchmarks/solver_cases.py`) are, with `--images-dir` and any number of pairs `--weights-dir DIR
--reference FILE`, those of each file, which contains the reference procedure's trajectories, with the weights of the
folder; and always a set on `vgg_mini`, for which the reference procedure is run here, and VGG-16 conv5_3 with random
weights at effort `quick`, for its speed. The summary covers the problems of reference files only. The fast solver's
effort is `--effort`, or one descent of `--evals N` evaluations.

`loss`, `ssim` and `mse_others` of a problem are those of the delivered 8-bit picture; the reference's are of its float
X̂.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks import curves
from benchmarks.arithmetic import operations, peak
from benchmarks.solver_cases import (
    CPU,
    Case,
    Curve,
    float_quality,
    lowest_losses,
    mini_cases,
    mse_of_others,
    random_case,
    reference_cases,
)
from worker.engine.memory import reuse_memory
from worker.engine.quality import png_regularization
from worker.engine.speed import measured_speed
from worker.methods.suppression import EFFORTS, FastSolver, ReferenceSolver, losses, solve

CHECKPOINTS = (25, 50, 100, 150, 200, 400)
TIMED_STEPS = 10


def run(case: Case, solver: FastSolver, save: Path | None) -> dict[str, Any]:
    """Solve one case with the fast solver, and measure the result."""
    speed = measured_speed(case.cut, case.frame, CPU)
    (solution,) = solve(case.cut, case.problem, solver, precision=speed.precision)
    if save:
        _save(case, solution.x, save)
    unrounded, unrounded_alike = float_quality(case.cut, case.problem, solution.x)
    final, alike = _delivered_quality(case, solution.x)
    best = lowest_losses(solution)
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
        "reference_seconds_per_eval": _reference_seconds(case),
        "ssim": alike,
        "reference_ssim": reference.ssim,
        "loss_float": unrounded,
        "png_loss_gap": max(0.0, final - 1.01 * unrounded),
        "png_ssim_gap": unrounded_alike - alike,
        "mse_others": mse_of_others(case.cut, case.problem, case.space.from_bytes(case.space.to_bytes(solution.x))),
        "reference_mse_others": reference.mse_others,
        "precision": str(speed.precision).removeprefix("torch."),
        "peak_share": operations(case.cut, case.frame) / speed.seconds / peak(speed.precision),
        "curve": best,
        "reference_curve": reference.curve,
    }


def _save(case: Case, x: Tensor, folder: Path) -> None:
    """Save X̂ in float32 and as the 8-bit picture, so that its losses can be recomputed."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / case.name.replace("/", "-")
    np.save(f"{path}.npy", x.numpy())
    Image.fromarray(case.space.to_bytes(x).permute(1, 2, 0).numpy()).save(f"{path}.png")


@torch.no_grad()
def _delivered_quality(case: Case, x: Tensor) -> tuple[float, float]:
    """Total loss and SSIM of the 8-bit picture, in float32."""
    picture = case.space.to_bytes(x[None])
    shown = case.space.from_bytes(picture)
    after = case.cut(shown).clamp_min(0)
    terms = losses(case.problem, after, shown)
    _, alike = float_quality(case.cut, case.problem, shown[0])
    total = terms.preservation + terms.suppression + png_regularization(picture, case.space)
    return float(total), alike


def _at(best: Curve, count: int) -> float:
    return [loss for evaluation, loss in best if evaluation <= count][-1]


def _reference_seconds(case: Case) -> float:
    """Seconds per evaluation of the reference procedure, in this run."""
    (solution,) = solve(case.cut, case.problem, ReferenceSolver(budget=TIMED_STEPS))
    return solution.seconds / solution.iterations


def summary(problems: list[dict[str, Any]]) -> dict[str, float | None]:
    """A summary of problems; one that did not reach its target counts as infinitely many evaluations."""
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
    """Run the cases, and print the summary, or everything as JSON."""
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
