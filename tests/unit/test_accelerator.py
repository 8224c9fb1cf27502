"""Devices, cards and their memory, as far as can be tested without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kernelscope.stack import Stack, visible_cards
from shared.images import Frame
from shared.settings import Settings
from worker.engine.accelerator import choose, free_memory
from worker.engine.questions import NoSuchDevice
from worker.engine.speed import Speed, emulated, measured_speed, room_in_memory
from worker.process import make_device

GIB = 2**30


class Cards:
    """Torch on a machine with several cards."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        self.share = 1.0
        self.free, self.total, self.allocated, self.reserved = 60 * GIB, 80 * GIB, 4 * GIB, 6 * GIB
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, _: self._limit(share))
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: self.share)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (self.free, self.total))
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: self.allocated)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: self.reserved)

    def _limit(self, share: float) -> None:
        self.share = share


def test_the_first_card_is_taken_else_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto`; a number; the CPU although there are cards."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    Cards(monkeypatch, 0)
    assert choose("auto") == torch.device("cpu")
    cards = Cards(monkeypatch, 2)
    assert choose("auto") == choose("cuda") == torch.device("cuda:0")
    assert choose("cuda:1", 0.4) == torch.device("cuda:1")
    assert cards.share == 0.4
    assert choose("cpu") == torch.device("cpu")


def test_apple_s_gpu_is_taken_only_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` is the CPU on a Mac, since mps is untested."""
    Cards(monkeypatch, 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose("auto") == torch.device("cpu")
    assert choose("mps") == torch.device("mps")


@pytest.mark.parametrize(
    ("name", "cards", "visible", "said"),
    [
        ("cuda", 0, None, "torch sees no card"),
        ("cuda:2", 2, None, "torch sees 2 cards: cuda:0 to cuda:1"),
        ("cuda:1", 1, "3", r"torch sees 1 card \(CUDA_VISIBLE_DEVICES=3\): cuda:0 to cuda:0"),
        ("mps", 0, None, "KERNELSCOPE_DEVICE is mps"),
        ("gpu", 1, None, "'gpu'; it must be auto, cpu, mps, cuda or cuda:N"),
        ("meta", 1, None, "'meta'; it must be"),
        ("", 1, None, "''; it must be"),
    ],
)
def test_a_device_that_is_not_there_is_named(
    name: str, cards: int, visible: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error lists what is available."""
    Cards(monkeypatch, cards)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(NoSuchDevice, match=said):
        choose(name)


def test_a_worker_without_its_device_says_so_in_a_line() -> None:
    """It ends, and takes no job."""
    asked = [
        sys.executable,
        "-c",
        "import os; os.environ['KERNELSCOPE_DEVICE'] = 'gpu'; from worker.app import main; main()",
    ]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith(
        "this worker cannot start: KERNELSCOPE_DEVICE is 'gpu'; it must be auto, cpu, mps, cuda or cuda:N\n"
    )


def test_the_memory_that_may_be_taken_ends_at_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Free memory within the process's share, at least 0, and the batches that fit into it."""
    cards = Cards(monkeypatch, 1)
    device = torch.device("cuda:0")
    assert free_memory(device) == (60 + 6 - 4) * GIB
    cards.share = 0.25
    assert free_memory(device) == (20 - 4) * GIB
    assert room_in_memory(Speed(torch.float32, 0.01, GIB, 8, 512), device) == int(0.8 * 16)
    cards.share = 0.01
    assert free_memory(device) == 0


@pytest.mark.parametrize(
    ("limit", "threads"),
    [("250000 100000\n", 2), ("50000 100000\n", 1), ("800000 100000\n", 3), ("max 100000\n", 3), (None, 3), ("", 3)],
)
def test_a_worker_has_the_threads_that_its_container_has_time_for(
    limit: str | None, threads: int, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole cores, at least one, never more than before; the engine's thread has as many."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    file = tmp_path / "cpu.max"
    monkeypatch.setattr("worker.engine.accelerator.CPU_MAX", file)
    if limit is not None:
        file.write_text(limit)
    try:
        make_device(settings.model_copy(update={"device": "cpu", "engine": "torch"}))
        with ThreadPoolExecutor(1) as other:
            assert other.submit(torch.get_num_threads).result() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("limit", "free"),
    [(f"{GIB}\n", 0.5 * GIB), ("max\n", 100 * GIB), (None, 100 * GIB)],
    ids=["limit", "none", "no file"],
)
def test_files_in_the_cache_take_no_container_s_memory(
    limit: str | None, free: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 1 GiB 0.9 are in use, 0.4 of them page cache: half a GiB is free."""
    monkeypatch.setattr("worker.engine.speed.CGROUP", tmp_path)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=100 * GIB))
    if limit:
        (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text(f"{int(0.9 * GIB)}\n")
    (tmp_path / "memory.stat").write_text(f"anon 12345\ninactive_file {int(0.4 * GIB)}\nactive_file 7\n")
    room = room_in_memory(Speed(torch.float32, 0.01, 2**20, 8, 512), torch.device("cpu"))
    assert room == pytest.approx(0.8 * free / 2**20, abs=2)


def test_bfloat16_that_is_far_slower_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """If an evaluation of the layer takes far longer than in float32, whatever the small network shows."""
    tried: list[torch.dtype] = []

    def evaluate(cut: nn.Module, image: torch.Tensor, bounds: object, precision: torch.dtype) -> torch.Tensor:
        del cut, bounds
        tried.append(precision)
        time.sleep(0.2 if precision is torch.bfloat16 else 0.005)
        return image.detach()

    monkeypatch.setattr("worker.engine.speed._evaluate", evaluate)
    monkeypatch.setattr("worker.engine.speed.emulated", lambda _: False)
    assert measured_speed(nn.Identity(), Frame(8, 8), torch.device("cpu")).precision is torch.float32
    assert tried.count(torch.bfloat16) == 1


@pytest.mark.parametrize("slow", [True, False])
def test_bfloat16_without_instructions_for_it_is_tried_on_a_small_network(
    monkeypatch: pytest.MonkeyPatch, *, slow: bool
) -> None:
    """An evaluation of the layer in it may take a minute, and the worker would seem to hang."""
    tried: list[nn.Module] = []
    layer = nn.Identity()

    def evaluate(cut: nn.Module, image: torch.Tensor, bounds: object, precision: torch.dtype) -> torch.Tensor:
        del bounds
        half = precision is torch.bfloat16
        tried.extend([cut] if half else [])
        time.sleep(0.1 if half and slow else 0.005)
        return image.detach()

    monkeypatch.setattr("worker.engine.speed._evaluate", evaluate)
    monkeypatch.setattr("worker.engine.speed.emulated", emulated.__wrapped__)
    found = measured_speed(layer, Frame(8, 8), torch.device("cpu")).precision
    assert (layer in tried) is not slow
    assert not slow or found is torch.float32


def test_cards_are_those_that_are_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By CUDA_VISIBLE_DEVICES, up to the first -1; else by nvidia-smi; else none."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1, 3,-1,2")
    assert visible_cards() == ["1", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_cards() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_cards() == []
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho GPU-aa\necho GPU-bb\n")
    program.chmod(0o755)
    assert visible_cards() == ["GPU-aa", "GPU-bb"]
    program.write_text(
        "#!/bin/sh\necho 'NVIDIA-SMI has failed because it could not communicate with the driver'\nexit 9\n"
    )
    assert visible_cards() == []


def test_a_machine_with_several_cards_has_a_worker_for_each(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each worker sees its card only; with one card, or a named device, there is one worker."""
    said: list[str] = []
    stack = Stack(settings.model_copy(update={"device": "auto", "worker_metrics_bind": "127.0.0.1:9101"}), said.append)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,5")
    programs = dict(stack._workers())
    assert [own["CUDA_VISIBLE_DEVICES"] for own in programs.values()] == ["0", "5"]
    assert [own["KERNELSCOPE_WORKER_METRICS_BIND"] for own in programs.values()] == ["127.0.0.1:9101", "127.0.0.1:9102"]
    assert list(programs) == ["worker-0", "worker-1"]
    assert said == ["2 cards: a worker for each"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert [name for name, _ in stack._workers()] == ["worker"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,5")
    stack.settings = settings.model_copy(update={"device": "cuda:1"})
    assert [name for name, _ in stack._workers()] == ["worker"]


def test_without_a_card_the_gpu_benchmark_says_so(tmp_path: Path) -> None:
    """Exit code 2, and no file."""
    if torch.cuda.is_available():
        pytest.skip("there is one")
    out = tmp_path / "performance-gpu.md"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--out", out], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("no device to measure: --device is cuda, but torch sees no card")
    assert not out.exists()


@pytest.mark.slow
def test_the_gpu_benchmark_writes_its_document(tmp_path: Path) -> None:
    """As a trial on the CPU: the tests are skipped, and the throughput is measured."""
    out = tmp_path / "performance-gpu.md"
    words = ["--device", "cpu", "--quick", "--parts", "tests", "throughput", "--layer", "vgg_mini/conv3_1", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--out", out, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["parts"]["tests"]["failed"] == []
    text = out.read_text()
    assert f"| torch | {torch.__version__} |" in text
    assert "| vgg_mini conv3_1 | engine's choice |" in text
    assert "With the marker `gpu`: " in text
