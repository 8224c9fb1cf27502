"""The picture and the numbers that are delivered for a solution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from shared.drawings import scene
from tests.unit.engines import PICTURE, ask, question, top
from worker.engine import answers
from worker.engine.device import TorchDevice
from worker.engine.engine import Engine
from worker.engine.questions import Answer
from worker.jobs.artifacts import note
from worker.methods.suppression import Solution


def test_bounds_are_kept_by_the_picture(engine: Engine) -> None:
    """`target_met` is that of the 8-bit picture; null without a bound."""
    kernel = top(engine)[0]
    bounds: list[dict[str, Any]] = [{}, {"target_ssim": 0.8}, {"max_preservation": 0.2}]
    asked = [question(kernel, iterations=100, **bound) for bound in bounds]
    free, alike, near = (answer for _, answer in sorted(ask(engine, asked).items()))
    assert (free.target_met, alike.target_met, near.target_met) == (None, True, True)
    assert alike.precision == near.precision == "float32"  # a bound is a bound on what is reported
    assert alike.metrics.ssim >= 0.8
    assert near.losses.preservation <= 0.2
    for answer in (alike, near):
        assert answer.losses.suppression + answer.losses.regularization < 0.8 * answer.loss_start


def test_an_x_that_is_worse_than_the_image_is_the_image(engine: Engine, device: TorchDevice) -> None:
    """X is delivered if X̂ is worse, by rounding or an early stop; not under a bound."""
    layer = device.networks.get("vgg_mini").layer("conv2_2")
    free, bound = (question(top(engine)[0], target_ssim=bound) for bound in (None, 0.9))
    posed = answers.pose([free, bound], layer)
    bad = posed[0].problem.image[0].flip(0) * 2
    solutions = [Solution(bad, 9.0, 1, 0.0, "deadline", "bfloat16", [])] * 2
    found, kept = answers.measured(layer, list(zip((free, bound), posed, solutions, strict=True)))
    assert isinstance(found, Answer)
    assert isinstance(kept, Answer)
    assert np.array_equal(found.picture, PICTURE)
    assert found.losses_float.total == pytest.approx(found.loss_start)
    assert found.metrics.invention == 0
    assert found.metrics.ssim == pytest.approx(1.0)
    assert kept.losses_float.total > kept.loss_start


def test_where_beta_is_large_the_blank_picture_is_an_answer(engine: Engine, device: TorchDevice) -> None:
    """It is delivered with a note where it has the lower loss, if the solver was not stopped."""
    layer = device.networks.get("vgg_mini").layer("conv2_2")
    asked = question(top(engine)[0], beta=30.0, iterations=None)
    ((_, answer),) = engine.ask([asked])
    assert isinstance(answer, Answer)
    assert answer.losses_float.total <= answer.loss_blank
    (posed,) = answers.pose([asked], layer)
    dots = torch.zeros_like(posed.problem.image[0])
    dots[:, ::7, ::7] = 2.0
    for beta, stopped, blank in ((30.0, "budget", True), (30.0, "deadline", False), (1.0, "budget", False)):
        asked = question(top(engine)[0], beta=beta)
        (posed,) = answers.pose([asked], layer)
        solution = Solution(dots, 9.0, 1, 0.0, stopped, "float32", [])  # type: ignore[arg-type]
        (found,) = answers.measured(layer, [(asked, posed, solution)])
        assert isinstance(found, Answer)
        assert (found.metrics.sparsity == 1) == blank
        shown = note(found, asked) or ""
        assert "This is the blank picture" in shown if blank else "The blank picture has a lower loss" in shown
        assert not blank or found.losses_float.total == found.loss_blank


def test_answers_that_are_measured_together_are_those_of_each_alone(engine: Engine, device: TorchDevice) -> None:
    """Solutions of different pictures and kernels, in any order, are measured together."""
    layer = device.networks.get("vgg_mini").layer("conv3_1")
    other = np.asarray(scene(6, 96).image)
    asked = [
        question(top(engine, "conv3_1", one)[n], "conv3_1", one) for n, one in ((0, PICTURE), (1, other), (2, PICTURE))
    ]
    posed = answers.pose(asked, layer)
    x = [0.5 * one.problem.image[0].roll(shift, 1) for shift, one in enumerate(posed)]
    solved = [
        (one, pose, Solution(image, 1.0, 1, 0.0, "budget", "float32", []))
        for one, pose, image in zip(asked, posed, x, strict=True)
    ]
    together = answers.measured(layer, solved)
    for number, answer in enumerate(together):
        (alone,) = answers.measured(layer, solved[number : number + 1])
        assert isinstance(answer, Answer)
        assert isinstance(alone, Answer)
        assert np.array_equal(answer.picture, alone.picture)
        for mine, theirs in ((answer.metrics, alone.metrics), (answer.metrics_float, alone.metrics_float)):
            numbers, expected = (
                one.model_dump(exclude={"invention_by_layer"}, exclude_none=True) for one in (mine, theirs)
            )
            assert numbers == pytest.approx(expected, rel=1e-4)
            assert mine.invention_by_layer == pytest.approx(theirs.invention_by_layer, rel=1e-4)
        assert answer.losses.model_dump() == pytest.approx(alone.losses.model_dump(), rel=1e-4)
        assert answer.loss_blank == pytest.approx(alone.loss_blank, rel=1e-4)
        assert all(np.allclose(answer.maps[name], alone.maps[name], rtol=1e-3, atol=1e-4) for name in answer.maps)
