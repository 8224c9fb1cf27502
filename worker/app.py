"""The Celery application of the worker, and the hooks that connect the process's life cycle to Celery's.

Run with `python -m worker`.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from celery import signals
from kombu.asynchronous import get_event_loop

from shared import logs, telemetry
from shared.advice import log_start
from shared.queue import QUEUES, announce, make_celery
from shared.settings import settings
from worker.engine.memory import reuse_memory
from worker.engine.questions import NoSuchDevice
from worker.jobs import admission
from worker.process import WorkerProcess

POLL_SECONDS = 0.2  # between two polls of the queues
WAKE_SECONDS = 0.1  # after which a free slot is noticed

celery = make_celery(settings().redis)
celery.conf.update(imports=["worker.tasks"], worker_consumer="worker.consumer:Consumer")
celery.conf.broker_transport_options.update(
    queue_order_strategy="worker.jobs.admission:QueueOrder", polling_interval=POLL_SECONDS
)
process: WorkerProcess | None = None


@signals.worker_ready.connect
def _ready(**_: Any) -> None:
    if loop := get_event_loop():  # without this, Celery sleeps for a second when all slots are occupied
        loop.call_repeatedly(WAKE_SECONDS, lambda: None)
    if process:
        process.ready.set()


@signals.worker_shutting_down.connect
def _stop(**_: Any) -> None:
    if process:
        process.stop()


@signals.worker_shutdown.connect
def _gone(sender: Any, **_: Any) -> None:
    if process:
        if not process.stopping.is_set():  # the consumer's own error
            process.exit_code = sender.exitcode or 0
        process.deregister()
    telemetry.stop()


def main() -> None:
    """Load the networks, then run slices, each in a thread, with one engine on the process's device.

    The process is created before Celery starts, because Celery's hooks would swallow its errors, and a worker should
    not consume messages before its networks are loaded.
    """
    global process  # noqa: PLW0603 - Celery's hooks and tasks have no other place to find it
    reuse_memory()
    logs.configure(settings().log_level, settings().log_format)
    log_start(settings(), "a worker")
    telemetry.start(settings().otlp_endpoint, "kernelscope-worker")
    try:
        process = WorkerProcess(settings(), partial(announce, celery))
    except NoSuchDevice as error:
        sys.exit(f"this worker cannot start: {error}")
    process.start()
    admission.bulk.most = max(1, process.slices // 4)
    arguments = ["worker", "--pool=threads", f"--concurrency={process.slices}", f"--queues={','.join(QUEUES)}"]
    arguments += ["--without-gossip", "--without-mingle", f"--loglevel={settings().log_level}"]
    celery.worker_main(arguments)
    process.close()
    sys.exit(process.exit_code)
