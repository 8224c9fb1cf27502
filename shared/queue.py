"""Celery over Redis: it carries the news that a slice may be runnable, and nothing else. The record is the truth."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from celery import Celery
from kombu.entity import Queue
from kombu.exceptions import OperationalError
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as transport
from redis.connection import parse_url
from redis.exceptions import ResponseError

from shared.errors import StoreUnavailable

QUEUES = ("interactive", "bulk")
RUN_SLICE = "worker.run_slice"
RETRY = {"max_retries": 1, "interval_start": 0}  # a connection that Redis's restart has cut is made anew


class Transport(transport.Transport):
    """Kombu's, for which a Redis that refuses is one that is away: it is waited for, and asked on a new connection.

    Else a worker would lose a place for good with each message that it could not acknowledge, and would go on asking a
    master that is none any more.
    """

    connection_errors = (*transport.Transport.connection_errors, ResponseError)


TRANSPORT_ALIASES.update(dict.fromkeys(("redis", "rediss"), f"{__name__}:Transport"))


def make_celery(redis_url: str) -> Celery:
    """The Celery application of the API (which only sends) and of the worker.

    No result backend: with one, sending blocks for 19 s when Redis is down. Messages are acknowledged before the
    work starts, because the lease in the record, not the broker, brings back what a dead worker held.
    """
    url, tls = broker(redis_url)
    app = Celery("kernelscope", broker=url)
    app.conf.update(
        broker_use_ssl=tls,
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
        broker_channel_error_retry=True,  # a Redis that refuses writes refuses BRPOP; it is waited for too
        broker_transport_options={
            "queue_order_strategy": "round_robin",
            "socket_timeout": 5,
            "socket_connect_timeout": 1,
            "socket_keepalive": True,
            "max_retries": 0,
        },
    )
    return app


def broker(redis_url: str) -> tuple[str, dict[str, Any] | None]:
    """Redis's URL as kombu reads it, and what it needs for TLS: by itself it would verify no certificate."""
    options, parts = parse_url(redis_url), urlsplit(redis_url)
    own = {name: value for name, value in options.items() if name.startswith("ssl_")}
    tls = {"ssl_cert_reqs": "required", **own} if parts.scheme == "rediss" else None
    return parts._replace(path=f"/{options.get('db', 0)}", query="").geturl(), tls


def announce(app: Celery, slice_id: str, queue: str) -> None:
    """Send one message: a slice of this queue may be runnable. Losing it is harmless, housekeeping sends it again.

    Whoever receives it takes the slice whose turn it is, which need not be the one that the message is about.

    Args:
        slice_id: what the message is about; "" where that is nothing in particular.

    Raises:
        StoreUnavailable: the broker does not take it.
    """
    try:
        app.send_task(RUN_SLICE, args=[slice_id], queue=queue, retry=True, retry_policy=RETRY)
    except OperationalError as error:
        raise StoreUnavailable("the queue does not answer") from error
