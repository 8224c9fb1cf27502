"""The engine on a torch device: it answers questions about kernels, many at once. It knows problems, not jobs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from math import inf
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shared.errors import DeviceOutOfMemory, KernelscopeError, LoneKernel, NotANumber, SilentKernel
from shared.schemas import Losses, Metrics
from shared.workers import NetworkState
from worker.metrics import as_record, metrics, png_regularization
from worker.networks import LoadedNetwork, Networks
from worker.precision import Pace, pace
from worker.questions import Answer, Engine, OnStep, Picture, Question, ShouldStop, Step
from worker.suppression import FastSolver, PixelSpace, Problems, ReferenceSolver, Solution, Solver, losses, solve
from worker.suppression.loop import Progress

log = logging.getLogger(__name__)

LOUDEST_OTHERS = 2


class TorchEngine(Engine):
    """The engine on one torch device."""

    def __init__(self, networks: Networks) -> None:
        self.networks = networks

    @property
    def device(self) -> str:
        """`cpu`, or the card's name."""
        device = self.networks.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)

    def preload(self, model: str) -> None:
        """Load a network now."""
        self.networks.get(model)

    def states(self) -> dict[str, NetworkState]:
        """Which networks can be run."""
        return self.networks.states()

    def input_size(self, model: str) -> int:
        """Side of the network's input in pixels."""
        return self.networks.get(model).input_size

    @torch.no_grad()
    def ranking(self, model: str, layer: str, picture: Picture) -> list[int]:
        """The layer's active kernels by mean activation, highest first."""
        network = self.networks.get(model)
        activation = network.features_of(layer, _images([picture], network))[0].mean(dim=(1, 2))  # (C,)
        order = activation.argsort(descending=True, stable=True)
        return [kernel for kernel in order.tolist() if activation[kernel] > 0]

    def answer(
        self, questions: Sequence[Question], on_step: OnStep, should_stop: ShouldStop
    ) -> Iterator[tuple[int, Answer | KernelscopeError]]:
        """Answer the questions in batches of those that share network, layer and solver."""
        groups: dict[tuple[object, ...], list[int]] = {}
        for number, question in enumerate(questions):
            groups.setdefault(question.setup, []).append(number)
        for numbers in groups.values():
            yield from self._group(questions, numbers, on_step, should_stop)

    def _group(
        self, questions: Sequence[Question], numbers: list[int], on_step: OnStep, should_stop: ShouldStop
    ) -> Iterator[tuple[int, Answer | KernelscopeError]]:
        first = questions[numbers[0]]
        network = self.networks.get(first.model)
        cut = network.cut(first.layer)
        speed = pace(cut, network.input_size, self.networks.device)
        size = min(speed.batch, len(numbers))
        while numbers:
            if should_stop():
                return
            batch, rest = numbers[:size], numbers[size:]
            try:
                answers = _answers(network, cut, speed, [questions[n] for n in batch], on_step, should_stop)
            except torch.OutOfMemoryError:
                if size > 1:
                    size //= 2
                    log.warning("out of memory: batches of %d now", size)
                    continue
                answers = {0: DeviceOutOfMemory(f"{first.layer} of {first.model} does not fit into {self.device}")}
            yield from ((batch[row], answer) for row, answer in answers.items())
            numbers = rest


def make_solver(question: Question, space: PixelSpace) -> Solver[Any]:
    """The solver that a question asks for."""
    if question.solver == "reference":
        return ReferenceSolver(budget=question.iterations or ReferenceSolver.budget)
    return FastSolver.of(space, question.effort, question.iterations)


def _answers(
    network: LoadedNetwork,
    cut: nn.Sequential,
    speed: Pace,
    questions: list[Question],
    on_step: OnStep,
    should_stop: ShouldStop,
) -> dict[int, Answer | KernelscopeError]:
    """One batch, from pictures to answers, by row; a row that was cancelled has none."""
    problems, features = _posed(network, cut, questions)
    answers: dict[int, Answer | KernelscopeError] = {}
    for row, (silent, lone) in enumerate(zip(problems.silent.tolist(), problems.lone.tolist(), strict=True)):
        if silent or lone:
            answers[row] = _refusal(questions[row], silent=silent)
    rows = [row for row in range(len(questions)) if row not in answers]
    solver = make_solver(questions[0], network.space)
    exact = isinstance(solver, ReferenceSolver) or questions[0].bounded
    precision = torch.float32 if exact else speed.precision

    def report(progress: Progress) -> None:
        on_step(Step(progress.iteration, solver.budget, float(progress.losses.total.mean())))

    solutions = solve(
        cut,
        problems.select(torch.tensor(rows, dtype=torch.long)),
        solver,
        precision=precision,
        on_step=report,
        should_stop=should_stop,
    )
    for row, solution in zip(rows, solutions, strict=True):
        if solution.stopped != "cancelled":
            answers[row] = _measured(network, cut, problems.select(torch.tensor([row])), features[row], solution)
    return answers


def _refusal(question: Question, *, silent: bool) -> KernelscopeError:
    if silent:
        return SilentKernel(
            f"kernel {question.kernel} of {question.layer} is silent on this image (its feature map is zero "
            'everywhere), so there is nothing to explain; "top:N" takes the most active kernels'
        )
    return LoneKernel(
        f"every kernel of {question.layer} but {question.kernel} is silent on this image: nothing to suppress"
    )


@torch.no_grad()
def _posed(network: LoadedNetwork, cut: nn.Sequential, questions: list[Question]) -> tuple[Problems, Tensor]:
    """The batch's problems, and the feature maps of their images, (B, C, h, w)."""
    images = _images([question.picture for question in questions], network)
    features = torch.cat([cut(image[None]) for image in images]).clamp_min(0)
    kernel = torch.tensor([question.kernel for question in questions], device=images.device)
    rows = [(q.alpha, q.beta, _or(q.max_preservation, inf), _or(q.target_ssim, -1)) for q in questions]
    alpha, beta, most, least = torch.tensor(rows, device=images.device).unbind(1)
    return Problems.pose(images, features, kernel, alpha, beta).within(most, least), features


@torch.no_grad()
def _measured(
    network: LoadedNetwork, cut: nn.Sequential, problem: Problems, before: Tensor, solution: Solution
) -> Answer | KernelscopeError:
    """Feed the delivered picture, and X̂ before it was rounded, back through the network."""
    space, kernel = network.space, int(problem.kernel)
    x = solution.x[None]
    picture = space.to_bytes(x)
    shown = space.from_bytes(picture)
    after, after_float, blank = (cut(image).clamp_min(0) for image in (shown, x, torch.zeros_like(x)))
    terms, terms_float, terms_blank, terms_start = (
        as_record(losses(problem, maps, image), 0)
        for maps, image in (
            (after, shown),
            (after_float, x),
            (blank, torch.zeros_like(x)),
            (before[None], problem.image),
        )
    )
    terms.regularization = float(png_regularization(picture, space))
    terms.total = (
        terms.preservation + float(problem.alpha) * terms.suppression + float(problem.beta) * terms.regularization
    )
    if not np.isfinite([terms.total, terms_float.total]).all():
        return NotANumber(f"X̂ of kernel {kernel} is not finite; its start is {terms_start.total:g}")
    others = _loudest_others(before, kernel)
    found = metrics(before, after[0], kernel, picture[0], space)
    return Answer(
        picture=picture[0].permute(1, 2, 0).cpu().numpy(),
        x=solution.x.cpu().numpy(),
        maps={
            "before": _array(before[kernel]),
            "after": _array(after[0, kernel]),
            "others": others.cpu().numpy(),
            "others_before": _array(before[others]),
            "others_after": _array(after[0, others]),
        },
        losses=terms,
        losses_float=terms_float,
        loss_start=terms_start.total,
        loss_blank=terms_blank.total,
        metrics=found,
        metrics_float=metrics(before, after_float[0], kernel, picture[0], space),
        target_met=_target_met(problem, terms, found),
        iterations=solution.iterations,
        seconds=solution.seconds,
        stopped=solution.stopped,
        precision=solution.precision,
        history=solution.history,
        weights=network.weights,
    )


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _target_met(problem: Problems, terms: Losses, found: Metrics) -> bool | None:
    """Whether the delivered picture keeps what was asked for."""
    if not bool(problem.bounded):
        return None
    return terms.preservation <= float(problem.max_preservation) and (
        found.ssim is None or found.ssim >= float(problem.min_ssim)
    )


def _loudest_others(before: Tensor, kernel: int) -> Tensor:
    """The kernels of the highest mean activation but the selected one."""
    mean = before.mean(dim=(1, 2))
    mean[kernel] = -1
    return mean.topk(min(LOUDEST_OTHERS, len(mean) - 1)).indices


def _images(pictures: Sequence[Picture], network: LoadedNetwork) -> Tensor:
    """(B, 3, H, W), normalised, on the network's device."""
    stack = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return network.space.from_bytes(stack.to(network.space.mean.device)).contiguous(memory_format=torch.channels_last)


def _array(maps: Tensor) -> NDArray[np.float32]:
    return maps.float().cpu().numpy()
