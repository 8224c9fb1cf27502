"""Errors in a request: its body, fields, images, path or method.

The docstring of a class is its page at `/problems/<slug>`.
"""

from __future__ import annotations

from shared.errors.base import KernelscopeError


class InvalidRequest(KernelscopeError):
    """A field of the request has an invalid value. `errors` lists each such field and what is accepted."""

    status = 422
    title = "Invalid request"


class MalformedBody(KernelscopeError):
    """The body is not the JSON or the multipart form that its Content-Type announces."""

    status = 400
    title = "Malformed body"


class UnsupportedContentType(KernelscopeError):
    """The body must be `application/json`, or `multipart/form-data` where files are uploaded."""

    status = 415
    title = "Unsupported content type"


class UnsupportedImage(KernelscopeError):
    """The file is not an image of a supported format: PNG, JPEG or WebP."""

    status = 415
    title = "Unsupported image"


class UnusableImage(KernelscopeError):
    """The image has a supported format, but is damaged, too small or too large."""

    status = 422
    title = "Unusable image"


class UnknownImage(KernelscopeError):
    """No image with this SHA-256 has been sent before, or it has expired. Send its bytes as `data`."""

    status = 422
    title = "Unknown image"


class BodyTooLarge(KernelscopeError):
    """The body exceeds the limit set by the operator, or has more than 200 kB besides its images."""

    status = 413
    title = "Body too large"


class IdempotencyConflict(KernelscopeError):
    """The `Idempotency-Key` was used for a different request in the last 24 hours. A new request needs a new key."""

    status = 422
    title = "Idempotency key used before"


class WebhookRefused(KernelscopeError):
    """`webhook_url` is not a URL that this server calls: it must be public, and http or https."""

    status = 422
    title = "Webhook refused"


class RangeNotSatisfiable(KernelscopeError):
    """The file has no bytes in this `Range`; `Content-Range` gives its size."""

    status = 416
    title = "Range not satisfiable"


class RequestTimeout(KernelscopeError):
    """The request's body did not arrive in time."""

    status = 408
    title = "Request timeout"


class NoSuchPath(KernelscopeError):
    """There is nothing at this path. `/docs` lists the routes."""

    status = 404
    title = "No such path"


class MethodNotAllowed(KernelscopeError):
    """The path does not support this method; the `Allow` header lists those that it does."""

    status = 405
    title = "Method not allowed"
