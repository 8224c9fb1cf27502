"""The cost of an explanation outside the solver: `python -m benchmarks.footprint [--json] [--jobs N] [--kernels N]`.

Jobs with one picture each (`vgg_mini`, `effort=quick`, one or several kernels) on a private stack: Redis commands,
memory and append-only file; blobs and bytes in the object store, before and after the panel is drawn; CPU time of the
API, Redis and housekeeping. docs/operations.md plans capacity with these figures.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import psutil
from redis import Redis

from kernelscope.client import Client
from kernelscope.serving import private_stack
from kernelscope.stack import Stack
from shared.drawings import scene
from shared.settings import Settings

SIDE = 224
POLLS = 20  # of a job that has ended

Figures = dict[str, float]


class Meter:
    """Measures differences of a stack's counters per explanation.

    Args:
        stack: a running one.
        explanations: over which a difference is divided.
    """

    def __init__(self, stack: Stack, explanations: int) -> None:
        self.stack = stack
        self.explanations = explanations
        self.redis = Redis.from_url(stack.environment["KERNELSCOPE_REDIS_URL"], decode_responses=True)
        self.processes = {child.name: psutil.Process(child.process.pid) for child in stack.children if child.process}

    def read(self) -> Figures:
        """The present counters."""
        blobs = [path.stat().st_size for path in (self.stack.settings.data_dir / "store").rglob("*") if path.is_file()]
        info: dict[str, Any] = self.redis.info("all")
        figures: Figures = {
            "redis_commands": info["total_commands_processed"],
            "redis_memory_bytes": info["used_memory"],
            "redis_aof_bytes": info["aof_current_size"],
            "blobs": len(blobs),
            "blob_bytes": sum(blobs),
        }
        for name, process in self.processes.items():
            figures[f"{name}_cpu_ms"] = 1000 * sum(process.cpu_times()[:2])
        return figures

    @contextmanager
    def over(self, found: dict[str, Figures], name: str) -> Iterator[None]:
        """Records the differences within the context, per explanation."""
        before = self.read()
        yield
        after = self.read()
        found[name] = {key: round((after[key] - before[key]) / self.explanations, 2) for key in before}


def pictures(count: int) -> list[bytes]:
    """PNG files of drawn scenes."""
    files: list[bytes] = []
    for seed in range(count):
        file = io.BytesIO()
        scene(seed, SIDE).image.save(file, "PNG")
        files.append(file.getvalue())
    return files


def measure(jobs: int, kernels: int) -> dict[str, Figures]:
    """Figures of a submission with its solution, the same time idle, a drawn panel, and polls."""
    found: dict[str, Figures] = {}
    with private_stack(Settings(), "vgg_mini") as stack, Client(stack.url) as client:
        meter = Meter(stack, jobs * kernels)
        files = pictures(jobs)
        asked: dict[str, Any] = {
            "model": "vgg_mini",
            "layer": "conv2_2",
            "kernels": f"top:{kernels}",
            "effort": "quick",
        }
        client.explain([pictures(jobs + 1)[-1]], **asked).wait()  # warm up
        begin = time.monotonic()
        with meter.over(found, "explained"):
            ended = [job.wait() for job in [client.explain([file], **asked) for file in files]]
        seconds = time.monotonic() - begin
        with meter.over(found, "idle, as long"):
            time.sleep(seconds)
        with meter.over(found, "panel drawn"):
            for job in ended:
                for result in job.results:
                    httpx.get(stack.url + result.artifacts["panel.png"], timeout=60).raise_for_status()
        with httpx.Client(base_url=stack.url) as polling, meter.over(found, f"{POLLS} polls"):
            for job in ended:
                for _ in range(POLLS * kernels):
                    polling.get(f"/jobs/{job.id}").raise_for_status()
        found["finished"] = {"redis_bytes_per_finished_job": _archived(meter, jobs)}
        found["memory, MB"] = {name: round(one.memory_info().rss / 1e6) for name, one in meter.processes.items()}
    return found


def _archived(meter: Meter, jobs: int) -> float:
    """Bytes in Redis of an archived job, after all keys that expire within a day are deleted."""
    deadline = time.monotonic() + 60
    while meter.redis.zcard("ks:finished") and time.monotonic() < deadline:
        time.sleep(0.5)
    for pattern in ("ks:same:*", "ks:held:*", "ks:idempotency:*", "ks:done:*", "ks:watched:*", "ks:preview:*"):
        for key in meter.redis.scan_iter(pattern, 1000):
            meter.redis.delete(key)
    lists = [key for pattern in ("ks:jobs:*", "ks:expiring:*") for key in meter.redis.scan_iter(pattern)]
    left = [key for key in meter.redis.scan_iter("ks:*") if key not in lists and meter.redis.ttl(key) < 0]
    print("remaining keys:", ", ".join(sorted(left)), file=sys.stderr)
    return round(sum(meter.redis.memory_usage(key, samples=0) or 0 for key in lists) / (jobs + 1), 1)


def main() -> int:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--kernels", type=int, default=1, help="of each job; figures are per explanation")
    options = parser.parse_args()
    found = measure(options.jobs, options.kernels)
    if options.json:
        print(
            json.dumps(
                {"jobs": options.jobs, "kernels": options.kernels, "side": SIDE, "for_each_explanation": found},
                indent=1,
            )
        )
        return 0
    print(f"per explanation; {options.jobs} jobs of {options.kernels} on a picture of {SIDE}×{SIDE}")
    for name, figures in found.items():
        print(f"{name:14}", "  ".join(f"{key} {value:,.1f}" for key, value in figures.items() if value))
    return 0


if __name__ == "__main__":
    sys.exit(main())
