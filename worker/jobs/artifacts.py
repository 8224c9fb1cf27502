"""The results of an answer: numbers for the job's record, files for the store."""

from __future__ import annotations

import json
from collections.abc import Collection
from io import BytesIO
from typing import Any

import numpy as np

from shared.images import pictured
from shared.schemas import OPTIMIZED, ItemResult, Metrics
from worker.engine.questions import Answer, Picture, Question

INVENTIVE = 0.1  # the invention above which a result has a note
KEPT = 0.9  # the SSIM of the kernel's map below which a result has a note


def facts(answer: Answer) -> dict[str, Any]:
    """The numbers of an answer by their names in the API."""
    names = (
        "losses",
        "losses_float",
        "loss_start",
        "loss_blank",
        "metrics",
        "metrics_float",
        "target_met",
        "iterations",
        "seconds",
        "stopped",
        "precision",
        "weights",
        "gamma",
    )
    return {name: getattr(answer, name) for name in names}


def note(found: Answer | ItemResult, question: Question, methods: Collection[str] = ()) -> str | None:
    """What a person should know of a picture: it is blank, loses the kernel's map, or shows what is not in the image.

    Args:
        methods: of the job.
    """
    assert found.losses
    assert found.metrics
    assert found.loss_blank is not None
    free = question.method in OPTIMIZED and not question.bounded
    if free and found.metrics.sparsity == 1:
        return (
            "This is the blank picture: with these weights no picture with a lower loss was found. "
            f"Use a smaller beta, or a target_ssim{_solver(question)}."
        )
    if free and found.losses.total > found.loss_blank:
        return (
            f"The blank picture has a lower loss ({found.loss_blank:.2f}) than this one ({found.losses.total:.2f}): "
            "with these weights the kernel's map counts too little. "
            f"Use a smaller beta, or a target_ssim{_solver(question)}."
        )
    return " ".join(filter(None, [_lost(found.metrics, question), _invented(found.metrics, question, methods)])) or None


def _lost(metrics: Metrics, question: Question) -> str:
    """A sentence if the kernel's map is not kept and nobody asked for that."""
    if question.method not in OPTIMIZED or question.target_ssim or metrics.ssim is None or metrics.ssim >= KEPT:
        return ""
    return (
        f"X̂ does not keep the kernel's map: its SSIM is only {metrics.ssim:.2f}. "
        f"To demand that the map is kept, use target_ssim=0.95{_solver(question)}."
    )


def _solver(question: Question) -> str:
    """The solver that keeps a bound, if it was not used."""
    return "" if question.solver == "fast" else " with solver=fast"


def _invented(metrics: Metrics, question: Question, methods: Collection[str]) -> str:
    """Sentences if the picture causes activation that the image does not."""
    evidence = question.method == "evidence"
    invention = metrics.invention_beyond_blank if evidence else metrics.invention
    if invention is None or invention <= INVENTIVE:
        return ""
    if evidence:
        advice = f"Use a larger gamma, or a smaller max_invention{_solver(question)}."
    elif "evidence" in methods:
        advice = "Compare it with the picture by evidence, the method that keeps this small."
    else:
        advice = "Use methods=evidence, which keeps this small."
    return (
        f"This picture activates the layers below {question.layer} beyond the image, by {invention:.0%} of the image's "
        f"own activation: what it shows need not be in the image. {advice}"
    )


def artifacts(answer: Answer, original: bytes) -> dict[str, bytes]:
    """The files that are committed with an item. Figures of them are drawn on request.

    Args:
        answer: of the item.
        original: the network's input as a PNG, so that a figure does not need the image again.
    """
    npy, npz = BytesIO(), BytesIO()
    np.save(npy, answer.x)
    np.savez_compressed(npz, allow_pickle=False, **answer.maps)
    columns = ("iteration", "preservation", "suppression", "regularization", "total")
    history = json.dumps({"columns": columns, "rows": answer.history})
    return {
        "original.png": original,
        "optimized.png": encoded(answer.picture),
        "optimized.npy": npy.getvalue(),
        "maps.npz": npz.getvalue(),
        "history.json": history.encode(),
    }


def encoded(picture: Picture) -> bytes:
    """The picture as a PNG."""
    png = BytesIO()
    pictured(picture).save(png, "PNG")
    return png.getvalue()
