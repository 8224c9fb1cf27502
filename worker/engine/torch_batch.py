"""Questions about one layer that are solved together, in batches that fit into time and memory."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import torch

from shared.errors import DeadlinePassed, NotANumber
from worker.engine.answers import Posed, Solved, answers, pose, unsolvable
from worker.engine.questions import Answered, Batch, OutOfMemory, Preview, Question, Step, Ticket
from worker.engine.speed import STEP_SECONDS, Speed, measured_speed, room_in_memory
from worker.engine.threads import Threads
from worker.methods.suppression import (
    ActivationBounds,
    FastSolver,
    PixelSpace,
    Problems,
    ReferenceSolver,
    Solution,
    Solver,
    SolverBatch,
)
from worker.networks.failures import out_of_memory
from worker.networks.layer import LoadedLayer

T = TypeVar("T")

MOST_EVALUATIONS = 8  # between two reads from a device that works asynchronously

Pair = tuple[Ticket, Posed]


def make_solver(question: Question, space: PixelSpace) -> Solver[Any]:
    """The question's solver."""
    if question.solver == "reference":
        return ReferenceSolver(budget=question.iterations or ReferenceSolver.budget)
    return FastSolver.of(space, question.effort, question.iterations)


class TorchBatch(Batch):
    """Questions about one layer with one method.

    Questions with a bound or for the reference solver are evaluated in float32, the others in bfloat16 if that is
    faster. These are two solver batches, which are stepped in turn. Solutions are measured in separate steps, as many
    as fit into half a second.

    Args:
        layer: of all questions.
        threads: chooses the number of CPU threads of each step.
        tapped: whether the questions use the invention L_e.
        most: the largest batch, for benchmarks.
    """

    def __init__(self, layer: LoadedLayer, threads: Threads, *, tapped: bool = False, most: int | None = None) -> None:
        self.layer = layer
        self.threads = threads
        self.cut = layer.tapped if tapped else layer.cut
        self.bounds: WeakValueDictionary[tuple[bytes, torch.dtype], ActivationBounds] = WeakValueDictionary()
        self.tickets: dict[int, Pair] = {}  # by their number in the solver batch
        self.parts: deque[SolverBatch[Any]] = deque()
        self.solved: deque[Solved] = deque()  # to be measured
        self.fixed_most = most
        self._speed: Speed | None = None
        self.most: int | None = None  # questions, adapted to the time of a step
        self.seconds = inf  # of the last measurement, per solution

    def __len__(self) -> int:
        """The number of questions."""
        return len(self.tickets) + len(self.solved)

    @property
    def speed(self) -> Speed:
        """Measured at the first question."""
        if self._speed is None:
            self._speed = measured_speed(self.cut, self.layer.frame, self.layer.device)
        return self._speed

    @property
    def room(self) -> int:
        """How many more fit into a step of half a second and the memory."""
        found = self._unless_out_of_memory(lambda: min(self._most - len(self), self._memory()))
        return max(0 if len(self) else 1, found or 0)

    @property
    def _most(self) -> int:
        return self.fixed_most or self.most or self.speed.batch

    def _memory(self) -> int:
        return room_in_memory(self.speed, self.layer.device, len(self))

    def add(self, tickets: Sequence[Ticket]) -> Answered:
        """Pose the problems and add them to the solver batches; silent and lone kernels fail at once."""
        posed_and_speed = self._unless_out_of_memory(
            lambda: (pose([ticket.question for ticket in tickets], self.layer), self.speed)
        )
        if posed_and_speed is None:
            return self._halved(tickets, self.add)
        answered: Answered = []
        alike: dict[tuple[torch.dtype, str, int | None], list[Pair]] = {}
        for ticket, posed in zip(tickets, posed_and_speed[0], strict=True):
            question = ticket.question
            if error := unsolvable(question, posed):
                answered.append((ticket, error))
            else:
                exact = question.bounded or question.solver == "reference"
                precision = torch.float32 if exact else posed_and_speed[1].precision
                alike.setdefault((precision, question.effort, question.iterations), []).append((ticket, posed))
        for (precision, *_), pairs in alike.items():
            answered += self._begin(pairs, precision)
        return answered

    def step(self) -> Answered:
        """A few evaluations of one solver batch, or a few measurements of solutions."""
        if self.solved:
            return self._measure()
        if not self.parts:
            return []
        part = self.parts[0]
        self.parts.rotate()
        size, begin = len(part), time.perf_counter()
        with self.threads.step((self.cut, part.precision, size)):
            ended = self._unless_out_of_memory(lambda: part.step(self._evaluations(part)))
        if ended is None:
            return self._halve(part)
        if not ended:
            self._adapt(part, time.perf_counter() - begin)
        for number, progress in part.progress.items():
            self.tickets[number][0].step = Step(progress.iteration, progress.budget, progress.terms)
        self._set_previews(part)
        return self._ended(ended)

    def stop(self, tickets: Sequence[Ticket]) -> Answered:
        """End with the best X̂ so far; questions without an evaluation fail."""
        return [
            pair for part in self.parts for pair in self._ended(part.stop(self._numbers(part, tickets), "deadline"))
        ]

    def drop(self, tickets: Sequence[Ticket]) -> None:
        """Remove these questions."""
        if not tickets:
            return
        for part in self.parts:
            self._remove(part, self._numbers(part, tickets))
        self.solved = deque(one for one in self.solved if one[0] not in tickets)
        self._remove_empty_parts()

    def _begin(self, pairs: Sequence[Pair], precision: torch.dtype) -> Answered:
        """Add problems with the same precision and solver parameters to a solver batch."""
        if self._unless_out_of_memory(lambda: self._join(pairs, precision)):
            return []
        posed = dict(pairs)
        return self._halved(list(posed), lambda half: self._begin([(one, posed[one]) for one in half], precision))

    def _join(self, pairs: Sequence[Pair], precision: torch.dtype) -> bool:
        pairs = sorted(
            pairs, key=lambda pair: id(pair[0].question.picture)
        )  # adjacent rows share their activation bounds
        problems = Problems.join_all(
            [self._with_invention(ticket.question, posed, precision) for ticket, posed in pairs]
        )
        part = next((part for part in self.parts if part.precision is precision), None)
        own = part or SolverBatch(self.cut, precision)
        numbers = own.add(problems, make_solver(pairs[0][0].question, self.layer.space))
        self.tickets.update(zip(numbers, pairs, strict=True))
        if part is None:
            self.parts.append(own)
        return True

    def _with_invention(self, question: Question, posed: Posed, precision: torch.dtype) -> Problems:
        """The problem, for evidence with its image's activation bounds, which the problems of an image share."""
        problem = posed.problem
        if self.cut is self.layer.cut:
            return problem
        key = hashlib.sha256(question.picture.tobytes()).digest(), precision
        if (bounds := self.bounds.get(key)) is None:
            bounds = self.bounds[key] = self.layer.tapped.bounds(problem.image, precision)
        most = inf if question.max_invention is None else question.max_invention
        weight = question.weight(len(bounds.layers))
        return problem.with_invention([bounds], *problem.image.new_tensor([[weight], [most]]))

    def _ended(self, ended: Sequence[tuple[int, Solution | None]]) -> Answered:
        """Queue the solutions for their measurement. Returns the failures."""
        answered: Answered = []
        for number, solution in ended:
            ticket, posed = self.tickets.pop(number)
            if solution is None:
                answered.append((ticket, NotANumber(f"the loss of kernel {ticket.question.kernel} is not finite")))
            elif solution.stopped == "deadline" and not solution.iterations:
                answered.append((ticket, DeadlinePassed("the deadline passed before the first evaluation")))
            else:
                self.solved.append((ticket, posed, solution))
        self._remove_empty_parts()
        return answered

    def _measure(self) -> Answered:
        """Measure as many solutions as fit into half a second."""
        guess = 8 * self.speed.seconds if self.seconds == inf else self.seconds
        count = min(len(self.solved), max(1, int(STEP_SECONDS / guess)))
        now = [self.solved.popleft() for _ in range(count)]
        begin = time.perf_counter()
        answered = answers(self.layer, now)
        self.seconds = (time.perf_counter() - begin) / count
        return answered

    def _set_previews(self, part: SolverBatch[Any]) -> None:
        """Set the present X̂ as the preview of the tickets that want one."""
        wanted = [number for number in part.progress if self.tickets[number][0].preview_wanted]
        if not wanted:
            return
        shown = self.layer.space.to_bytes(part.iterates(wanted)).permute(0, 2, 3, 1).cpu().numpy()
        for number, picture in zip(wanted, shown, strict=True):
            ticket = self.tickets[number][0]
            ticket.preview, ticket.preview_wanted = Preview(part.progress[number].iteration, picture), False

    def _evaluations(self, part: SolverBatch[Any]) -> int:
        """Evaluations before the next read from the device: one on the CPU, where a read costs nothing."""
        if self.layer.device.type == "cpu":
            return 1
        return max(1, min(MOST_EVALUATIONS, int(STEP_SECONDS / 2 / (self.speed.seconds * len(part)))))

    def _adapt(self, part: SolverBatch[Any], seconds: float) -> None:
        """Shrink the batch after a long step; let it grow after a short step of a full batch."""
        size = len(part)
        if seconds > STEP_SECONDS and size > 1:
            self.most = max(1, int(size * STEP_SECONDS / seconds))
        elif seconds < STEP_SECONDS / 2 and size >= self._most:
            self.most = min(2 * self._most, self.speed.most)

    def _halve(self, part: SolverBatch[Any]) -> Answered:
        """After a step ran out of memory: return half of the problems, or all if the other half cannot be kept."""
        back = list(part.progress)[len(part) // 2 :]
        tickets = {number: self.tickets[number][0] for number in part.progress}
        if not self._unless_out_of_memory(lambda: self._remove(part, back)):
            back = list(tickets)
            self.parts.remove(part)
            for number in back:
                self.tickets.pop(number, None)
        self._remove_empty_parts()
        return [(tickets[number], OutOfMemory()) for number in back]

    def _remove(self, part: SolverBatch[Any], numbers: Sequence[int]) -> bool:
        part.drop(numbers)
        for number in numbers:
            del self.tickets[number]
        return True

    def _halved(self, tickets: Sequence[Ticket], start: Callable[[Sequence[Ticket]], Answered]) -> Answered:
        """After memory ran out: start with half of the tickets, if there are several, and return the rest."""
        half = len(tickets) // 2
        return (start(tickets[:half]) if half else []) + [(ticket, OutOfMemory()) for ticket in tickets[half:]]

    def _unless_out_of_memory(self, action: Callable[[], T]) -> T | None:
        """The action's result; None if memory ran out, after what the action had allocated is freed."""
        try:
            return action()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        if self.layer.device.type == "cuda":  # not above, where the error still refers to the maps of the failed step
            torch.cuda.empty_cache()
        return None

    def _numbers(self, part: SolverBatch[Any], tickets: Sequence[Ticket]) -> list[int]:
        return [number for number in part.progress if self.tickets[number][0] in tickets]

    def _remove_empty_parts(self) -> None:
        self.parts = deque(part for part in self.parts if len(part))
