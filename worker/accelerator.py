"""Which device a worker computes on, and how much of its memory and of the CPU is the worker's.

One process has one device.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from worker.questions import NoSuchDevice

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")  # a container's "QUOTA PERIOD" in µs of CPU time, or "max PERIOD"


def keep_to_quota() -> int:
    """Let torch have no more threads than the container has cores' worth of time. Returns how many it has then.

    By itself it has one for each core of the machine, whatever `docker run --cpus` or a limit of Kubernetes says, and
    they use the time up waiting for each other.
    """
    try:
        quota, period = CPU_MAX.read_text().split()
        cores = int(quota) // int(period)
    except (OSError, ValueError):  # no cgroup of version 2, or no limit
        return torch.get_num_threads()
    torch.set_num_threads(max(1, min(cores, torch.get_num_threads())))
    return torch.get_num_threads()


def choose(name: str, memory_share: float = 1.0) -> torch.device:
    """The device of a name.

    Args:
        name: `auto` (the first visible card, else the CPU), `cpu`, `cuda`, `cuda:1`, `mps` (Apple's GPU; never by
            `auto`, as it has no float64 and no explanation was computed there yet).
        memory_share: of a card's memory that this process may take, 0 to 1; torch refuses what is beyond.

    Raises:
        NoSuchDevice: no such name, or not on this machine.
    """
    device = torch.device("cpu") if name == "cpu" else _named(name)
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(memory_share, device)
    return device


def free_memory(device: torch.device) -> int:
    """Bytes of a card that this process may still take: what is free there, and no more than its share."""
    free, total = torch.cuda.mem_get_info(device)
    allocated = torch.cuda.memory_allocated(device)
    share = torch.cuda.get_per_process_memory_fraction(device)
    return max(0, min(free + torch.cuda.memory_reserved(device), int(share * total)) - allocated)


def _named(name: str) -> torch.device:
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    apple = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda:0" if cards else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type == "cuda" and (device.index or 0) < cards:
        return torch.device("cuda", device.index or 0)
    if device.type == "mps" and apple:
        return device
    if device.type not in ("cuda", "mps"):
        raise NoSuchDevice(f"KERNELSCOPE_DEVICE is {name!r}; it must be auto, cpu, mps, cuda or cuda:N")
    raise NoSuchDevice(f"KERNELSCOPE_DEVICE is {name}, but {_what_there_is(cards, apple=apple)}")


def _what_there_is(cards: int, *, apple: bool) -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    shown = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"
    if cards:
        return f"torch sees {cards} card{'s' if cards > 1 else ''}{shown}: cuda:0 to cuda:{cards - 1}"
    cause = "" if torch.version.cuda else f"; torch {torch.__version__} is a build without CUDA"
    return f"torch sees no card{shown}{cause}{'; mps is there' if apple else ''}"
