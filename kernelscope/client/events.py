"""The events of a job, as `GET /jobs/{id}/events` sends them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from httpx_sse import ServerSentEvent
from pydantic import TypeAdapter

from kernelscope.client.errors import error_for
from shared.errors import Problem
from shared.schemas import ItemResult, Status

ResultT_co = TypeVar("ResultT_co", bound=ItemResult, covariant=True)


@dataclass(frozen=True)
class StatusEvent:
    """The job's status changed."""

    status: Status


@dataclass(frozen=True)
class ProgressEvent:
    """The job's progress, with the iteration and the loss terms of each item that is running."""

    completed: int
    total: int | None
    iteration: int | None = None
    budget: int | None = None
    loss: float | None = None
    fraction: float = 0.0
    items: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class ResultEvent(Generic[ResultT_co]):
    """One item has ended; its files can be downloaded."""

    result: ResultT_co


Event = StatusEvent | ProgressEvent | ResultEvent[Any]
PROGRESS = TypeAdapter(ProgressEvent)
STATUS = TypeAdapter(StatusEvent)


class EventLog(Generic[ResultT_co]):
    """How much of a job's events has been read, over any number of connections.

    Args:
        results: parses results.
        context: of that parsing.
    """

    def __init__(self, results: TypeAdapter[ResultT_co], context: object = None) -> None:
        self.results = results
        self.context = context
        self.last_id = ""
        self.ended = False

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the next connection, so that the events continue after the last one."""
        return {"Last-Event-ID": self.last_id} if self.last_id else {}

    def parse(self, sent: ServerSentEvent) -> StatusEvent | ProgressEvent | ResultEvent[ResultT_co] | None:
        """The next event; None for one of an unknown type, and for a server error after which the client reconnects.

        Raises:
            NotFound: the job was deleted.
            Unauthorized: the key was revoked.
        """
        self.last_id = sent.id or self.last_id
        match sent.event:
            case "status":
                event = STATUS.validate_json(sent.data)
                self.ended = event.status.terminal
                return event
            case "progress":
                return PROGRESS.validate_json(sent.data)
            case "result":
                return ResultEvent(self.results.validate_json(sent.data, context=self.context))
            case "gone" | "problem":
                problem = Problem.model_validate_json(sent.data)
                if problem.status < 500:
                    raise error_for(problem)
        return None
