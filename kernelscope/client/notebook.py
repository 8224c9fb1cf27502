"""How a notebook shows a job and its results."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape

from shared.errors import Problem
from shared.schemas import ExplainRequest, ItemResult, JobSummary

MOST_ROWS = 32
MOST_KERNELS = 8  # that are listed


def kernels_of(request: ExplainRequest) -> str:
    """The requested kernels, in one line."""
    if isinstance(request.kernels, str):
        return request.kernels
    named = ", ".join(map(str, request.kernels[:MOST_KERNELS]))
    return named if len(request.kernels) <= MOST_KERNELS else f"{named}, … ({len(request.kernels)})"


def of_result(result: ItemResult, picture: bytes | None = None) -> str:
    """One result as a table: its picture, if available, and its metrics."""
    return f"<table>{_head()}{_row(result, picture)}</table>"


def of_job(job: JobSummary, error: Problem | None, count: int, shown: Sequence[tuple[ItemResult, bytes | None]]) -> str:
    """One line about the job, and a table of results.

    Args:
        count: of all results.
        shown: results with their pictures.
    """
    request, progress = job.request, job.progress
    what = f"kernels {kernels_of(request)} of {request.layer} ({request.model})"
    total = "?" if progress.total is None else progress.total
    line = (
        f"<p><b>{escape(job.status)}</b> · {escape(what)} · {progress.completed} of {total} done · {escape(job.id)}</p>"
    )
    problem = f"<p>{escape(error.detail)}</p>" if error else ""
    rows = "".join(_row(result, picture) for result, picture in shown)
    more = f"<p>and {count - len(shown)} more</p>" if count > len(shown) else ""
    return line + problem + (f"<table>{_head()}{rows}</table>" if rows else "") + more


def _head() -> str:
    names = ("X̂", "kernel", "method", "SSIM", "others left", "loss")
    return "<tr>" + "".join(f"<th>{escape(name)}</th>" for name in names) + "</tr>"


def _row(result: ItemResult, picture: bytes | None) -> str:
    image = f'<img width="160" src="data:image/png;base64,{b64encode(picture).decode()}">' if picture else ""
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in (image, *map(escape, _cells(result)))) + "</tr>"


def _cells(result: ItemResult) -> list[str]:
    kernel = "?" if result.kernel is None else str(result.kernel)
    if result.metrics is None or result.losses is None:
        why = result.error.detail if result.error else result.status
        return [kernel, result.method, why, "", ""]
    ssim = "–" if result.metrics.ssim is None else f"{result.metrics.ssim:.3f}"
    return [kernel, result.method, ssim, f"{result.metrics.leakage:.1%}", f"{result.losses.total:.3f}"]
