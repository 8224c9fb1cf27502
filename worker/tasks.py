"""Celery's tasks, which call the slice runner."""

from __future__ import annotations

from celery import Task

from shared.queue import RUN_SLICE
from worker import app
from worker.jobs import admission


@app.celery.task(name=RUN_SLICE, bind=True)
def run_slice(self: Task, slice_id: str) -> None:
    """Run the next slice of the queue that the message came from."""
    assert app.process is not None
    queue = self.request.delivery_info["routing_key"]
    with admission.bulk.occupied_by(queue):
        app.process.runner.run(queue, slice_id)
