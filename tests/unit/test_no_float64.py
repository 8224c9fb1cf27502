"""A device without float64: Apple's GPU, as far as it can be tested without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from worker.engine.quality import metrics
from worker.methods.suppression import PixelSpace, Problems, ssim

MPS = torch.device("mps")


class OnHost(Tensor):
    """A tensor on the CPU; all others are then on Apple's GPU."""


class Apple(TorchFunctionMode):
    """Torch on a Mac: tensors are on its GPU, unless they came out of `cpu()` or were created on the CPU."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = [*tree_leaves((args, kwargs or {}))]
        tensors = [one for one in given if isinstance(one, Tensor)]
        if function == Tensor.device.__get__:
            return torch.device("cpu") if isinstance(tensors[0], OnHost) else MPS
        if len({isinstance(one, OnHost) for one in tensors if one.ndim}) == 2 and function != Tensor.to:
            raise RuntimeError("Expected all tensors to be on the same device")
        on_host = isinstance(tensors[0], OnHost) if tensors else True
        if devices := [one for one in given if isinstance(one, torch.device)]:
            on_host = devices[-1] != MPS
        args, kwargs = tree_map(lambda one: torch.device("cpu") if one == MPS else one, (args, kwargs or {}))
        return tree_map(lambda one: self._placed(one, on_host or function == Tensor.cpu), function(*args, **kwargs))

    def _placed(self, found: Any, on_host: bool) -> Any:  # noqa: FBT001
        if not isinstance(found, Tensor):
            return found
        if found.dtype == torch.float64 and not on_host:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return found.as_subclass(OnHost if on_host else Tensor)


@pytest.fixture(autouse=True)
def windows() -> Iterator[None]:
    """Matrices that other tests have made on the CPU are not taken for some on this device, nor the reverse."""
    ssim._windows.cache_clear()
    yield
    ssim._windows.cache_clear()


def measured(*, signed: bool) -> tuple[Any, ...]:
    """What is computed in float64: the others' sum of a problem, and the metrics of X̂."""
    generator = torch.Generator().manual_seed(0)
    before, after = torch.rand(2, 3, 5, 14, 14, generator=generator, device=MPS) - 0.2
    before, after = (before, after) if signed else (before.relu(), after.relu())
    image, kernel = torch.rand(3, 3, 28, 28, generator=generator, device=MPS), torch.tensor([0, 4, 1], device=MPS)
    space = PixelSpace.of([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], MPS)
    weight = torch.ones(3, device=MPS)
    posed = Problems.pose(image, before, kernel, weight, weight, signed)
    assert posed.others_sum.device == posed.unit.device == image.device
    return posed.others_sum.tolist(), metrics(before, after, kernel, space.to_bytes(image), space)


@pytest.mark.parametrize("signed", [False, True])
def test_float64_is_computed_on_the_cpu(monkeypatch: pytest.MonkeyPatch, *, signed: bool) -> None:
    """The results are those of the CPU."""
    with Apple():
        found = measured(signed=signed)
    monkeypatch.setattr(f"{__name__}.MPS", torch.device("cpu"))
    assert found == measured(signed=signed)


def test_the_double_has_no_float64() -> None:
    """The test can fail: float64 and operations across devices are refused."""
    with Apple():
        values = torch.ones(3, device=MPS)
        with pytest.raises(TypeError, match="float64"):
            values.double()
        with pytest.raises(TypeError, match="float64"):
            values.sum(dtype=torch.float64)
        with pytest.raises(RuntimeError, match="same device"):
            values + values.cpu()
        assert values.cpu().double().sum().item() == 3
