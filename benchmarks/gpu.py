"""All measurements that need a GPU, in one run: `make bench-gpu`, or `python -m benchmarks.gpu [--quick] [--json]`.

Runs the tests that need a card (`pytest -m gpu`), the engine's throughput and memory, and the service, and writes the
results to docs/performance-gpu.md with card, driver and date. A part that fails is reported there and does not stop the
others; the exit code is then 1, and 2 without such a device.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import torch

from worker.engine.accelerator import choose
from worker.engine.questions import NoSuchDevice

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "performance-gpu.md"
PART_SECONDS = 1800

Report = dict[str, Any]


def tests(options: argparse.Namespace) -> Report:
    """The number of passed tests with the marker `gpu`, and the failed ones."""
    del options
    with tempfile.TemporaryDirectory() as folder:
        xml = Path(folder) / "junit.xml"
        _run("pytest", "-m", "gpu", "-q", f"--junitxml={xml}", allowed=(0, 1, 5))
        cases = list(ET.parse(xml).iter("testcase"))  # noqa: S314 - pytest's own file
    outcome = {case.get("name", ""): {child.tag for child in case} & {"failure", "error", "skipped"} for case in cases}
    bad = sorted(name for name, tags in outcome.items() if tags - {"skipped"})
    skipped = sum("skipped" in tags for tags in outcome.values())
    return {"passed": len(cases) - len(bad) - skipped, "skipped": skipped, "failed": bad}


def throughput(options: argparse.Namespace) -> Report:
    """`benchmarks.throughput`."""
    words = [word for layer in options.layer or () for word in ("--layer", layer)]
    words += ["--evals", str(options.evals), "--most", str(options.most), *_quick(options)]
    return _json("benchmarks.throughput", "--device", options.device, *words)


def service(options: argparse.Namespace) -> Report:
    """`benchmarks.service`."""
    return _json("benchmarks.service", *_quick(options))


PARTS: dict[str, Callable[[argparse.Namespace], Report]] = {
    "tests": tests,
    "throughput": throughput,
    "service": service,
}


def machine(device: torch.device) -> dict[str, str]:
    """Card, driver, versions, date."""
    found = {
        "device": "the CPU, as a trial of this command" if device.type == "cpu" else str(device),
        "torch": torch.__version__,
        "CUDA": torch.version.cuda or "none",
        "Python": sys.version.split()[0],
        "date": datetime.now(UTC).date().isoformat(),
    }
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
        found["memory"] = f"{torch.cuda.get_device_properties(device).total_memory / 2**30:.0f} GiB"
        if program := shutil.which("nvidia-smi"):
            query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
            found["driver"] = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    return found


def document(report: Report) -> str:
    """docs/performance-gpu.md."""
    lines = ["# How fast it is on a GPU", "", f"Written by `{report['command']}`; do not edit.", ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in report["machine"].items()), ""]
    for name, draw in (("tests", _tests), ("throughput", _throughput), ("service", _service)):
        part = report["parts"].get(name)
        if part is None:
            continue
        lines += [f"## {name.capitalize()}", ""]
        lines += [f"Failed: {part['error']}"] if "error" in part else draw(part)
        lines += ["", f"It took {report['seconds'][name]:.0f} s.", ""]
    return "\n".join(lines)


def _tests(part: Report) -> list[str]:
    failed = ", ".join(part["failed"]) or "none"
    return [f"With the marker `gpu`: {part['passed']} passed, {part['skipped']} skipped; failed: {failed}."]


def _throughput(part: Report) -> list[str]:
    lines = [
        f"Explanations of {part['evals']} evaluations; `gain` is relative to one after another, in the same run.",
        "",
        "| layer | batch | explanations a second | gain | largest difference of a final loss | memory, MB |",
        "|---|---|---|---|---|---|",
    ]
    for run in part["runs"]:
        where = f"| {run['model']} {run['layer']} | {run['batch']} | {run['per_second']:.2f} |"
        if "gain" in run:
            rest = f" {run['gain']:.2f}× | {run['loss_difference']:.2%} | {run['device_memory_mb']:.0f} |"
        else:
            rest = " | | |"
        lines.append(where + rest)
    return lines


def _service(part: Report) -> list[str]:
    return _as_json(part)


def _as_json(part: Report) -> list[str]:
    return ["```json", json.dumps(part, indent=1, ensure_ascii=False), "```"]


def main() -> int:
    """Run the parts, write the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="such as `cuda:1`; `cpu` as a trial")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--layer", action="append", help="of the throughput, `vgg16/conv3_3`; may be repeated")
    parser.add_argument("--evals", type=int, default=100, help="of an explanation of the throughput")
    parser.add_argument("--most", type=int, default=256, help="the throughput's largest batch")
    parser.add_argument("--quick", action="store_true", help="fewer evaluations and rounds")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--json", action="store_true", help="print everything that was measured")
    options = parser.parse_args()
    try:
        device = choose(options.device)
    except NoSuchDevice as error:
        print(f"no device to measure: {error}".replace("KERNELSCOPE_DEVICE", "--device"), file=sys.stderr)
        return 2
    command = " ".join(["python -m benchmarks.gpu", *sys.argv[1:]])
    report: Report = {"command": command, "machine": machine(device), "parts": {}, "seconds": {}}
    for name in options.parts:
        print(f"{name} …", file=sys.stderr, flush=True)
        begin = time.monotonic()
        try:
            report["parts"][name] = PARTS[name](options)
        except (subprocess.SubprocessError, json.JSONDecodeError, ET.ParseError, OSError) as error:
            report["parts"][name] = {"error": str(error)}
        report["seconds"][name] = time.monotonic() - begin
        options.out.write_text(document(report), encoding="utf-8")  # after each part, in case the next one fails
    if options.json:
        print(json.dumps(report, indent=1, ensure_ascii=False))
    print(f"written: {options.out}", file=sys.stderr)
    return int(any("error" in part or part.get("failed") for part in report["parts"].values()))


def _quick(options: argparse.Namespace) -> list[str]:
    return ["--quick"] if options.quick else []


def _json(module: str, *words: str) -> Report:
    report: Report = json.loads(_run(module, "--json", *words))
    return report


def _run(module: str, *words: str, allowed: tuple[int, ...] = (0,)) -> str:
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=PART_SECONDS, check=False)
    if done.returncode not in allowed:
        raise subprocess.CalledProcessError(done.returncode, f"python -m {module}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
