"""The device of a worker process, and its share of the device's memory and of the CPU."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from worker.engine.questions import NoSuchDevice
from worker.networks.failures import out_of_memory

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")  # a container's "QUOTA PERIOD" in µs of CPU time, or "max PERIOD"


def limit_threads_to_quota() -> int:
    """Limit torch to as many threads as the container's CPU quota has cores. Returns the number of threads.

    By default torch has one thread for each core of the machine, whatever the limit of Docker or Kubernetes; the
    threads would spend the quota waiting for each other.
    """
    try:
        quota, period = CPU_MAX.read_text().split()
        cores = int(quota) // int(period)
    except (OSError, ValueError):  # no cgroup of version 2, or no limit
        return torch.get_num_threads()
    torch.set_num_threads(max(1, min(cores, torch.get_num_threads())))
    return torch.get_num_threads()


def choose(name: str, memory_share: float = 1.0) -> torch.device:
    """The device of this name.

    Args:
        name: `auto` (the first visible card, else the CPU), `cpu`, `cuda`, `cuda:1`, `mps` (Apple's GPU; never by
            `auto`, since it is untested).
        memory_share: the fraction of a card's memory that this process may allocate, 0 to 1; torch enforces it.

    Raises:
        NoSuchDevice: the name is invalid, or this machine has no such device.
    """
    # Batches often change their size, which would fragment fixed segments.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    device = torch.device("cpu") if name == "cpu" else _named(name)
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(memory_share, device)
        # Full float32: by default convolutions have ten bits of mantissa (TF32).
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return device


def has_bfloat16(device: torch.device) -> bool:
    """Whether this is a card of compute capability 8.0 or later, on which bfloat16 at least doubles the speed."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8


def free_memory(device: torch.device) -> int:
    """Bytes of a card that this process may still allocate: free memory, within the process's share."""
    free, total = torch.cuda.mem_get_info(device)
    allocated = torch.cuda.memory_allocated(device)
    share = torch.cuda.get_per_process_memory_fraction(device)
    return max(0, min(free + torch.cuda.memory_reserved(device), int(share * total)) - allocated)


def broken(error: Exception) -> bool:
    """Whether this is an error of the device itself, after which its context cannot be used."""
    fatal: type[Exception] | None = getattr(torch, "AcceleratorError", None)
    matches = any(word in str(error) for word in ("CUDA error", "cuDNN error", "CUBLAS_STATUS"))
    return not out_of_memory(error) and ((fatal is not None and isinstance(error, fatal)) or matches)


def check(device: torch.device) -> None:
    """A self-test: compare a small forward and backward pass on the device with the CPU's.

    Raises:
        RuntimeError: the results differ, or the device fails.
    """
    generator = torch.Generator().manual_seed(0)
    image, weight = torch.rand(2, 3, 32, 32, generator=generator), torch.rand(8, 3, 3, 3, generator=generator) - 0.5
    found = []
    for where in (torch.device("cpu"), device):
        x = image.to(where).requires_grad_()
        maps = torch.nn.functional.conv2d(x, weight.to(where)).relu()
        (gradient,) = torch.autograd.grad(maps.square().sum(), x)
        found.append((maps.detach().cpu(), gradient.cpu()))
    for expected, mine in zip(*found, strict=True):
        if not torch.allclose(expected, mine, rtol=0.01, atol=0.01 * float(expected.abs().max())):
            raise RuntimeError(f"results of {device} differ from the CPU's")


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
    raise NoSuchDevice(f"KERNELSCOPE_DEVICE is {name}, but {_available(cards, apple=apple)}")


def _available(cards: int, *, apple: bool) -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    shown = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"
    if cards:
        return f"torch sees {cards} card{'s' if cards > 1 else ''}{shown}: cuda:0 to cuda:{cards - 1}"
    cause = "" if torch.version.cuda else f"; torch {torch.__version__} is a build without CUDA"
    return f"torch sees no card{shown}{cause}{'; mps is available' if apple else ''}"
