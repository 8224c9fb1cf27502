"""Questions to the baseline methods: one forward and one backward pass each, a few at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import lru_cache
from math import nan

import torch
from torch import nn

from shared.errors import DeadlinePassed, MethodNotApplicable
from worker.engine.answers import Posed, answers, pose, unsolvable
from worker.engine.questions import Answered, Batch, OutOfMemory, Question, Ticket
from worker.engine.speed import measured_speed, room_in_memory
from worker.methods.baselines import attribution, estimated, private, rules
from worker.methods.suppression import Solution
from worker.networks.failures import out_of_memory
from worker.networks.layer import LoadedLayer

PASSES = 4  # LRP evaluates a convolution up to this often per backward pass, and needs as much more memory
MOST_WAITING = 64


@lru_cache(maxsize=4)  # torch.fx caches the code of each compiled graph
def _private(cut: nn.Module, method: str, signed: bool) -> nn.Module:  # noqa: FBT001
    return private(cut, method, signed=signed)


class BaselineBatch(Batch):
    """Questions about one layer to one of the baselines."""

    def __init__(self, layer: LoadedLayer) -> None:
        self.layer = layer
        self.open: list[Ticket] = []
        self.fits = MOST_WAITING  # questions at once, as far as is known

    def __len__(self) -> int:
        """The number of open questions."""
        return len(self.open)

    @property
    def room(self) -> int:
        """Open questions take no memory, and are answered in the order in which they were added."""
        return MOST_WAITING - len(self)

    def add(self, tickets: Sequence[Ticket]) -> Answered:
        """Append the questions; the next steps answer them."""
        self.open += tickets
        return []

    def step(self) -> Answered:
        """Answer as many questions as fit into half a second and the memory."""
        if not self.open:
            return []
        now = [ticket for ticket in self.open[: self.fits] if ticket.question.rule == self.open[0].question.rule]
        try:
            speed = measured_speed(self.layer.cut, self.layer.frame, self.layer.device)
            memory = room_in_memory(speed, self.layer.device) // PASSES
            now = now[: max(1, min(speed.batch // PASSES, memory))]
            answered = self._answered(now)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            answered = self._smaller_batch(now)
        self.drop([ticket for ticket, _ in answered])
        return answered

    def stop(self, tickets: Sequence[Ticket]) -> Answered:
        """Fail: there is no partial attribution."""
        self.drop(tickets)
        return [
            (ticket, DeadlinePassed("the deadline passed before the attribution was computed")) for ticket in tickets
        ]

    def drop(self, tickets: Sequence[Ticket]) -> None:
        """Remove these questions."""
        self.open = [ticket for ticket in self.open if ticket not in tickets]

    def _answered(self, tickets: list[Ticket]) -> Answered:
        posed = pose([ticket.question for ticket in tickets], self.layer)
        refused: Answered = []
        left: list[tuple[Ticket, Posed]] = []
        for ticket, one in zip(tickets, posed, strict=True):
            if error := self._not_applicable(ticket.question) or unsolvable(ticket.question, one):
                refused.append((ticket, error))
            else:
                left.append((ticket, one))
        solutions = self._solutions([(ticket.question, one) for ticket, one in left]) if left else []
        return refused + answers(
            self.layer, [(*pair, solution) for pair, solution in zip(left, solutions, strict=True)]
        )

    def _not_applicable(self, question: Question) -> MethodNotApplicable | None:
        """The error if the method has no rule for a node below the layer."""
        reason = self.layer.without.get(question.method)
        return MethodNotApplicable(f"{reason}, which is below {self.layer}") if reason else None

    def _solutions(self, pairs: list[tuple[Question, Posed]]) -> list[Solution]:
        begin = time.perf_counter()
        question, space = pairs[0][0], self.layer.space
        own = _private(self.layer.cut, question.method, self.layer.signed)
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
                loss=nan,
                iterations=1,
                seconds=seconds,
                stopped="converged",
                precision="float32",
                history=[],
            )
            for x in pictures
        ]

    def _smaller_batch(self, tickets: list[Ticket]) -> Answered:
        """Memory has run out: fewer are tried next, and a single question is returned."""
        if self.layer.device.type == "cuda":
            torch.cuda.empty_cache()
        self.fits = max(1, len(tickets) // 2)
        return [(tickets[0], OutOfMemory())] if len(tickets) == 1 else []
