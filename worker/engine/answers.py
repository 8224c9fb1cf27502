"""From a question to a problem, and from a solution to an answer: X̂ is fed back through the network and measured."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.errors import KernelscopeError, LoneKernel, NotANumber, SilentKernel
from shared.schemas import OPTIMIZED, Losses, Metrics
from worker.engine.accelerator import broken
from worker.engine.quality import as_records, map_ssims, metrics, png_regularization
from worker.engine.questions import Answer, Answered, OutOfMemory, Picture, Question, Ticket, internal_error
from worker.methods.suppression import BatchLosses, Problems, Solution, losses
from worker.networks.failures import out_of_memory
from worker.networks.layer import LoadedLayer

log = logging.getLogger(__name__)

MOST_ACTIVE_OTHERS = 2
LARGE_BETA = 3.0  # from here on the blank picture may be the answer; below, a preserved map is more informative


@dataclass(frozen=True)
class Posed:
    """A question as a problem."""

    problem: Problems  # one row
    features: Tensor  # the feature maps F of its image, (C, h, w), shared by the questions about it


@torch.no_grad()
def pose(questions: Sequence[Question], layer: LoadedLayer) -> list[Posed]:
    """Each question about a layer as a problem. The maps of a picture are computed once for all questions about it."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    for question in questions:
        if id(question.picture) not in seen:
            image = pictures([question.picture], layer)
            seen[id(question.picture)] = image, layer.features(image)
    return [_posed(question, *seen[id(question.picture)], layer.signed) for question in questions]


def _posed(question: Question, image: Tensor, features: Tensor, signed: bool) -> Posed:  # noqa: FBT001
    kernel = torch.tensor([question.kernel], device=image.device)
    bounds = _or(question.max_preservation, inf), _or(question.target_ssim, -1)
    alpha, beta, most, least = torch.tensor([[question.alpha, question.beta, *bounds]], device=image.device).unbind(1)
    only_remove = torch.tensor([question.removes_only], device=image.device)
    posed = Problems.pose(image, features, kernel, alpha, beta, signed)
    problem = posed.with_bounds(most, least).with_only_remove(only_remove)
    return Posed(problem, features[0])


def unsolvable(question: Question, posed: Posed) -> KernelscopeError | None:
    """The error if the problem has no solution: the kernel is silent, or all others are."""
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


Solved = tuple[Ticket, Posed, Solution]


def answers(layer: LoadedLayer, solved: Sequence[Solved]) -> Answered:
    """Measure each solution. If that raises, halves are tried, until one alone fails."""
    if not solved:
        return []
    failure: KernelscopeError | OutOfMemory
    try:
        found = measured(layer, [(ticket.question, posed, solution) for ticket, posed, solution in solved])
        return [(ticket, answer) for (ticket, *_), answer in zip(solved, found, strict=True)]
    except Exception as error:
        if broken(error):
            raise
        failure = OutOfMemory() if out_of_memory(error) else internal_error(error)
        if len(solved) == 1 and isinstance(failure, KernelscopeError):
            log.exception("kernel %d of %s", solved[0][0].question.kernel, layer)
    if len(solved) == 1:
        return [(solved[0][0], failure)]
    middle = len(solved) // 2
    return answers(layer, solved[:middle]) + answers(layer, solved[middle:])


@torch.no_grad()
def measured(layer: LoadedLayer, solved: Sequence[tuple[Question, Posed, Solution]]) -> list[Answer | KernelscopeError]:
    """Feed each delivered picture, and each X̂ before rounding, back through the network in one batch.

    Without a bound, X̂ is replaced by X where X has the lower loss, which may happen when a solver was stopped early;
    and for a large β by the blank picture, where that has the lower loss although the solver was not stopped.
    """
    found = _measured(layer, solved)
    better = {
        number: x
        for number, (question, posed, solution) in enumerate(solved)
        if (x := _better(question, posed, solution, found[number])) is not None
    }
    if better:
        again = [(*solved[number][:2], replace(solved[number][2], x=x)) for number, x in better.items()]
        for number, answer in zip(better, _measured(layer, again), strict=True):
            found[number] = answer
    return found


def _better(question: Question, posed: Posed, solution: Solution, answer: Answer | KernelscopeError) -> Tensor | None:
    """X or the blank picture, if that has the lowest loss of the three; else None."""
    free = question.method in OPTIMIZED and not question.bounded
    if not (free and isinstance(answer, Answer)):
        return None
    weighted_invention = (answer.gamma or 0.0) * (answer.metrics_float.invention_beyond_blank or 0.0)
    image = posed.problem.image[0]
    known = [(answer.losses_float.total + weighted_invention, None), (answer.loss_start, image)]
    completed = question.solver == "fast" and solution.stopped in ("converged", "budget")
    if completed and question.beta >= LARGE_BETA:
        known.append((answer.loss_blank, torch.zeros_like(image)))
    return min(known, key=lambda one: one[0])[1]


def _measured(
    layer: LoadedLayer, solved: Sequence[tuple[Question, Posed, Solution]]
) -> list[Answer | KernelscopeError]:
    count, space = len(solved), layer.space
    problems = Problems.join_all([posed.problem for _, posed, _ in solved])
    x = torch.stack([solution.x for _, _, solution in solved])
    picture = space.to_bytes(x)
    shown = space.from_bytes(picture).to(x)
    originals = {id(posed.features): posed.problem.image for _, posed, _ in solved}
    of = [list(originals).index(id(posed.features)) for _, posed, _ in solved]
    images = torch.cat([shown, x])
    seen, invented, beyond = layer.tapped.invention(torch.cat(list(originals.values())), images, of + of)
    blank, after, after_float = layer.maps(seen).split([1, count, count])
    before = torch.stack([posed.features for _, posed, _ in solved])
    terms_float = as_records(losses(problems, after_float, x))
    terms_start = as_records(losses(problems, before, problems.image))
    terms_blank = as_records(losses(problems, blank.expand_as(before), torch.zeros_like(x)))
    terms = as_records(_of_the_picture(problems, after, shown, png_regularization(picture, space)))
    found, found_float = (
        _invention(layer, metrics(before, maps, problems.kernel, picture, space), invented[rows], beyond[rows])
        for maps, rows in ((after, slice(count)), (after_float, slice(count, None)))
    )
    for one, ssim_grey in zip(found, _ssim_grey(layer, problems.kernel, before, shown), strict=True):
        one.ssim_grey = ssim_grey
    delivered = picture.permute(0, 2, 3, 1).cpu().numpy()
    return [
        _answer(
            layer,
            question,
            solution,
            picture=delivered[row],
            maps=_maps(before[row], after[row], question.kernel),
            losses=terms[row],
            losses_float=terms_float[row],
            loss_start=terms_start[row].total,
            loss_blank=terms_blank[row].total,
            metrics=found[row],
            metrics_float=found_float[row],
        )
        for row, (question, _, solution) in enumerate(solved)
    ]


def _of_the_picture(problems: Problems, after: Tensor, shown: Tensor, regularization: Tensor) -> BatchLosses:
    """The losses of the delivered pictures, in whose L_r a byte equal to the rounded mean colour is 0."""
    own = losses(problems, after, shown)
    total = own.preservation + problems.alpha * own.suppression + problems.beta * regularization
    return replace(own, regularization=regularization, total=total)


def _answer(layer: LoadedLayer, question: Question, solution: Solution, **measured: Any) -> Answer | KernelscopeError:
    """The answer: the measurements, and the solver's report."""
    terms: Losses = measured["losses"]
    if not (isfinite(terms.total) and isfinite(measured["losses_float"].total)):
        return NotANumber(
            f"X̂ of kernel {question.kernel} is not finite (loss of the original: {measured['loss_start']:g})"
        )
    return Answer(
        **measured,
        x=solution.x.cpu().numpy(),
        target_met=_target_met(question, terms, measured["metrics"]),
        iterations=solution.iterations,
        seconds=solution.seconds,
        stopped=solution.stopped,
        precision=solution.precision,
        history=solution.history,
        weights=layer.weights,
        gamma=_gamma(question, len(layer.below)),
    )


def _maps(before: Tensor, after: Tensor, kernel: int) -> dict[str, NDArray[Any]]:
    """The maps of the selected kernel and of the most active others, before and after."""
    others = _most_active_others(before, kernel)
    return {
        "before": _array(before[kernel]),
        "after": _array(after[kernel]),
        "others": others.cpu().numpy(),
        "others_before": _array(before[others]),
        "others_after": _array(after[others]),
    }


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _invention(layer: LoadedLayer, found: Sequence[Metrics], invented: Tensor, beyond_blank: Tensor) -> list[Metrics]:
    """Add the invention: its mean over the layers, of each layer, and with the bounds of `evidence`."""
    complete = []
    for one, by_layer, beyond in zip(found, invented.tolist(), beyond_blank.tolist(), strict=True):
        update: dict[str, Any] = {
            "invention": fmean(by_layer) if by_layer else 0.0,
            "invention_by_layer": dict(zip(layer.below, by_layer, strict=True)),
            "invention_beyond_blank": fmean(beyond) if beyond else 0.0,
        }
        complete.append(one.model_copy(update=update))
    return complete


def _ssim_grey(layer: LoadedLayer, kernel: Tensor, before: Tensor, shown: Tensor) -> list[float | None]:
    """SSIM of the selected map of each X̂ without its colour; None for networks with grey input."""
    if layer.frame.channels == 1:
        return [None] * len(shown)
    rows = torch.arange(len(kernel), device=before.device)
    after = layer.features(layer.space.without_colour(shown).contiguous(memory_format=torch.channels_last))
    return map_ssims(after[rows, kernel], before[rows, kernel])


def _gamma(question: Question, depth: int) -> float | None:
    weighed = question.method == "evidence" and question.max_invention is None
    return question.weight(depth) if weighed else None


def _target_met(question: Question, terms: Losses, found: Metrics) -> bool | None:
    """Whether the delivered picture satisfies the requested bounds; None without any."""
    met = []
    if question.max_preservation is not None:
        met.append(terms.preservation <= question.max_preservation)
    if question.target_ssim is not None:
        met.append(found.ssim is None or found.ssim >= question.target_ssim)
    if question.max_invention is not None:
        met.append((found.invention_beyond_blank or 0.0) <= question.max_invention)
    return all(met) if met else None


def _most_active_others(before: Tensor, kernel: int) -> Tensor:
    """The kernels with the highest mean |F|, without the selected one."""
    mean = before.abs().mean(dim=(1, 2))
    mean[kernel] = -1
    return mean.topk(min(MOST_ACTIVE_OTHERS, len(mean) - 1)).indices


def pictures(images: Sequence[Picture], layer: LoadedLayer) -> Tensor:
    """(B, channels, H, W), normalised, on the network's device."""
    stack = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return layer.space.from_bytes(stack.to(layer.space.mean.device)).contiguous(memory_format=torch.channels_last)


def _array(maps: Tensor) -> NDArray[np.float32]:
    return maps.float().cpu().numpy()
