"""`kernelscope doctor`: what is wrong with this machine or a server, and how to repair it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import psutil
import typer
from pydantic import ValidationError
from rich.text import Text

from kernelscope.client.transport import DIRECT
from kernelscope.localredis import redis_for, version_of
from kernelscope.running import running_in, url_of, why_not_free
from kernelscope.serving import AsJson, Key, Url, is_kernelscope, local_settings
from kernelscope.supervise import StackError
from kernelscope.terminal import document, out, say
from shared.advice import advice, named_in
from shared.settings import ENV_FILE, Settings

GIGABYTE = 1e9
LEAST_DISK, GOOD_DISK = 1 * GIGABYTE, 5 * GIGABYTE
LEAST_MEMORY = 3 * GIGABYTE  # a worker with VGG16 and a batch
OLDEST_REDIS = (6, 2)
CHECKUP_SECONDS = 120
MARKS = {"ok": ("   ok", "green"), "warning": (" look", "yellow"), "problem": ("wrong", "red")}


@dataclass(frozen=True)
class Finding:
    """What a check found, and what to do about it."""

    check: str
    state: Literal["ok", "warning", "problem"]
    found: str
    mend: str = ""  # how to repair it; the name is part of the JSON output


def doctor(
    data_dir: Annotated[Path | None, typer.Option(help="Data folder of `kernelscope up`.")] = None,
    port: Annotated[int | None, typer.Option(help="Port that `kernelscope up` would use.")] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Find what is wrong with this machine, or with the server at --url, and say how to repair it.

    Exit code 0: nothing is wrong; 1: something is.

    Example: kernelscope doctor

    Example: kernelscope doctor --port 8080 --json
    """
    findings: list[Finding] = []
    for finding in _server(url, key) if url else _machine(key, {"data_dir": data_dir, "port": port}):
        findings.append(finding)
        if not as_json:
            _show(finding)
    if as_json:
        document([asdict(finding) for finding in findings])
    wrong = sum(finding.state == "problem" for finding in findings)
    if wrong:
        raise typer.Exit(1)
    if not as_json:
        out.print("nothing is wrong")


def _show(finding: Finding) -> None:
    mark, colour = MARKS[finding.state]
    out.print(Text(mark, style=colour).append(f"  {finding.check}: {finding.found}", style="default"), soft_wrap=True)
    if finding.mend:
        say(f"       → {finding.mend}", out)


def named(error: Any) -> str:
    """What is wrong with a setting, by its name: an error of pydantic's in words."""
    name = "_".join(map(str, error["loc"])).upper()
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"KERNELSCOPE_{name}: {message}" if name else message


def _machine(key: str | None, options: dict[str, Any]) -> Iterator[Finding]:
    """Every check, the quick ones first."""
    try:
        settings = local_settings(quiet=True, **options)
    except ValidationError as error:
        for one in error.errors():
            yield Finding("settings", "problem", named(one), "correct or unset it; docs/settings.md lists all settings")
        return
    mistakes = advice(settings)
    for sentence in mistakes:
        yield Finding("settings", "warning", sentence, "correct or unset it; docs/settings.md lists all settings")
    if not mistakes:
        read = f", those in {ENV_FILE} included" if named_in(ENV_FILE) else ""
        yield Finding("settings", "ok", f"every KERNELSCOPE_… that is set can be used{read}")
    yield Finding("Python", "ok", f"{sys.version.split()[0]} at {sys.executable}")
    yield _redis(settings.data_dir)
    yield _folder(settings.data_dir)
    yield _disk(settings.data_dir)
    yield _memory()
    yield from _stack(settings, key)
    yield from _checkup(settings)


def _redis(folder: Path) -> Finding:
    try:
        path = redis_for(folder)
    except StackError as error:
        return Finding("Redis", "problem", "no redis-server that can be used", str(error))
    version = version_of(path)
    if version is None or version < OLDEST_REDIS:
        found = "does not run" if version is None else f"is {version[0]}.{version[1]}"
        return Finding("Redis", "problem", f"{path} {found}", "install 6.2 or newer")
    return Finding("Redis", "ok", f"{path}, {version[0]}.{version[1]}")


def _folder(folder: Path) -> Finding:
    parent = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
        repair = "change its owner, or choose another: --data-dir, KERNELSCOPE_DATA_DIR"
        return Finding("data folder", "problem", f"{folder} cannot be written: {parent} is not yours", repair)
    return Finding("data folder", "ok", str(folder))


def _disk(folder: Path) -> Finding:
    parent = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(parent).free
    found = f"{free / GIGABYTE:.1f} GB free at {parent}"
    repair = "free some space, choose another --data-dir, or keep jobs for a shorter time (KERNELSCOPE_RETENTION_DAYS)"
    if free < LEAST_DISK:
        return Finding(
            "disk", "problem", f"{found}: Redis and the pictures need {LEAST_DISK / GIGABYTE:.0f} GB", repair
        )
    return Finding("disk", "ok", found) if free >= GOOD_DISK else Finding("disk", "warning", found, repair)


def _memory() -> Finding:
    free = psutil.virtual_memory().available
    found = f"{free / GIGABYTE:.1f} GB available"
    if free < LEAST_MEMORY:
        return Finding("memory", "warning", found, "a worker with VGG-16 needs 3 GB; close other programs")
    return Finding("memory", "ok", found)


def _stack(settings: Settings, key: str | None) -> Iterator[Finding]:
    """Whether one runs here, and its state; else whether one could start."""
    url = url_of(settings.host, settings.port)
    if found := running_in(settings.data_dir):
        yield Finding("stack", "ok", f"one runs in {settings.data_dir}: {found}")
        yield from _server(found.url or url, key)
    elif is_kernelscope(url):
        yield Finding("port", "warning", f"another Kernelscope server listens on {url}", "use it, or choose --port")
        yield from _server(url, key)
    elif reason := why_not_free(settings.host, settings.port):
        repair = f"stop that program, or choose another port: kernelscope up --port {settings.port + 1}"
        yield Finding("port", "problem", f"{settings.port} is not available: {reason}", repair)
    else:
        yield Finding("port", "ok", f"{settings.port} is free")


def _server(url: str, key: str | None) -> Iterator[Finding]:
    """Redis, the store and the workers, as the API reports them."""
    url = url.rstrip("/")
    try:
        answer = _got(f"{url}/readyz", headers=_bearer(key), timeout=10)
        status = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        reason = str(error) or type(error).__name__
        yield Finding("server", "problem", f"{url} does not answer: {reason}", "`kernelscope up` starts one")
        return
    if answer.status_code != 200:
        repair = "solve that (are Redis and the object store running?); jobs then continue by themselves"
        yield Finding("server", "problem", f"{url} takes no jobs: {status.get('detail', answer.status_code)}", repair)
        return
    yield Finding("server", "ok", f"{url} takes jobs; Kernelscope {status.get('version', '')}".strip())
    for sentence in status.get("warnings", []):
        yield Finding("server", "warning", sentence)
    yield _workers(status.get("workers", []))
    yield from _admission(url, key)


def _got(url: str, **options: Any) -> httpx.Response:
    with httpx.Client(mounts=DIRECT) as client:
        return client.get(url, **options)


def _bearer(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def _workers(workers: list[dict[str, Any]]) -> Finding:
    ready = [worker for worker in workers if worker["ready"]]
    if ready:
        listed = [f"{one['id']} on {one['device']}: {', '.join(one['networks'])}" for one in ready if "id" in one]
        found = "; ".join(listed) or f"{len(ready)} ready; details need an API key"
        return Finding("workers", "ok", found)
    if workers:
        return Finding("workers", "warning", "still loading their networks", "wait; logs/worker.log says more")
    repair = (
        "start one (`kernelscope up` starts its own again), and read logs/worker.log in its data folder; jobs wait. "
    )
    repair += "while `kernelscope up` downloads weights, there is none yet"
    return Finding("workers", "problem", "none is running: no heartbeat for 15 s", repair)


def _admission(url: str, key: str | None) -> Iterator[Finding]:
    try:
        answer = _got(f"{url}/models", headers=_bearer(key), timeout=10)
    except httpx.HTTPError as error:
        yield Finding("server", "warning", f"{url}/models does not answer ({type(error).__name__})", "try again")
        return
    if answer.status_code == 401:
        repair = "ask the operator for one (`kernelscope keys add NAME`), and give it as --key or KERNELSCOPE_API_KEY"
        yield Finding("API key", "problem" if key else "warning", answer.json()["detail"], repair)


def _checkup(settings: Settings) -> Iterator[Finding]:
    """Torch, the cards and the weights: as a worker finds them, in a process of its own, which may crash."""
    environment = {
        "KERNELSCOPE_WEIGHTS_DIR": str(settings.weights.absolute()),
        "KERNELSCOPE_DOWNLOAD_WEIGHTS": str(settings.download_weights),
        "KERNELSCOPE_PRELOAD": ",".join(settings.preload),
    }
    try:
        ran = subprocess.run(
            [sys.executable, "-m", "worker.checkup"],
            capture_output=True,
            text=True,
            check=False,
            timeout=CHECKUP_SECONDS,
            env={**os.environ, **environment},
        )
        report = json.loads(ran.stdout.splitlines()[-1]) if ran.returncode == 0 else None
    except (subprocess.TimeoutExpired, ValueError, IndexError):
        ran, report = None, None
    if report is None:
        lines = ran.stderr.strip().splitlines() if ran else [f"no answer in {CHECKUP_SECONDS} s"]
        repair = (
            "torch and torchvision do not fit together, or are damaged; install the pair that is locked: "
            "pip install --require-hashes --force-reinstall -r requirements/worker.txt (or `make clean setup`)"
        )
        yield Finding("torch", "problem", lines[-1] if lines else "it does not run", repair)
        return
    yield Finding("torch", "ok", f"{report['torch']} with torchvision {report['torchvision']}")
    yield _card(report)
    yield from _weights(settings, report)


def _card(report: dict[str, Any]) -> Finding:
    if report["cards"]:
        return Finding("GPU", "ok", ", ".join(report["cards"]))
    if report["mps"]:
        return Finding("GPU", "ok", "Apple's, which is used where KERNELSCOPE_DEVICE is mps (untested); else the CPU")
    if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists():
        repair = "nvidia-smi says whether the driver runs; torch.version.cuda must not be newer than the driver's"
        return Finding("GPU", "warning", "there is a GPU, but torch cannot use it", repair)
    return Finding("GPU", "ok", "none; explanations are computed on the CPU")


def _weights(settings: Settings, report: dict[str, Any]) -> Iterator[Finding]:
    for name, trouble in report["files"].items():
        if trouble:
            repair = f"rename it, put the right one in its place, or remove it from {settings.weights}"
            yield Finding("weights", "problem", f"{name}: {trouble}", repair)
    for name, network in report["networks"].items():
        if network["source"] == "code":
            repair = "" if network["available"] else "correct the code that KERNELSCOPE_MODELS names (docs/networks.md)"
            yield Finding(
                "weights", "ok" if network["available"] else "problem", f"{name}: {network['reason']}", repair
            )
        elif not network["available"]:
            repair = (
                f"put {name}.pth or {name}-….pth, or the same with .safetensors, into {settings.weights}, "
                "or allow KERNELSCOPE_DOWNLOAD_WEIGHTS"
            )
            yield Finding("weights", "problem", network["reason"], repair)
        elif network["source"] == "download":
            repair = f"python -m worker.weights {name} downloads them now"
            yield Finding("weights", "warning", f"{name}: {network['reason']}", repair)
        else:
            yield Finding("weights", "ok", f"{name}: {network['reason']}")
