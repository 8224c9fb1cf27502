"""Celery's tasks: thin, they call the runner."""

from __future__ import annotations

from shared.queue import RUN_SLICE
from worker import app


@app.celery.task(name=RUN_SLICE)
def run_slice(slice_id: str) -> None:
    """Run one slice of a job, if it is still there to be run."""
    assert app.process is not None
    app.process.runner.run(slice_id)
