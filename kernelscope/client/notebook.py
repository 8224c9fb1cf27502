"""A job and its results as a notebook shows them."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable
from html import escape
from typing import Any

from kernelscope.client.jobs import BaseJob
from shared.schemas import ExplainRequest, ItemResult

MOST_ROWS = 32
MOST_KERNELS = 8  # that are named, of many


def kernels_of(request: ExplainRequest) -> str:
    """The kernels that were asked for, in a line."""
    if isinstance(request.kernels, str):
        return request.kernels
    named = ", ".join(map(str, request.kernels[:MOST_KERNELS]))
    return named if len(request.kernels) <= MOST_KERNELS else f"{named}, … ({len(request.kernels)})"


def of_result(result: ItemResult, picture: bytes | None = None) -> str:
    """One explanation: its picture, where there is one, and its numbers."""
    return f"<table>{_head()}{_row(result, picture)}</table>"


def of_job(job: BaseJob[Any], pictures: Iterable[tuple[ItemResult, bytes | None]]) -> str:
    """A line on the job, and a row for each of its results."""
    request, progress = job.request, job.progress
    what = f"kernels {kernels_of(request)} of {request.layer} ({request.model})"
    total = "?" if progress.total is None else progress.total
    line = (
        f"<p><b>{escape(job.status)}</b> · {escape(what)} · {progress.completed} of {total} done · {escape(job.id)}</p>"
    )
    error = f"<p>{escape(job.error.detail)}</p>" if job.error else ""
    rows = [_row(result, picture) for result, picture in pictures]
    rest = max(progress.completed, len(job.known_results or [])) - len(rows)
    more = f"<p>and {rest} more</p>" if rest else ""
    return line + error + (f"<table>{_head()}{''.join(rows)}</table>" if rows else "") + more


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
