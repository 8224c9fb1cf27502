"""The latency of the service: `python -m benchmarks.service [--json] [--quick]`.

The processes are those of `kernelscope up`: Redis that syncs every write, the API, housekeeping and one worker.

- Submit and poll: many clients at a constant rate (`benchmarks/load.py`). The jobs are sent to a second API with its
  own database in the same Redis, whose queues no worker reads, so that the worker is idle.
- Start: from a job's creation to its start on the idle worker, one job after the other.
- Overhead: a VGG-16 conv2_2 job from POST to its end, against `suppression.solve` alone, in turns. The weights are
  those of `KERNELSCOPE_WEIGHTS_DIR` or `KERNELSCOPE_TEST_WEIGHTS`, otherwise random.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.load import LoadPlan, pictures
from benchmarks.service_stack import stack_of, unserved, weights_folder
from kernelscope.client import Client, Job
from shared import images
from worker.engine.answers import pose
from worker.engine.memory import reuse_memory
from worker.engine.questions import Question
from worker.engine.speed import measured_speed
from worker.engine.torch_batch import make_solver
from worker.methods.suppression import solve
from worker.networks.layer import LoadedNetwork
from worker.networks.loaded import Networks

MINI: dict[str, Any] = {"model": "vgg_mini", "layer": "conv2_2", "kernels": "3", "effort": "quick"}
VGG16: dict[str, Any] = {"model": "vgg16", "layer": "conv2_2", "kernels": "12", "effort": "quick"}
POLLED_JOBS = 50
POLL_SECONDS = 0.005  # between polls of a job that has not started

# name, title, unit, upper limit
BARS = (
    ("submit_p99", "submit, p99", "ms", 50.0),
    ("poll_p99", "poll, p99", "ms", 20.0),
    ("start_median", "submit to start, median", "ms", 100.0),
    ("overhead", "service over solver", "%", 10.0),
)


@dataclass(frozen=True)
class Effort:
    """The number of repetitions."""

    rounds: int
    seconds: float
    starts: int
    pairs: int


WHOLE, QUICK = Effort(rounds=3, seconds=20, starts=30, pairs=6), Effort(rounds=1, seconds=5, starts=8, pairs=2)


def load(plan: LoadPlan) -> dict[str, Any]:
    """Run the load generator. Returns percentiles of the response times in milliseconds, rate and errors."""
    command = [sys.executable, "-m", "benchmarks.load"]
    found = subprocess.run(command, input=plan.command(), stdout=subprocess.PIPE, text=True, check=True)
    rows: list[tuple[float, float, str]] = json.loads(found.stdout)
    taken = np.array([milliseconds for _, milliseconds, _ in rows])
    p50, p95, p99 = np.percentile(taken, [50, 95, 99]).tolist()
    errors = [error for *_, error in rows if error]
    return {
        "p50": p50,
        "p95": p95,
        "p99": p99,
        "worst": float(taken.max()),
        "requests": len(rows),
        "rate": len(rows) / plan.seconds,
        "errors": len(errors),
        "first_error": errors[0] if errors else None,
    }


def median_of(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure, the sum of errors, and the rounds themselves."""
    figures = {name: statistics.median(found[name] for found in rounds) for name in ("p50", "p95", "p99", "rate")}
    return {**figures, "errors": sum(found["errors"] for found in rounds), "rounds": rounds}


def submits(address: str, effort: Effort) -> dict[str, Any]:
    """`POST /explain` at 100 per second."""
    plan = LoadPlan(address, rate=100, seconds=effort.seconds, users=100, paths=[])
    return median_of([load(plan) for _ in range(effort.rounds)])


def polls(address: str, effort: Effort) -> dict[str, Any]:
    """`GET /jobs/{id}` of queued jobs at 1,000 per second."""
    with Client(address) as client:
        jobs = [client.explain([picture], **MINI) for picture, _ in zip(pictures(1), range(POLLED_JOBS), strict=False)]
    paths = [job.links["self"] for job in jobs]
    plan = LoadPlan(address, rate=1000, seconds=effort.seconds, users=200, paths=paths)
    return median_of([load(plan) for _ in range(effort.rounds)])


def starts(client: Client, effort: Effort) -> dict[str, Any]:
    """One-kernel jobs on the idle worker, one after the other; milliseconds."""
    recorded, seen, answered = [], [], []
    fresh = pictures(2)
    for _ in range(effort.starts):
        time.sleep(random.uniform(0.3, 0.7))  # noqa: S311 - in step with nothing that the worker does
        begin = time.perf_counter()
        job = client.explain([next(fresh)], **MINI)
        answered.append(time.perf_counter() - begin)
        while job.started_at is None:
            time.sleep(POLL_SECONDS)
            job = client.job(job.id)
        seen.append(time.perf_counter() - begin)
        recorded.append((job.started_at - job.created_at).total_seconds())
        _finished(client, job)
    return {
        "median": 1e3 * statistics.median(recorded),
        "worst": 1e3 * max(recorded),
        "client_median": 1e3 * statistics.median(seen),
        "client_worst": 1e3 * max(seen),
        "answer_median": 1e3 * statistics.median(answered),
        "all": [1e3 * seconds for seconds in recorded],
    }


def _finished(client: Client, job: Job) -> Job:
    """Wait for a job, which must succeed."""
    job = client.job(job.id).wait()
    if job.status != "succeeded":
        raise RuntimeError(f"job {job.id} {job.status}: {job.error}")
    return job


def overhead(client: Client, weights: Path, effort: Effort) -> dict[str, Any]:
    """The service's time relative to the solver's, measured alternately, with a new picture for each pair."""
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(1, get_context("spawn"), reuse_memory) as alone:
        for number, picture in zip(range(effort.pairs + 1), pictures(3), strict=False):
            row: dict[str, Any] = {}
            for side in ("service", "solver") if number % 2 else ("solver", "service"):
                if side == "service":
                    row[side], row["solver_in_worker"], row["evaluations"] = _through_the_service(client, picture)
                else:
                    row[side], row["solver_evaluations"] = alone.submit(_alone, picture, weights).result()
            rows.append({**row, "overhead": 100 * (row["service"] / row["solver"] - 1)})
    del rows[0]  # it included loading and measuring the networks
    figures = ("service", "solver_in_worker", "solver", "overhead")
    return {name: statistics.median(row[name] for row in rows) for name in figures} | {"pairs": rows}


def _through_the_service(client: Client, picture: bytes) -> tuple[float, float, int]:
    """Seconds from POST to the end of the job, seconds of the worker's solver, and its evaluations."""
    begin = time.perf_counter()
    result = (_finished(client, client.explain([picture], **VGG16)).results or [])[0]
    return time.perf_counter() - begin, result.seconds or 0.0, result.iterations or 0


def _alone(picture: bytes, weights: Path) -> tuple[float, int]:
    """Seconds of `solve` in this process with a worker's parameters, and its evaluations."""
    network = _network(weights)
    cut = network.layer(VGG16["layer"]).cut
    pixels = np.asarray(images.resized(images.decode(picture, 10**9), network.frame))
    question = Question(
        model=VGG16["model"],
        layer=VGG16["layer"],
        picture=pixels,
        kernel=int(VGG16["kernels"]),
        alpha=1.0,
        beta=1.0,
        solver="fast",
        effort=VGG16["effort"],
        iterations=None,
    )
    precision = measured_speed(cut, network.frame, network.space.mean.device).precision
    (posed,) = pose([question], network.layer(VGG16["layer"]))
    solver = make_solver(question, network.space)
    begin = time.perf_counter()
    (solution,) = solve(cut, posed.problem, solver, precision=precision)
    return time.perf_counter() - begin, solution.iterations


@cache
def _network(weights: Path) -> LoadedNetwork:
    return Networks(weights, torch.device("cpu"), download=False).get(VGG16["model"])


def machine() -> dict[str, Any]:
    """The machine, versions and date."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpus": os.cpu_count(),
        "model": models[0] if models else platform.processor(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def measure(effort: Effort) -> dict[str, Any]:
    """Run all measurements."""
    with TemporaryDirectory(prefix="kernelscope-benchmark-") as name:
        folder = Path(name)
        weights = weights_folder(folder / "weights")
        with stack_of(folder / "data", weights) as stack, Client(stack.url) as client:
            address = unserved(stack, folder / "data")
            report: dict[str, Any] = {"machine": machine(), "submit": submits(address, effort)}
            report["poll"] = polls(address, effort)
            _finished(client, client.explain([next(pictures(4))], **MINI))
            report["start"] = starts(client, effort)
            report["overhead"] = overhead(client, weights, effort)
    figures = (
        report["submit"]["p99"],
        report["poll"]["p99"],
        report["start"]["median"],
        report["overhead"]["overhead"],
    )
    errors = (report["submit"]["errors"], report["poll"]["errors"], 0, 0)
    report["bars"] = {
        key: {"figure": figure, "bar": bar, "unit": unit, "met": figure <= bar and not failed}
        for (key, _, unit, bar), figure, failed in zip(BARS, figures, errors, strict=True)
    }
    return report


def table(report: dict[str, Any]) -> str:
    """The report as text."""
    where, start, over = report["machine"], report["start"], report["overhead"]
    lines = [f"{where['cpus']} × {where['model']}, torch {where['torch']}, {where['date']}"]
    for name in ("submit", "poll"):
        found = report[name]
        lines.append(
            f"{name:9} p50 {found['p50']:.1f}  p95 {found['p95']:.1f}  p99 {found['p99']:.1f} ms"
            f"  at {found['rate']:.0f}/s, {found['errors']} errors"
        )
    lines += [
        f"start     median {start['median']:.0f}  worst {start['worst']:.0f} ms"
        f"  (a client sees it after {start['client_median']:.0f}, at worst {start['client_worst']:.0f} ms)",
        f"overhead  {over['overhead']:.1f} %  (service {over['service']:.2f} s, of which its solver "
        f"{over['solver_in_worker']:.2f} s; solver alone {over['solver']:.2f} s)",
        "",
    ]
    for key, title, unit, bar in BARS:
        outcome = report["bars"][key]
        verdict = "met" if outcome["met"] else "NOT met"
        lines.append(f"{title:24} {outcome['figure']:8.1f} {unit:2}  bar {bar:g} {unit}: {verdict}")
    return "\n".join(lines)


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter and fewer rounds")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    report = measure(QUICK if options.quick else WHOLE)
    print(json.dumps(report, indent=1) if options.json else table(report))


if __name__ == "__main__":
    main()
