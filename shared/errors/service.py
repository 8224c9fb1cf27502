"""Errors of access and capacity: keys, proxies, quotas, queues, and services that do not respond.

The docstring of a class is its page at `/problems/<slug>`.
"""

from __future__ import annotations

from typing import ClassVar

from shared.errors.base import KernelscopeError


class Unauthorized(KernelscopeError):
    """This server requires an API key: `Authorization: Bearer <key>`. Ask its operator for one."""

    status = 401
    title = "API key needed"
    always: ClassVar[dict[str, str]] = {"WWW-Authenticate": 'Bearer realm="kernelscope"'}


class UnknownProxy(KernelscopeError):
    """A proxy forwarded the request, and this server is not configured for a proxy.

    Clients of the proxy would be regarded as local users, who need no key. Set `KERNELSCOPE_PUBLIC_URL` to the URL that
    the proxy serves; see docs/deployment.md.
    """

    status = 403
    title = "Unknown proxy"


class CrossOrigin(KernelscopeError):
    """A page of another site made a browser send this request, which this server does not allow."""

    status = 403
    title = "Cross-origin request"


class QuotaExceeded(KernelscopeError):
    """You have as much unfinished work in the queue as your key allows. Wait for it, or cancel some.

    Without `Retry-After` the job alone is more than your key allows: ask for less in one job.
    """

    status = 429
    title = "Quota exceeded"


class RateLimited(KernelscopeError):
    """Your key has exceeded its request rate. `Retry-After` says when the next request is accepted."""

    status = 429
    title = "Too many requests"


class QueueFull(KernelscopeError):
    """The queue is full. `Retry-After` estimates when there is room again.

    Without `Retry-After` the job alone is more than the queue holds: ask for less in one job.
    """

    status = 503
    title = "Queue full"


class DrawingQueueFull(KernelscopeError):
    """Too many pictures are waiting to be drawn. Try again after `Retry-After` seconds."""

    status = 503
    title = "Drawing queue full"


class ServerBusy(KernelscopeError):
    """As many uploads and image checks are in progress as fit into memory. Try again after `Retry-After` seconds."""

    status = 503
    title = "Server busy"


class StoreUnavailable(KernelscopeError):
    """Redis or the object store does not respond. Nothing was accepted; try again after `Retry-After` seconds."""

    status = 503
    title = "Service unavailable"
    always: ClassVar[dict[str, str]] = {"Retry-After": "2"}
