"""Questions about one layer that are solved together, and how many of them a step has time for."""

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
from worker.engine.accelerator import out_of_memory
from worker.engine.answers import Posed, Solved, answers, posable, pose
from worker.engine.pace import STEP_SECONDS, Pace, pace, room_in_memory
from worker.engine.questions import Answered, Batch, NoMemory, Question, Sketch, Step, Ticket
from worker.engine.threads import Threads
from worker.methods.suppression import Batch as SolverBatch
from worker.methods.suppression import Bounds, FastSolver, PixelSpace, Problems, ReferenceSolver, Solution, Solver
from worker.networks.layer import Layer

T = TypeVar("T")

MOST_EVALUATIONS = 8  # between two read-outs on a device that the host must wait for

Pair = tuple[Ticket, Posed]


def make_solver(question: Question, space: PixelSpace) -> Solver[Any]:
    """The solver that a question asks for."""
    if question.solver == "reference":
        return ReferenceSolver(budget=question.iterations or ReferenceSolver.budget)
    return FastSolver.of(space, question.effort, question.iterations)


class TorchBatch(Batch):
    """Questions about one layer, and one method.

    What is to be exact is stepped in float32, the rest in bfloat16 where that is faster: two parts, which take turns.
    What has ended is measured in steps of their own, as many as half a second has time for.

    Args:
        threads: the CPU's, which are told how long steps take.
        most: problems at most, if a benchmark asks for it.
    """

    def __init__(self, layer: Layer, threads: Threads, *, watched: bool = False, most: int | None = None) -> None:
        self.layer = layer
        self.threads = threads
        self.cut = layer.watched if watched else layer.cut
        self.bounds: WeakValueDictionary[tuple[bytes, torch.dtype], Bounds] = WeakValueDictionary()
        self.tickets: dict[int, Pair] = {}  # by the number that the solver's batch gave them
        self.parts: deque[SolverBatch[Any]] = deque()
        self.solved: deque[Solved] = deque()  # to be measured
        self.asked_most = most
        self._pace: Pace | None = None
        self.most: int | None = None  # problems, once the time of a step was seen
        self.seconds = inf  # that the last answer took to be measured

    def __len__(self) -> int:
        """How many are being answered."""
        return len(self.tickets) + len(self.solved)

    @property
    def pace(self) -> Pace:
        """Measured at the first question."""
        if self._pace is None:
            self._pace = pace(self.cut, self.layer.frame, self.layer.device)
        return self._pace

    @property
    def room(self) -> int:
        """As many as a step of half a second and the memory allow."""
        found = self._unless_full(lambda: min(self._most - len(self), self._memory()))
        return max(0 if len(self) else 1, found or 0)

    @property
    def _most(self) -> int:
        return self.asked_most or self.most or self.pace.batch

    def _memory(self) -> int:
        return room_in_memory(self.pace, self.layer.device, len(self))

    def add(self, tickets: Sequence[Ticket]) -> Answered:
        """Pose the problems and begin; silent and lone kernels are answered at once."""
        begun = self._unless_full(lambda: (pose([ticket.question for ticket in tickets], self.layer), self.pace))
        if begun is None:
            return self._halved(tickets, self.add)
        answered: Answered = []
        alike: dict[tuple[torch.dtype, str, int | None], list[Pair]] = {}
        for ticket, posed in zip(tickets, begun[0], strict=True):
            question = ticket.question
            if error := posable(question, posed):
                answered.append((ticket, error))
            else:
                exact = question.bounded or question.solver == "reference"
                precision = torch.float32 if exact else begun[1].precision
                alike.setdefault((precision, question.effort, question.iterations), []).append((ticket, posed))
        for (precision, *_), pairs in alike.items():
            answered += self._begin(pairs, precision)
        return answered

    def step(self) -> Answered:
        """A few evaluations of one part, or a few of what has ended measured."""
        if self.solved:
            return self._measure()
        if not self.parts:
            return []
        part = self.parts[0]
        self.parts.rotate()
        size, begin = len(part), time.perf_counter()
        with self.threads.step((self.cut, part.precision, size)):
            ended = self._unless_full(lambda: part.step(self._evaluations(part)))
        if ended is None:
            return self._halve(part)
        if not ended:
            self._adapt(part, time.perf_counter() - begin)
        for number, course in part.courses.items():
            self.tickets[number][0].step = Step(course.iteration, course.budget, course.terms)
        self._sketch(part)
        return self._ended(ended)

    def stop(self, tickets: Sequence[Ticket]) -> Answered:
        """X̂ as good as it is; nothing where there was no evaluation yet."""
        return [
            pair for part in self.parts for pair in self._ended(part.stop(self._numbers(part, tickets), "deadline"))
        ]

    def drop(self, tickets: Sequence[Ticket]) -> None:
        """Forget these."""
        if not tickets:
            return
        for part in self.parts:
            self._forget(part, self._numbers(part, tickets))
        self.solved = deque(one for one in self.solved if one[0] not in tickets)
        self._sweep()

    def _begin(self, pairs: Sequence[Pair], precision: torch.dtype) -> Answered:
        """Problems of one precision and of solvers that were told the same."""
        if self._unless_full(lambda: self._join(pairs, precision)):
            return []
        posed = dict(pairs)
        return self._halved(list(posed), lambda half: self._begin([(one, posed[one]) for one in half], precision))

    def _join(self, pairs: Sequence[Pair], precision: torch.dtype) -> bool:
        pairs = sorted(pairs, key=lambda pair: id(pair[0].question.picture))  # neighbours share their bounds below
        problems = Problems.join_all([self._watching(ticket.question, posed, precision) for ticket, posed in pairs])
        part = next((part for part in self.parts if part.precision is precision), None)
        own = part or SolverBatch(self.cut, precision)
        numbers = own.add(problems, make_solver(pairs[0][0].question, self.layer.space))
        self.tickets.update(zip(numbers, pairs, strict=True))
        if part is None:
            self.parts.append(own)
        return True

    def _watching(self, question: Question, posed: Posed, precision: torch.dtype) -> Problems:
        """Of evidence, with what its image causes below the layer, which the problems of an image share."""
        problem = posed.problem
        if self.cut is self.layer.cut:
            return problem
        key = hashlib.sha256(question.picture.tobytes()).digest(), precision
        if (bounds := self.bounds.get(key)) is None:
            bounds = self.bounds[key] = self.layer.watched.bounds(problem.image, precision)
        most = inf if question.max_invention is None else question.max_invention
        weight = question.weight(len(bounds.limits))
        return problem.watching([bounds], *problem.image.new_tensor([[weight], [most]]))

    def _ended(self, ended: Sequence[tuple[int, Solution | None]]) -> Answered:
        """What is solved waits to be measured."""
        answered: Answered = []
        for number, solution in ended:
            ticket, posed = self.tickets.pop(number)
            if solution is None:
                answered.append((ticket, NotANumber(f"the loss of kernel {ticket.question.kernel} is not finite")))
            elif solution.stopped == "deadline" and not solution.iterations:
                answered.append((ticket, DeadlinePassed("the deadline passed before the first evaluation")))
            else:
                self.solved.append((ticket, posed, solution))
        self._sweep()
        return answered

    def _measure(self) -> Answered:
        """As many of what is solved as half a second has time for."""
        guess = 8 * self.pace.seconds if self.seconds == inf else self.seconds
        count = min(len(self.solved), max(1, int(STEP_SECONDS / guess)))
        now = [self.solved.popleft() for _ in range(count)]
        begin = time.perf_counter()
        answered = answers(self.layer, now)
        self.seconds = (time.perf_counter() - begin) / count
        return answered

    def _sketch(self, part: SolverBatch[Any]) -> None:
        """X̂ as it is now, for those who want to see it form."""
        wanted = [number for number in part.courses if self.tickets[number][0].wanted]
        if not wanted:
            return
        shown = self.layer.space.to_bytes(part.iterates(wanted)).permute(0, 2, 3, 1).cpu().numpy()
        for number, picture in zip(wanted, shown, strict=True):
            ticket = self.tickets[number][0]
            ticket.sketch, ticket.wanted = Sketch(part.courses[number].iteration, picture), False

    def _evaluations(self, part: SolverBatch[Any]) -> int:
        """How many go by before the next read-out: one on the CPU, where a read-out costs nothing."""
        if self.layer.device.type == "cpu":
            return 1
        return max(1, min(MOST_EVALUATIONS, int(STEP_SECONDS / 2 / (self.pace.seconds * len(part)))))

    def _adapt(self, part: SolverBatch[Any], seconds: float) -> None:
        """A step that takes too long: fewer join; one that is short and full on a large device: more."""
        size = len(part)
        if seconds > STEP_SECONDS and size > 1:
            self.most = max(1, int(size * STEP_SECONDS / seconds))
        elif seconds < STEP_SECONDS / 2 and size >= self._most:
            self.most = min(2 * self._most, self.pace.most)

    def _halve(self, part: SolverBatch[Any]) -> Answered:
        """There was no memory for a step: half of the problems go, or all where not even the rest can be kept."""
        back = list(part.courses)[len(part) // 2 :]
        tickets = {number: self.tickets[number][0] for number in part.courses}
        if not self._unless_full(lambda: self._forget(part, back)):
            back = list(tickets)
            self.parts.remove(part)
            for number in back:
                self.tickets.pop(number, None)
        self._sweep()
        return [(tickets[number], NoMemory()) for number in back]

    def _forget(self, part: SolverBatch[Any], numbers: Sequence[int]) -> bool:
        part.drop(numbers)
        for number in numbers:
            del self.tickets[number]
        return True

    def _halved(self, tickets: Sequence[Ticket], begin: Callable[[Sequence[Ticket]], Answered]) -> Answered:
        """There was no memory for so many: half of them begin, if there is more than one."""
        half = len(tickets) // 2
        return (begin(tickets[:half]) if half else []) + [(ticket, NoMemory()) for ticket in tickets[half:]]

    def _unless_full(self, action: Callable[[], T]) -> T | None:
        """What it returns; None where memory has run out, with all that it had taken given back."""
        try:
            return action()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        if self.layer.device.type == "cuda":  # only now: while the error is handled it holds the failed step's maps
            torch.cuda.empty_cache()
        return None

    def _numbers(self, part: SolverBatch[Any], tickets: Sequence[Ticket]) -> list[int]:
        return [number for number in part.courses if self.tickets[number][0] in tickets]

    def _sweep(self) -> None:
        self.parts = deque(part for part in self.parts if len(part))
