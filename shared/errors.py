"""Every error that a caller can meet, as RFC 9457 problems with a stable `type`.

One base class carries the HTTP status and the problem's slug; the API has one handler for it, and a worker
stores the same object in the job. The docstring of a class is its page at `/problems/<slug>`.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict

MOST_DETAIL = 2000  # characters


class Problem(BaseModel):
    """An `application/problem+json` object (RFC 9457); extra members carry the particulars."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str

    def under(self, root: str) -> Self:
        """The same with its page under this path."""
        return self.model_copy(update={"type": root + self.type}) if self.type.startswith("/") else self


def brief(text: object, most: int = 60) -> str:
    """What a caller sent, cut short: an answer does not repeat it all."""
    shown = str(text)
    return shown if len(shown) <= most else f"{shown[:most]}…"


class KernelscopeError(Exception):
    """Something failed inside Kernelscope. The log of the process has the particulars."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    always: ClassVar[dict[str, str]] = {}  # headers of every answer of this type

    def __init__(
        self, detail: str, *, headers: dict[str, str] | None = None, retry_after: int | None = None, **members: Any
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.members = members
        self.headers = {**self.always, **(headers or {})}
        if retry_after is not None:
            self.members["retry_after"] = retry_after
            self.headers["Retry-After"] = str(retry_after)

    @classmethod
    def slug(cls) -> str:
        """`SilentKernel` → `silent-kernel`."""
        return re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__.removesuffix("Error")).lower()

    @classmethod
    def type_uri(cls) -> str:
        """The problem's `type`: a path on the server that answered, which explains it."""
        return f"/problems/{cls.slug()}"

    def problem(self) -> Problem:
        """The error as a caller sees it."""
        return Problem(
            type=self.type_uri(),
            title=self.title,
            status=self.status,
            detail=brief(self.detail, MOST_DETAIL),
            **self.members,
        )


class InvalidRequest(KernelscopeError):
    """A field of the request has a value that cannot be used. `errors` lists each field and what would be right."""

    status = 422
    title = "Invalid request"


class MalformedBody(KernelscopeError):
    """The body is not the JSON or the multipart form that its Content-Type announces."""

    status = 400
    title = "Malformed body"


class UnsupportedContentType(KernelscopeError):
    """`POST /explain` takes `application/json` or `multipart/form-data`."""

    status = 415
    title = "Unsupported content type"


class UnsupportedImage(KernelscopeError):
    """The bytes are not an image of a format that is taken: PNG, JPEG or WebP."""

    status = 415
    title = "Unsupported image"


class UnusableImage(KernelscopeError):
    """The image is of a format that is taken, but damaged, too small or too large."""

    status = 422
    title = "Unusable image"


class UnknownImage(KernelscopeError):
    """No image with this SHA-256 has been sent before (or it has expired). Send its bytes as `data`."""

    status = 422
    title = "Unknown image"


class BodyTooLarge(KernelscopeError):
    """The request's body is over the limit that the operator has set, or has over 200 kB beside its images."""

    status = 413
    title = "Body too large"


class UnknownModel(KernelscopeError):
    """There is no network of this name. `GET /models` lists them."""

    status = 422
    title = "Unknown model"


class UnknownLayer(KernelscopeError):
    """The network has no such layer, or it is not one whose kernels can be explained."""

    status = 422
    title = "Unknown layer"


class UnknownKernel(KernelscopeError):
    """The layer has no kernel of this index; indices start at zero."""

    status = 422
    title = "Unknown kernel"


class ModelUnavailable(KernelscopeError):
    """The network is known, but no weights for it can be had on the workers. The detail says why."""

    status = 422
    title = "Model unavailable"


class LayerNotCovered(KernelscopeError):
    """The weights file holds only part of the network, and this layer is above it."""

    status = 422
    title = "Layer not covered by the weights"


class SilentKernel(KernelscopeError):
    """The kernel's feature map is zero everywhere on this image: there is nothing to keep, so nothing to explain."""

    status = 422
    title = "Silent kernel"


class LoneKernel(KernelscopeError):
    """Every other kernel of the layer is silent on this image: there is nothing to suppress."""

    status = 422
    title = "Lone kernel"


class MethodNotApplicable(KernelscopeError):
    """A baseline has no rule for something in this network."""

    status = 422
    title = "Method not applicable"


class NotANumber(KernelscopeError):
    """The solver met a value that is not finite and could not recover from it."""

    status = 500
    title = "Not a number"


class DeviceOutOfMemory(KernelscopeError):
    """One problem alone does not fit into the device's memory."""

    status = 500
    title = "Device out of memory"


class AttemptsExhausted(KernelscopeError):
    """The worker that held this work died or went silent each time; it is not tried again."""

    status = 500
    title = "Attempts exhausted"


class DeadlinePassed(KernelscopeError):
    """The job's `deadline_s` was over before this item had begun; what had begun is delivered as far as it was."""

    status = 504
    title = "Deadline passed"


class IdempotencyConflict(KernelscopeError):
    """The `Idempotency-Key` names another request of the last 24 hours. A new request needs a new key."""

    status = 422
    title = "Idempotency key used before"


class JobEnded(KernelscopeError):
    """The job has succeeded, failed or been cancelled: it can no longer be cancelled."""

    status = 409
    title = "Job ended"


class NothingToRetry(KernelscopeError):
    """Only failed items of a job that has ended can be run again: it has none, still runs, or was cancelled."""

    status = 409
    title = "Nothing to retry"


class QuotaExceeded(KernelscopeError):
    """You have as much unfinished work in the queue as your key may have. Wait for it, or cancel some."""

    status = 429
    title = "Quota exceeded"


class RateLimited(KernelscopeError):
    """More requests came with your key than it may send. `Retry-After` says when the next one is taken."""

    status = 429
    title = "Too many requests"


class QueueFull(KernelscopeError):
    """The queue holds all that it takes. `Retry-After` estimates when there is room again."""

    status = 503
    title = "Queue full"


class ServerBusy(KernelscopeError):
    """As many uploads are being read and images checked as fit into memory. Try again after `Retry-After` seconds."""

    status = 503
    title = "Server busy"


class Unauthorized(KernelscopeError):
    """This server answers only those who have an API key: `Authorization: Bearer <key>`. Its operator makes keys."""

    status = 401
    title = "API key needed"
    always: ClassVar[dict[str, str]] = {"WWW-Authenticate": 'Bearer realm="kernelscope"'}


class UnknownProxy(KernelscopeError):
    """A proxy passed the request on, and this server does not know of any.

    Whoever reaches it through the proxy would be taken for somebody on the server's own machine, who needs no key.
    `KERNELSCOPE_PUBLIC_URL` says where the proxy serves it; see docs/deployment.md.
    """

    status = 403
    title = "Unknown proxy"


class CrossOrigin(KernelscopeError):
    """A page of another site had a browser send this, and this server does not answer such."""

    status = 403
    title = "Cross-origin request"


class RequestTimeout(KernelscopeError):
    """The request's body did not arrive in time."""

    status = 408
    title = "Request timeout"


class WebhookRefused(KernelscopeError):
    """`webhook_url` is not an address that this server calls: a public one, by http or https."""

    status = 422
    title = "Webhook refused"


class RangeNotSatisfiable(KernelscopeError):
    """The file has no bytes in this `Range`; `Content-Range` says how many it has."""

    status = 416
    title = "Range not satisfiable"


class JobNotFound(KernelscopeError):
    """No job has this id."""

    status = 404
    title = "Job not found"


class JobExpired(KernelscopeError):
    """The job was deleted, or kept for its retention time and then removed with its pictures."""

    status = 410
    title = "Job removed"


class ArtifactNotFound(KernelscopeError):
    """The job has no such artifact, or not yet."""

    status = 404
    title = "Artifact not found"


class DrawingQueueFull(KernelscopeError):
    """More pictures wait to be drawn than this server keeps waiting. Try again after `Retry-After` seconds."""

    status = 503
    title = "Drawing queue full"


class NoSuchPath(KernelscopeError):
    """Nothing is served at this path. The routes are listed at `/docs`."""

    status = 404
    title = "No such path"


class MethodNotAllowed(KernelscopeError):
    """The path exists, but not for this method; the `Allow` header names those that it takes."""

    status = 405
    title = "Method not allowed"


class ModelNotFound(KernelscopeError):
    """There is no network of this name. `GET /models` lists them."""

    status = 404
    title = "Model not found"


class DataSetNotFound(KernelscopeError):
    """No data set has this id."""

    status = 404
    title = "Data set not found"


class DataSetFull(KernelscopeError):
    """A data set would have more images, or you more data sets or surveys, than are kept. Delete what is not needed."""

    status = 409
    title = "No room for more"


class SurveyNotFound(KernelscopeError):
    """No survey has this id, or none that you may read has this layer. `POST /surveys` makes one of a data set."""

    status = 404
    title = "Survey not found"


class NetworkChanged(KernelscopeError):
    """The network was replaced while a survey ran, or since: what it found is not of one network."""

    status = 409
    title = "Network changed"


class StoreUnavailable(KernelscopeError):
    """Redis or the object store does not answer. Nothing was accepted; try again after `Retry-After` seconds."""

    status = 503
    title = "Service unavailable"
    always: ClassVar[dict[str, str]] = {"Retry-After": "2"}


def error_types() -> dict[str, type[KernelscopeError]]:
    """Every problem type by its slug."""
    kinds: list[type[KernelscopeError]] = [KernelscopeError, *KernelscopeError.__subclasses__()]
    return {kind.slug(): kind for kind in kinds}
