"""Questions that a baseline answers: a forward pass and a way back for each, a few at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from shared.errors import DeadlinePassed, DeviceOutOfMemory
from worker.answers import Posed, measured, posable, pose
from worker.baselines import attribution, estimated, private, rules
from worker.networks import LoadedNetwork
from worker.pace import out_of_memory, pace, room_in_memory
from worker.questions import Answered, Batch, Question, Ticket
from worker.suppression import Solution

PASSES = 4  # LRP goes through a convolution up to so many times where a gradient goes once, and keeps as much more
MOST_WAITING = 64


class BaselineBatch(Batch):
    """Questions about one layer to one of the baselines.

    Args:
        device: its name, for errors.
    """

    def __init__(self, device: str, network: LoadedNetwork, layer: str) -> None:
        self.device = device
        self.network = network
        self.cut = network.cut(layer)
        self.open: list[Ticket] = []
        self.fits = MOST_WAITING  # at once, as far as is known

    def __len__(self) -> int:
        """How many wait."""
        return len(self.open)

    @property
    def room(self) -> int:
        """They take no memory before their turn, and leave in the order in which they came."""
        return MOST_WAITING - len(self)

    def add(self, tickets: Sequence[Ticket]) -> Answered:
        """They are answered in the next steps."""
        self.open += tickets
        return []

    def step(self) -> Answered:
        """Answer as many as half a second and the memory allow."""
        if not self.open:
            return []
        speed = pace(self.cut, self.network.input_size, self.network.space.mean.device)
        memory = room_in_memory(speed, self.network.space.mean.device) // PASSES
        count = max(1, min(self.fits, speed.batch // PASSES, memory))
        now = [ticket for ticket in self.open[:count] if ticket.question.rule == self.open[0].question.rule]
        try:
            answered = self._answered(now)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return self._halved(now)
        self.drop(now)
        return answered

    def stop(self, tickets: Sequence[Ticket]) -> Answered:
        """There is no half of an answer."""
        self.drop(tickets)
        return [
            (ticket, DeadlinePassed("the deadline passed before the attribution was computed")) for ticket in tickets
        ]

    def drop(self, tickets: Sequence[Ticket]) -> None:
        """Forget these."""
        self.open = [ticket for ticket in self.open if ticket not in tickets]

    def _answered(self, tickets: list[Ticket]) -> Answered:
        posed = pose([ticket.question for ticket in tickets], self.network)
        answered: Answered = []
        left: list[tuple[Question, Posed]] = []
        whose: list[Ticket] = []
        for ticket, one in zip(tickets, posed, strict=True):
            if error := posable(ticket.question, one):
                answered.append((ticket, error))
            else:
                left.append((ticket.question, one))
                whose.append(ticket)
        if left:
            solutions = self._solutions(left)
            for ticket, (question, one), solution in zip(whose, left, solutions, strict=True):
                answered.append((ticket, measured(self.network, question, one, solution)))
        return answered

    def _solutions(self, pairs: list[tuple[Question, Posed]]) -> list[Solution]:
        begin = time.perf_counter()
        question, space = pairs[0][0], self.network.space
        own = private(self.cut, question.method)
        image = torch.cat([posed.problem.image for _, posed in pairs])
        kernel = torch.cat([posed.problem.kernel for _, posed in pairs])
        found = attribution(own, image, kernel, question.method, rules(own, question.method, question.rule, space))
        pictures = [
            estimated(found[row, None], image[row, None], question.scaling, space)[0]
            for row, (question, _) in enumerate(pairs)
        ]
        seconds = (time.perf_counter() - begin) / len(pairs)
        return [
            Solution(
                x=x,
                loss=float("nan"),
                iterations=1,
                seconds=seconds,
                stopped="converged",
                precision="float32",
                history=[],
            )
            for x in pictures
        ]

    def _halved(self, tickets: list[Ticket]) -> Answered:
        """Memory has run out: try with fewer, unless there was but one."""
        if self.network.space.mean.device.type == "cuda":
            torch.cuda.empty_cache()
        self.fits = max(1, len(tickets) // 2)
        if len(tickets) > 1:
            return []
        self.drop(tickets)
        where = f"{tickets[0].question.layer} of {tickets[0].question.model}"
        return [(tickets[0], DeviceOutOfMemory(f"{where} does not fit into {self.device}"))]
