"""From a question to a problem, and from a solution to an answer: X̂ is fed back through the network and measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.errors import KernelscopeError, LoneKernel, NotANumber, SilentKernel
from shared.schemas import Losses, Metrics
from worker.metrics import as_record, metrics, png_regularization
from worker.networks import LoadedNetwork
from worker.questions import Answer, Picture, Question
from worker.suppression import Problems, Solution, losses

LOUDEST_OTHERS = 2


@dataclass(frozen=True)
class Posed:
    """A question as a problem."""

    problem: Problems  # one row
    features: Tensor  # the feature maps F of its image, (C, h, w), shared by the questions about it


@torch.no_grad()
def pose(questions: Sequence[Question], network: LoadedNetwork) -> list[Posed]:
    """Each question about a layer as a problem; the maps of a picture are computed once for all questions about it."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    cut = network.cut(questions[0].layer)
    for question in questions:
        if id(question.picture) not in seen:
            image = pictures([question.picture], network)
            seen[id(question.picture)] = image, cut(image).clamp_min(0)
    return [_posed(question, *seen[id(question.picture)]) for question in questions]


def _posed(question: Question, image: Tensor, features: Tensor) -> Posed:
    kernel = torch.tensor([question.kernel], device=image.device)
    bounds = _or(question.max_preservation, inf), _or(question.target_ssim, -1)
    alpha, beta, most, least = torch.tensor([[question.alpha, question.beta, *bounds]], device=image.device).unbind(1)
    removing = torch.tensor([question.removing], device=image.device)
    problem = Problems.pose(image, features, kernel, alpha, beta).within(most, least).only_removing(removing)
    return Posed(problem, features[0])


def posable(question: Question, posed: Posed) -> KernelscopeError | None:
    """Why there is nothing to solve, if so."""
    if bool(posed.problem.silent):
        return SilentKernel(
            f"kernel {question.kernel} of {question.layer} is silent on this image (its feature map is zero "
            'everywhere), so there is nothing to explain; "top:N" takes the most active kernels'
        )
    if bool(posed.problem.lone):
        return LoneKernel(
            f"every kernel of {question.layer} but {question.kernel} is silent on this image: nothing to suppress"
        )
    return None


@torch.no_grad()
def measured(network: LoadedNetwork, question: Question, posed: Posed, solution: Solution) -> Answer | KernelscopeError:
    """Feed the delivered picture, and X̂ before it was rounded, back through the network."""
    problem, before = posed.problem, posed.features
    space, kernel = network.space, int(problem.kernel)
    x = solution.x[None]
    picture = space.to_bytes(x)
    shown = space.from_bytes(picture)
    nothing = torch.zeros_like(x)
    references, images = torch.cat([problem.image, nothing]), torch.cat([nothing, shown, x])
    before_relu, invented, beyond_blank = network.watched(question.layer).invention(references, images)
    blank, after, after_float = before_relu.clamp_min(0).split(1)
    seen = ((after_float, x), (blank, nothing), (before[None], problem.image))
    terms_float, terms_blank, terms_start = (as_record(losses(problem, maps, image), 0) for maps, image in seen)
    terms = _of_the_png(problem, after, shown, float(png_regularization(picture, space)))
    if not np.isfinite([terms.total, terms_float.total]).all():
        return NotANumber(f"X̂ of kernel {kernel} is not finite; its start is {terms_start.total:g}")
    found, found_float = (
        metrics(before, maps[0], kernel, picture[0], space).model_copy(
            update=_invention(network.below(question.layer), invented[row], beyond_blank[row])
        )
        for row, maps in ((1, after), (2, after_float))
    )
    return Answer(
        picture=picture[0].permute(1, 2, 0).cpu().numpy(),
        x=solution.x.cpu().numpy(),
        maps=_maps(before, after[0], kernel),
        losses=terms,
        losses_float=terms_float,
        loss_start=terms_start.total,
        loss_blank=terms_blank.total,
        metrics=found,
        metrics_float=found_float,
        target_met=_target_met(question, terms, found),
        iterations=solution.iterations,
        seconds=solution.seconds,
        stopped=solution.stopped,
        precision=solution.precision,
        history=solution.history,
        weights=network.weights,
        gamma=_gamma(question, len(network.below(question.layer))),
    )


def _maps(before: Tensor, after: Tensor, kernel: int) -> dict[str, NDArray[Any]]:
    """The selected kernel's map and those of the loudest others, before and after."""
    others = _loudest_others(before, kernel)
    return {
        "before": _array(before[kernel]),
        "after": _array(after[kernel]),
        "others": others.cpu().numpy(),
        "others_before": _array(before[others]),
        "others_after": _array(after[others]),
    }


def _of_the_png(problem: Problems, after: Tensor, shown: Tensor, regularization: float) -> Losses:
    """The losses of the delivered picture: L_r counts the pixels that are the mean colour in 8 bits as such."""
    terms = as_record(losses(problem, after, shown), 0)
    terms.regularization = regularization
    alpha, beta = float(problem.alpha), float(problem.beta)
    terms.total = terms.preservation + alpha * terms.suppression + beta * regularization
    return terms


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _invention(names: Sequence[str], shares: Tensor, beyond_blank: Tensor) -> dict[str, Any]:
    """L_e of an X̂ as it is reported, of each layer below, and as evidence weighs or bounds it."""
    by_layer = dict(zip(names, shares.tolist(), strict=True))
    return {
        "invention": fmean(by_layer.values()) if by_layer else 0.0,
        "invention_by_layer": by_layer,
        "invention_beyond_blank": float(beyond_blank.mean()) if by_layer else 0.0,
    }


def _gamma(question: Question, depth: int) -> float | None:
    weighed = question.method == "evidence" and question.max_invention is None
    return question.weight(depth) if weighed else None


def _target_met(question: Question, terms: Losses, found: Metrics) -> bool | None:
    """Whether the delivered picture keeps what was asked for."""
    kept = []
    if question.max_preservation is not None:
        kept.append(terms.preservation <= question.max_preservation)
    if question.target_ssim is not None:
        kept.append(found.ssim is None or found.ssim >= question.target_ssim)
    if question.max_invention is not None:
        kept.append((found.invention_beyond_blank or 0.0) <= question.max_invention)
    return all(kept) if kept else None


def _loudest_others(before: Tensor, kernel: int) -> Tensor:
    """The kernels of the highest mean activation but the selected one."""
    mean = before.mean(dim=(1, 2))
    mean[kernel] = -1
    return mean.topk(min(LOUDEST_OTHERS, len(mean) - 1)).indices


def pictures(images: Sequence[Picture], network: LoadedNetwork) -> Tensor:
    """(B, 3, H, W), normalised, on the network's device."""
    stack = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return network.space.from_bytes(stack.to(network.space.mean.device)).contiguous(memory_format=torch.channels_last)


def _array(maps: Tensor) -> NDArray[np.float32]:
    return maps.float().cpu().numpy()
