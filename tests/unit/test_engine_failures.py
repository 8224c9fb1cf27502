"""A bug concerns one question, a broken device ends the engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.unit.engines import ask, question, top
from worker.engine import answers
from worker.engine.device import TorchDevice
from worker.engine.dummy import DummyBatch
from worker.engine.engine import Engine
from worker.engine.questions import Answer, Answered
from worker.methods.suppression import SolverBatch


class Broken(DummyBatch):
    """A batch whose device fails."""

    def step(self) -> Answered:
        """Raise CUDA's error."""
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_a_broken_device_ends_the_engine(
    device: TorchDevice, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The process ends, nothing is failed, and the jobs are retried after their leases expire."""
    shown: list[Exception] = []
    monkeypatch.setattr(device, "batch", lambda _: Broken())
    engine = Engine(device, shown.append)
    asked = engine.ask([question(1)])
    engine._thread.join(5)
    assert "illegal memory access" in str(shown[0])
    assert asked._answers.empty()
    assert "is broken" in caplog.text


@pytest.mark.parametrize("where", [(answers, "metrics"), (answers, "_posed"), (SolverBatch, "step")])
def test_a_bug_in_one_problem_is_its_own(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: tuple[Any, str]
) -> None:
    """The other questions of the batch are answered, and the log has the traceback."""
    function = getattr(*where)
    kernels = top(engine)[:3]
    bad = kernels[1]

    def buggy(*arguments: Any) -> Any:
        of = {"metrics": lambda: arguments[2], "_posed": lambda: torch.tensor(arguments[0].kernel)}
        own: Any = of.get(where[1], lambda: arguments[0].problems.kernel)
        if bool((own() == bad).any()):
            raise ZeroDivisionError("a bug")
        return function(*arguments)

    monkeypatch.setattr(where[0], where[1], buggy)
    found = ask(engine, [question(kernel) for kernel in kernels])
    assert isinstance(found[0], Answer)
    assert isinstance(found[2], Answer)
    assert str(found[1]) == "internal error (ZeroDivisionError); the worker's log has the details"
    assert "a bug" in caplog.text


def test_an_error_of_cudnn_is_the_devices(device: TorchDevice) -> None:
    """Its context cannot be used any more; running out of memory is not such an error."""
    assert device.broken(RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"))
    assert device.broken(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not device.broken(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert not device.broken(torch.OutOfMemoryError("CUDA out of memory"))
    assert not device.broken(ZeroDivisionError())
