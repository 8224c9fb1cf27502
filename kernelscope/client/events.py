"""A job's events, as `GET /jobs/{id}/events` tells them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from httpx_sse import ServerSentEvent
from pydantic import TypeAdapter

from kernelscope.client.errors import refused
from shared.errors import Problem
from shared.schemas import ItemResult, Status


@dataclass(frozen=True)
class StatusEvent:
    """The job has another status now."""

    status: Status


@dataclass(frozen=True)
class ProgressEvent:
    """How far it is: what `Job.progress` has, and each item that runs with its iteration and loss terms."""

    completed: int
    total: int | None
    iteration: int | None = None
    budget: int | None = None
    loss: float | None = None
    fraction: float = 0.0
    items: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class ResultEvent:
    """One item has ended; its files are there."""

    result: ItemResult


Event = StatusEvent | ProgressEvent | ResultEvent
PROGRESS = TypeAdapter(ProgressEvent)
STATUS = TypeAdapter(StatusEvent)


class Story:
    """What was told so far, over as many connections as it took.

    Args:
        result: the class of the results that are told.
    """

    def __init__(self, result: type[ItemResult]) -> None:
        self.result = result
        self.last_id = ""
        self.over = False

    @property
    def headers(self) -> dict[str, str]:
        """Of the next connection: what was told is not told again."""
        return {"Last-Event-ID": self.last_id} if self.last_id else {}

    def told(self, sent: ServerSentEvent) -> Event | None:
        """The event; None for a kind that this client does not know, and for a fault after which one comes back.

        Raises:
            NotFound: the job was deleted.
            Unauthorized: the key was revoked.
        """
        self.last_id = sent.id or self.last_id
        match sent.event:
            case "status":
                event = STATUS.validate_json(sent.data)
                self.over = event.status.terminal
                return event
            case "progress":
                return PROGRESS.validate_json(sent.data)
            case "result":
                return ResultEvent(self.result.model_validate_json(sent.data))
            case "gone" | "problem":
                problem = Problem.model_validate_json(sent.data)
                if problem.status < 500:
                    raise refused(problem)
        return None
