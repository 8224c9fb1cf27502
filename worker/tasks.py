"""Celery's tasks: thin, they call the runner."""

from __future__ import annotations

from celery import Task

from shared.queue import RUN_SLICE
from worker import app, turns


@app.celery.task(name=RUN_SLICE, bind=True)
def run_slice(self: Task, slice_id: str) -> None:
    """Run one slice of a job, if it is still there to be run."""
    assert app.process is not None
    with turns.bulk.taken_by(self.request.delivery_info["routing_key"]):
        app.process.runner.run(slice_id)
