"""What the jobs of both clients have: the record without results, which are read when they are asked for."""

from __future__ import annotations

from typing import Any, Generic, Self, TypeVar

from pydantic import BaseModel, Field

from kernelscope.client.errors import JobFailed
from shared import schemas
from shared.errors import Problem

ResultT = TypeVar("ResultT", bound=schemas.ItemResult)


class ResultsOf(BaseModel, Generic[ResultT]):
    """A page of a job's results."""

    results: list[ResultT]
    next_cursor: str | None


class BaseJob(schemas.JobSummary, Generic[ResultT]):
    """A job as it was when it was last asked for."""

    error: Problem | None
    known_results: list[ResultT] | None = Field(
        alias="results",
        exclude=True,
        repr=False,
        description="null: too many to come with the record and not yet read",
    )

    def check(self) -> Self:
        """Itself, where there is an explanation at least.

        Raises:
            JobFailed: it has ended without one.
        """
        if self.status.terminal and self.progress.completed <= self.failed_items:
            raise JobFailed(self, self.error.detail if self.error else "nothing was finished")
        return self

    def _become(self, other: BaseJob[ResultT]) -> Self:
        self.__dict__.update(other.__dict__)
        return self

    def _plain(self) -> tuple[Any, ...]:
        return self.model_dump(exclude={"results"}), [one.model_dump() for one in self.known_results or []]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BaseJob) and self._plain() == other._plain()

    __hash__ = None  # type: ignore[assignment]
