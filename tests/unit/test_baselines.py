"""The baselines against the attribution library used directly, a second library, and the formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import Deconvolution, GuidedBackprop
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import squeezenet1_1, vgg11_bn
from zennit.composites import SpecialFirstLayerMapComposite
from zennit.rules import Norm, Pass, ReLUDeconvNet, ReLUGuidedBackprop, ZBox, ZPlus

from shared.drawings import scene
from shared.errors import DeviceOutOfMemory, SilentKernel
from tests.unit.tiny import images, network, space
from worker.engine import baseline_batch
from worker.engine.engine import Engine
from worker.engine.questions import Answer, Question
from worker.methods.baselines import attribution, estimated, private, rules
from worker.networks.architectures import layers_of

METHODS = ("guided_backprop", "deconvnet", "lrp")
KERNELS = torch.tensor([0, 3, 1])


def ours(cut: nn.Sequential, image: Tensor, kernel: Tensor, method: str, rule: str = "zplus") -> Tensor:
    """The worker's attribution."""
    own = private(cut, method)
    return attribution(own, image, kernel, method, rules(own, method, rule, space()))


def deep(width: int = 6) -> nn.Sequential:
    """Three convolutions, two poolings, float64."""
    torch.manual_seed(3)
    layers = nn.Sequential(*network(3)[:3], nn.Conv2d(4, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    return layers.append(nn.Conv2d(5, width, 3, padding=1)).double().requires_grad_(False).eval()


def with_averages(cut: nn.Sequential) -> nn.Sequential:
    """The layer's feature maps, with average-pooling instead of max-pooling."""
    return nn.Sequential(
        *(nn.AvgPool2d(2) if isinstance(module, nn.MaxPool2d) else module for module in cut), nn.ReLU()
    )


@pytest.mark.parametrize("method", METHODS)
def test_they_agree_with_the_attribution_library_used_directly(method: str) -> None:
    """To 1e-5 of the largest value, for each image and kernel by itself."""
    low, high = space().low[None], space().high[None]
    composite, plain = {
        "guided_backprop": (SpecialFirstLayerMapComposite([(nn.ReLU, ReLUGuidedBackprop())], []), None),
        "deconvnet": (SpecialFirstLayerMapComposite([(nn.ReLU, ReLUDeconvNet())], []), None),
        "lrp": (
            SpecialFirstLayerMapComposite(
                [(nn.ReLU, Pass()), (nn.AvgPool2d, Norm()), (nn.Conv2d, ZPlus())], [(nn.Conv2d, ZBox(low, high))]
            ),
            with_averages(deep()),
        ),
    }[method]
    found = ours(deep(), images(3), KERNELS, method)
    for row, kernel in enumerate(KERNELS.tolist()):
        image = images(3)[row : row + 1].requires_grad_()
        with composite.context(plain or nn.Sequential(*deep(), nn.ReLU())) as hooked:
            maps = hooked(image)[0, kernel]
            (expected,) = torch.autograd.grad(maps.square().sum() / 2 if method == "lrp" else maps.abs().sum(), image)
        torch.testing.assert_close(found[row], expected[0], rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(("method", "second"), [("guided_backprop", GuidedBackprop), ("deconvnet", Deconvolution)])
@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU activations")
def test_they_agree_with_a_second_library(method: str, second: Any) -> None:
    """On a VGG, where the rules are the same; its hooks require a module that it may change."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = private(deep(), method)

        def forward(self, image: Tensor) -> Tensor:
            maps: Tensor = self.layers(image)
            return maps.abs().sum(dim=(2, 3))

    expected = second(Sum()).attribute(images(3).requires_grad_(), target=KERNELS.tolist())
    found = ours(deep(), images(3), KERNELS, method)
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_lrp_is_what_its_formulas_say() -> None:
    """z⁺, z^B and average-pooling by the formulas, layer by layer."""
    cut = with_averages(deep())
    inputs = [images(1)]
    for module in cut:
        inputs.append(module(inputs[-1]))
    relevance = torch.zeros_like(inputs[-1])
    relevance[:, 3] = inputs[-1][:, 3]
    for index in reversed(range(len(cut))):
        module, x = cut[index], inputs[index]
        if isinstance(module, nn.AvgPool2d):
            shares = relevance / _stable(module(x))
            relevance = x * functional.interpolate(shares, scale_factor=2.0) / 4
        elif isinstance(module, nn.Conv2d):
            relevance = _z_box(module, x, relevance) if index == 0 else _z_plus(module, x, relevance)
    found = ours(deep(), images(1), torch.tensor([3]), "lrp")
    torch.testing.assert_close(found, relevance, rtol=0, atol=1e-6 * float(relevance.abs().max()))


def _stable(z: Tensor) -> Tensor:
    return z + 1e-6 * torch.where(z < 0, -1, 1)


def _z_plus(module: nn.Conv2d, x: Tensor, relevance: Tensor) -> Tensor:
    """R_in = x · W⁺ᵀ(R / (W⁺x + b⁺)), for x ≥ 0."""
    assert module.bias is not None
    positive = module.weight.clamp_min(0)
    shares = relevance / _stable(functional.conv2d(x, positive, module.bias.clamp_min(0), padding=1))
    return x * functional.conv_transpose2d(shares, positive, padding=1)


def _z_box(module: nn.Conv2d, x: Tensor, relevance: Tensor) -> Tensor:
    """R_in = x·Wᵀs − l·W⁺ᵀs − h·W⁻ᵀs with s = R / (Wx + b − W⁺l − b⁺ − W⁻h − b⁻)."""
    assert module.bias is not None
    low, high = (edge[None].expand_as(x) for edge in (space().low, space().high))
    parts = [
        (x, module.weight, module.bias),
        (low, module.weight.clamp_min(0), module.bias.clamp_min(0)),
        (high, module.weight.clamp_max(0), module.bias.clamp_max(0)),
    ]
    z, below, above = (functional.conv2d(value, weight, bias, padding=1) for value, weight, bias in parts)
    shares = relevance / _stable(z - below - above)
    back, least, most = (value * functional.conv_transpose2d(shares, weight, padding=1) for value, weight, _ in parts)
    return back - least - most


@pytest.mark.parametrize("rule", ["zplus", "gamma_epsilon"])
@pytest.mark.parametrize("method", METHODS)
def test_batch_mates_do_not_matter(method: str, rule: str) -> None:
    """Each row is the same as alone."""
    together = ours(deep(), images(3), KERNELS, method, rule)
    alone = torch.cat([ours(deep(), images(3)[[row]], KERNELS[[row]], method, rule) for row in range(3)])
    torch.testing.assert_close(together, alone)


def test_the_rules_of_lrp_differ() -> None:
    """With γ and ε negative weights contribute."""
    one, other = (ours(deep(), images(1), KERNELS[:1], "lrp", rule) for rule in ("zplus", "gamma_epsilon"))
    assert (one - other).abs().max() > 0.01 * one.abs().max()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("name", "make", "layer"), [("squeezenet1_1", squeezenet1_1, "fire3"), ("vgg11_bn", vgg11_bn, "conv2_1")]
)
def test_the_shared_network_stays_as_it_is(name: str, make: Any, layer: str, method: str) -> None:
    """Parameters, modules and hooks, in networks with fire modules, batch normalisation and in-place ReLUs."""
    torch.manual_seed(0)
    own_layers = layers_of(name)
    cut = own_layers.cut(own_layers.filled(make(weights=None).state_dict(), [layer]), layer)
    image = images(1, side=64).float()
    before, state = cut(image), {key: value.clone() for key, value in cut.state_dict().items()}
    modules = list(cut.modules())
    own = PixelSpaces.single
    copy = private(cut, method)
    assert torch.isfinite(attribution(copy, image, KERNELS[:1], method, rules(copy, method, "zplus", own))).all()
    assert list(cut.modules()) == modules
    assert all(torch.equal(value, state[key]) for key, value in cut.state_dict().items())
    assert not any(hooks for module in modules for hooks in (module._forward_hooks, module._backward_hooks))
    assert torch.equal(cut(image), before)


class PixelSpaces:
    """In single precision."""

    single = type(space())(space().mean.float(), space().std.float())


def test_an_attribution_becomes_an_image() -> None:
    """g/max|g| · X, or g scaled to [0, 1]; the mean colour where g is 0."""
    image, found = images(2), torch.zeros(2, 3, 12, 12, dtype=torch.float64)
    found[0, 0, 0, 0], found[0, 1, 1, 1] = -4, 2
    made = estimated(found, image, "max", space())
    assert made[0, 1, 1, 1] == image[0, 1, 1, 1] / 2
    outside = (-image[0, 0, 0, 0]).clamp(space().low[0, 0, 0], space().high[0, 0, 0])
    assert made[0, 0, 0, 0] == outside
    assert made.count_nonzero() == 2
    made = estimated(found, image, "minmax", space())
    assert made[0, 0, 0, 0] == 0
    torch.testing.assert_close(made[0, 2], image[0, 2] * 4 / 6)
    assert not made[1].any()


def question(kernel: int, method: str, **changes: Any) -> Question:
    """A question about a drawn picture."""
    return Question("vgg_mini", "conv2_2", np.asarray(scene(5, 96).image), kernel, 1.0, 1.0, method=method, **changes)


def test_the_engine_measures_them_like_suppression(engine: Engine) -> None:
    """All four of one kernel: the same maps before, and the same losses of the original and of the blank picture."""
    ranking = engine.call(engine.device.ranking, "vgg_mini", "conv2_2", np.asarray(scene(5, 96).image))
    asked = [question(ranking[0], method) for method in ("suppression", *METHODS)]
    asked += [question(ranking[0], "lrp", rule="gamma_epsilon"), question(ranking[0], "deconvnet", scaling="minmax")]
    answers = dict(engine.ask(asked))
    assert all(isinstance(answer, Answer) for answer in answers.values())
    first: Any = answers[0]
    for number in range(1, len(asked)):
        answer: Any = answers[number]
        assert np.array_equal(answer.maps["before"], first.maps["before"])
        assert answer.loss_start == pytest.approx(first.loss_start, rel=1e-5)
        assert answer.metrics.ssim < first.metrics.ssim
        assert answer.losses.total > first.losses.total
    pictures = {answers[number].picture.tobytes() for number in range(len(asked))}  # type: ignore[union-attr]
    assert len(pictures) == len(asked)


def test_a_silent_kernel_has_no_attribution(engine: Engine) -> None:
    """The same error as from suppression."""
    black = np.zeros((96, 96, 3), np.uint8)
    ranking = engine.call(engine.device.ranking, "vgg_mini", "conv1_1", black)
    silent = min(set(range(max(ranking))) - set(ranking))
    asked = Question("vgg_mini", "conv1_1", black, silent, 1.0, 1.0, method="lrp")
    ((_, error),) = engine.ask([asked])
    assert isinstance(error, SilentKernel)


def test_what_does_not_fit_is_done_with_fewer_and_one_alone_is_refused(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raise a full card's error."""
    most = 1

    def scarce(cut: nn.Sequential, image: Tensor, *rest: Any) -> Tensor:
        if len(image) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return attribution(cut, image, *rest)

    monkeypatch.setattr(baseline_batch, "attribution", scarce)
    ranking = engine.call(engine.device.ranking, "vgg_mini", "conv2_2", np.asarray(scene(5, 96).image))
    answers = dict(engine.ask([question(kernel, "deconvnet") for kernel in ranking[:5]]))
    assert all(isinstance(answer, Answer) for answer in answers.values())
    most = 0
    ((_, error),) = engine.ask([question(ranking[0], "deconvnet")])
    assert isinstance(error, DeviceOutOfMemory)
