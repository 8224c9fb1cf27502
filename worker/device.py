"""A torch device for the engine: which problems it steps together, how many fit, and what is done when they do not."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import deque
from collections.abc import Sequence
from importlib import metadata
from math import inf
from typing import Any
from weakref import WeakValueDictionary

import psutil
import torch
from torch import nn

from shared.errors import DeadlinePassed, DeviceOutOfMemory, KernelscopeError
from shared.schemas import OPTIMIZED, WeightsUsed
from shared.workers import NetworkState
from worker.answers import Posed, measured, pictures, posable, pose
from worker.baseline_batch import BaselineBatch
from worker.networks import LoadedNetwork, Networks
from worker.pace import STEP_SECONDS, Pace, out_of_memory, pace, room_in_memory
from worker.questions import Answer, Answered, Batch, Device, Maps, Picture, Question, Sketch, Step, Ticket
from worker.suppression import (
    VERSION,
    Bounds,
    FastSolver,
    PixelSpace,
    Problems,
    ReferenceSolver,
    Solution,
    Solver,
    Watched,
)
from worker.suppression import Batch as SolverBatch

log = logging.getLogger(__name__)

MOST_EVALUATIONS = 8  # between two read-outs on a device that the host must wait for


class TorchDevice(Device):
    """One torch device with its networks.

    Args:
        networks: on the device.
        most: problems in a batch at most; a benchmark compares them.
    """

    version = f"suppression {VERSION}, zennit {metadata.version('zennit')}"

    def __init__(self, networks: Networks, most: int | None = None) -> None:
        self.networks = networks
        self.most = most
        self.running = 0  # problems in all batches

    @property
    def name(self) -> str:
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

    def weights(self, model: str) -> WeightsUsed:
        """Which weights the network has."""
        return self.networks.get(model).weights

    @torch.no_grad()
    def ranking(self, model: str, layer: str, picture: Picture) -> list[int]:
        """The layer's active kernels by mean activation, highest first."""
        network = self.networks.get(model)
        activation = network.features_of(layer, pictures([picture], network))[0].mean(dim=(1, 2))  # (C,)
        order = activation.argsort(descending=True, stable=True)
        return [kernel for kernel in order.tolist() if activation[kernel] > 0]

    @torch.no_grad()
    def feature_maps(self, model: str, layer: str, picture: Picture) -> Maps:
        """F, (C, h, w), on the host."""
        network = self.networks.get(model)
        maps: Maps = network.features_of(layer, pictures([picture], network))[0].float().cpu().numpy()
        return maps

    def batch(self, question: Question) -> Batch:
        """An empty batch for a layer."""
        network = self.networks.get(question.model)
        cut = network.cut(question.layer)
        if question.method not in OPTIMIZED:
            return BaselineBatch(self.name, network, question.layer)
        return TorchBatch(self, network, network.watched(question.layer) if question.method == "evidence" else cut)

    def memory(self) -> int:
        """Bytes: of the card that torch has allocated, or of this process."""
        device = self.networks.device
        if device.type == "cuda":
            return torch.cuda.memory_allocated(device)
        return int(psutil.Process().memory_info().rss)

    def broken(self, error: Exception) -> bool:
        """Whether this is an error of the device itself, after which its context cannot be used."""
        fatal: type[Exception] | None = getattr(torch, "AcceleratorError", None)
        return (fatal is not None and isinstance(error, fatal)) or "CUDA error" in str(error)


def make_solver(question: Question, space: PixelSpace) -> Solver[Any]:
    """The solver that a question asks for."""
    if question.solver == "reference":
        return ReferenceSolver(budget=question.iterations or ReferenceSolver.budget)
    return FastSolver.of(space, question.effort, question.iterations)


class TorchBatch(Batch):
    """Questions about one layer.

    What is to be exact is stepped in float32, the rest in bfloat16 where that is faster: two parts, which take turns.
    Where memory runs out, half of them are set back: they begin anew when something has ended.
    """

    def __init__(self, device: TorchDevice, network: LoadedNetwork, cut: nn.Module) -> None:
        self.device = device
        self.network = network
        self.cut = cut  # watched where the questions ask for that
        self.below: WeakValueDictionary[tuple[bytes, torch.dtype], Bounds] = WeakValueDictionary()
        self.tickets: dict[int, tuple[Ticket, Posed]] = {}  # by the number that the solver's batch gave them
        self.parts: deque[SolverBatch[Any]] = deque()
        self.later: list[tuple[Ticket, bool]] = []  # set back; and whether they are to be exact
        self.ran = 0  # problems on the device when the last was set back
        self.most: int | None = None  # problems, once the time of a step was seen
        self.fits: int | None = None  # problems, once memory ran out

    def __len__(self) -> int:
        """How many are being answered."""
        return len(self.tickets) + len(self.later)

    @property
    def pace(self) -> Pace:
        """Measured at the first question."""
        return pace(self.cut, self.network.input_size, self.network.space.mean.device)

    @property
    def room(self) -> int:
        """As many as a step of half a second and the memory allow."""
        if self.later:
            return 0
        memory = room_in_memory(self.pace, self._where)
        return max(0 if len(self) else 1, min(self._most - len(self), memory))

    @property
    def _most(self) -> int:
        most = self.device.most or self.most or self.pace.batch
        return min(most, self.fits or most)

    @property
    def _where(self) -> torch.device:
        return self.network.space.mean.device

    def add(self, tickets: Sequence[Ticket]) -> Answered:
        """Pose the problems and begin; silent and lone kernels are answered at once."""
        exact = [ticket.question.bounded or ticket.question.solver == "reference" for ticket in tickets]
        return self._add(list(zip(tickets, exact, strict=True)))

    def _add(self, tickets: list[tuple[Ticket, bool]]) -> Answered:
        """Tickets, and whether they are to be exact."""
        waiting = dict(tickets)
        answered: Answered = []
        try:
            posed = pose([ticket.question for ticket in waiting], self.network)
            alike: dict[tuple[torch.dtype, str, int | None], list[tuple[Ticket, Posed]]] = {}
            for (ticket, exact), one in zip(tickets, posed, strict=True):
                if error := posable(ticket.question, one):
                    answered.append((ticket, error))
                    del waiting[ticket]
                else:
                    precision = torch.float32 if exact else self.pace.precision
                    key = precision, ticket.question.effort, ticket.question.iterations
                    alike.setdefault(key, []).append((ticket, one))
            for (precision, *_), pairs in alike.items():
                self._begin(pairs, precision)
                for ticket, _ in pairs:
                    del waiting[ticket]
        except RuntimeError as error:
            self._make_room(error)
            answered += self._set_back(list(waiting.items()))
        return answered

    def _begin(self, pairs: list[tuple[Ticket, Posed]], precision: torch.dtype) -> None:
        """Problems of one precision and of solvers that were told the same."""
        pairs.sort(key=lambda pair: id(pair[0].question.picture))  # neighbours share what their image causes below
        problems = Problems.join_all(
            [self._with_bounds(ticket.question, posed.problem, precision) for ticket, posed in pairs]
        )
        part = next((part for part in self.parts if part.precision is precision), None)
        if part is None:
            part = SolverBatch(self.cut, precision)
            self.parts.append(part)
        numbers = part.add(problems, make_solver(pairs[0][0].question, self.network.space))
        self.tickets.update(zip(numbers, pairs, strict=True))
        self.device.running += len(numbers)

    def _with_bounds(self, question: Question, problem: Problems, precision: torch.dtype) -> Problems:
        """Of evidence, with what its image causes below the layer, which the problems of an image share."""
        if not isinstance(self.cut, Watched):
            return problem
        key = hashlib.sha256(question.picture.tobytes()).digest(), precision
        if (bounds := self.below.get(key)) is None:
            bounds = self.below[key] = self.cut.bounds(problem.image, precision)
        most = inf if question.max_invention is None else question.max_invention
        weight = question.weight(len(bounds.limits))
        return problem.watching([bounds], *problem.image.new_tensor([[weight], [most]]))

    def step(self) -> Answered:
        """A few evaluations of one part."""
        answered = self._again()
        if not self.parts:
            return answered
        part = self.parts[0]
        self.parts.rotate()
        begin = time.perf_counter()
        try:
            ended = part.step(self._evaluations(part))
        except RuntimeError as error:
            self._make_room(error)
            numbers = list(part.courses)[len(part) // 2 :]
            part.drop(numbers)
            exact = part.precision is torch.float32
            return answered + self._set_back([(self._forget(number)[0], exact) for number in numbers])
        if not ended:  # to end one takes an evaluation in float32, which says nothing about a step
            self._adapt(part, time.perf_counter() - begin)
        for number, course in part.courses.items():
            self.tickets[number][0].step = Step(course.iteration, course.budget, course.terms)
        self._sketch(part)
        answered += self._ended(ended)
        self._sweep()
        return answered

    def _sketch(self, part: SolverBatch[Any]) -> None:
        """X̂ as it is now, for those who want to see it form."""
        wanted = [number for number in part.courses if self.tickets[number][0].wanted]
        if not wanted:
            return
        shown = self.network.space.to_bytes(part.iterates(wanted)).permute(0, 2, 3, 1).cpu().numpy()
        for number, picture in zip(wanted, shown, strict=True):
            ticket = self.tickets[number][0]
            ticket.sketch, ticket.wanted = Sketch(part.courses[number].iteration, picture), False

    def stop(self, tickets: Sequence[Ticket]) -> Answered:
        """X̂ as good as it is; nothing where there was no evaluation yet."""
        answered: Answered = []
        for part in self.parts:
            answered += self._ended(part.stop(self._numbers(part, tickets), "deadline"))
        late = [ticket for ticket, _ in self.later if ticket in tickets]
        self.later = [pair for pair in self.later if pair[0] not in late]
        self._sweep()
        return answered + [(ticket, _too_late()) for ticket in late]

    def drop(self, tickets: Sequence[Ticket]) -> None:
        """Forget these."""
        if not tickets:
            return
        for part in self.parts:
            numbers = self._numbers(part, tickets)
            part.drop(numbers)
            for number in numbers:
                self._forget(number)
        self.later = [pair for pair in self.later if pair[0] not in tickets]
        self._sweep()

    def _numbers(self, part: SolverBatch[Any], tickets: Sequence[Ticket]) -> list[int]:
        return [number for number in part.courses if self.tickets[number][0] in tickets]

    def _forget(self, number: int) -> tuple[Ticket, Posed]:
        self.device.running -= 1
        return self.tickets.pop(number)

    def _ended(self, ended: Sequence[tuple[int, Solution | None]]) -> Answered:
        solved: list[tuple[Ticket, Posed, Solution]] = []
        lost: list[tuple[Ticket, bool]] = []
        answered: Answered = []
        for number, solution in ended:
            ticket, posed = self._forget(number)
            if solution is None:
                lost.append((ticket, True))
            elif solution.stopped == "deadline" and not solution.iterations:
                answered.append((ticket, _too_late()))
            else:
                solved.append((ticket, posed, solution))
        if lost:
            log.warning("%d problems overflow in bfloat16: solved in float32", len(lost))
            answered += self._add(lost)
        return answered + [(ticket, self._measured(ticket, posed, solution)) for ticket, posed, solution in solved]

    def _measured(self, ticket: Ticket, posed: Posed, solution: Solution) -> Answer | KernelscopeError:
        try:
            return measured(self.network, ticket.question, posed, solution)
        except RuntimeError as error:
            self._make_room(error)
            return self._too_large(ticket.question)

    def _evaluations(self, part: SolverBatch[Any]) -> int:
        """How many go by before the next read-out: one on the CPU, where a read-out costs nothing."""
        if self._where.type == "cpu":
            return 1
        return max(1, min(MOST_EVALUATIONS, int(STEP_SECONDS / 2 / (self.pace.seconds * len(part)))))

    def _adapt(self, part: SolverBatch[Any], seconds: float) -> None:
        """A step that takes too long: fewer join; one that is short and full on a large device: more."""
        size = len(part)
        if seconds > STEP_SECONDS and size > 1:
            self.most = max(1, int(size * STEP_SECONDS / seconds))
        elif seconds < STEP_SECONDS / 2 and size >= self._most:
            self.most = min(2 * self._most, self.pace.most)

    def _set_back(self, pairs: list[tuple[Ticket, bool]]) -> Answered:
        """There is no memory for these. One that does not fit even alone is refused."""
        if len(pairs) == 1 and not self.device.running:
            ticket, _ = pairs[0]
            return [(ticket, self._too_large(ticket.question))]
        self.fits = max(1, len(self.tickets))
        self.later += pairs
        self.ran = self.device.running
        return []

    def _again(self) -> Answered:
        """Those that were set back, once something has ended; where nothing runs any more, one alone."""
        running = self.device.running
        if not self.later or 0 < self.ran <= running:
            return []
        count = min(len(self.later), max(1, self._most - len(self.tickets)) if running else 1)
        now, self.later = self.later[:count], self.later[count:]
        return self._add(now)

    def _make_room(self, error: RuntimeError) -> None:
        """Go on where this is memory that has run out; any other error goes on its way."""
        if not out_of_memory(error):
            raise error
        log.warning("out of memory with %d problems of %d in this batch", len(self.tickets), self.device.running)
        if self._where.type == "cuda":
            torch.cuda.empty_cache()

    def _too_large(self, question: Question) -> DeviceOutOfMemory:
        return DeviceOutOfMemory(f"{question.layer} of {question.model} does not fit into {self.device.name}")

    def _sweep(self) -> None:
        self.parts = deque(part for part in self.parts if len(part))


def _too_late() -> DeadlinePassed:
    return DeadlinePassed("the deadline passed before the first evaluation")
