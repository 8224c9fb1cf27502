"""Celery over Redis. It only notifies workers that a slice may be runnable; the state is in the job records."""

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
RETRY = {"max_retries": 1, "interval_start": 0}  # after a restart of Redis, on a new connection


class Transport(transport.Transport):
    """Kombu's transport, which regards an error response of Redis as a lost connection: it waits and reconnects.

    Otherwise a worker would permanently lose one unit of prefetch capacity with each message that it could not
    acknowledge, and would keep querying a former master.
    """

    connection_errors = (*transport.Transport.connection_errors, ResponseError)


TRANSPORT_ALIASES.update(dict.fromkeys(("redis", "rediss"), f"{__name__}:Transport"))


def make_celery(redis_url: str) -> Celery:
    """The Celery application of the API (which only sends) and of the worker.

    There is no result backend: with one, sending blocks for 19 s when Redis is down. Messages are acknowledged before
    the work starts, since the lease in the job record, not the broker, recovers the work of a dead worker.
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
        worker_disable_prefetch=True,  # idle workers cannot see a prefetched message
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,  # also wait for a Redis that rejects writes, and so BRPOP
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
    """Redis's URL for kombu, and the TLS options: by default kombu verifies no certificate."""
    options, parts = parse_url(redis_url), urlsplit(redis_url)
    own = {name: value for name, value in options.items() if name.startswith("ssl_")}
    tls = {"ssl_cert_reqs": "required", **own} if parts.scheme == "rediss" else None
    return parts._replace(path=f"/{options.get('db', 0)}", query="").geturl(), tls


def announce(app: Celery, slice_id: str, queue: str) -> None:
    """Send one message: a slice of this queue may be runnable. If it is lost, housekeeping sends another.

    The worker that receives it claims the slice whose turn it is, which may be a different one.

    Args:
        slice_id: the slice that may be runnable; "" for none in particular.

    Raises:
        StoreUnavailable: the broker does not accept it.
    """
    try:
        app.send_task(RUN_SLICE, args=[slice_id], queue=queue, retry=True, retry_policy=RETRY)
    except OperationalError as error:
        raise StoreUnavailable("the queue does not respond") from error
