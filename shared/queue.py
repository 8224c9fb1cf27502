"""Celery over Redis: it carries the news that a slice may be runnable, and nothing else. The record is the truth."""

from __future__ import annotations

from celery import Celery
from kombu.entity import Queue
from kombu.exceptions import OperationalError
from redis import Redis

from shared.errors import StoreUnavailable
from shared.jobs.record import redis_errors

QUEUES = ("interactive", "bulk")
RUN_SLICE = "worker.run_slice"
RETRY = {"max_retries": 1, "interval_start": 0}  # a connection that Redis's restart has cut is made anew


def make_celery(redis_url: str) -> Celery:
    """The Celery application of the API (which only sends) and of the worker.

    No result backend: with one, sending blocks for 19 s when Redis is down. Messages are acknowledged before the
    work starts, because the lease in the record, not the broker, brings back what a dead worker held.
    """
    app = Celery("kernelscope", broker=redis_url)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_acks_late=False,
        task_queues=[Queue(name, routing_key=name) for name in QUEUES],
        task_default_queue="interactive",
        task_publish_retry=False,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,  # a message that waits behind a long slice is one that no idle worker sees
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "queue_order_strategy": "round_robin",
            "socket_timeout": 5,
            "socket_connect_timeout": 1,
            "socket_keepalive": True,
            "max_retries": 0,
        },
    )
    return app


def announce(app: Celery, slice_id: str, queue: str) -> None:
    """Send one message: this slice may be runnable. Losing it is harmless, housekeeping sends it again.

    Raises:
        StoreUnavailable: the broker does not take it.
    """
    try:
        app.send_task(RUN_SLICE, args=[slice_id], queue=queue, retry=True, retry_policy=RETRY)
    except OperationalError as error:
        raise StoreUnavailable("the queue does not answer") from error


def backlog(redis: Redis) -> tuple[int, int]:
    """Messages that the broker (the same Redis) holds, and those handed to workers that have not begun them."""
    with redis_errors():
        return int(sum(redis.llen(name) for name in QUEUES)), int(redis.hlen("unacked"))
