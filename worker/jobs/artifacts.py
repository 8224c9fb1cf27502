"""The results of an answer: numbers for the job's record, files for the store."""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import numpy as np

from shared.images import pictured
from shared.schemas import OPTIMIZED
from worker.engine.questions import Answer, Picture, Question

INVENTIVE = 0.1  # the invention above which a result has a note


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


def note(answer: Answer, question: Question) -> str | None:
    """A note for a result that is blank, or shows what the image does not contain."""
    free = question.method in OPTIMIZED and not question.bounded
    if free and answer.metrics.sparsity == 1:
        return (
            "This is the blank picture: with these weights no picture with a lower loss was found. "
            "Use a smaller beta, or a target_ssim."
        )
    if free and answer.losses.total > answer.loss_blank:
        return (
            f"The blank picture has a lower loss ({answer.loss_blank:.2f}) than this one ({answer.losses.total:.2f}): "
            "with these weights the kernel's map counts too little. Use a smaller beta."
        )
    evidence = question.method == "evidence"
    invention = answer.metrics.invention_beyond_blank if evidence else answer.metrics.invention
    if invention is None or invention <= INVENTIVE:
        return None
    advice = (
        "Use a larger gamma, or a smaller max_invention."
        if evidence
        else "Use methods=evidence, which keeps this small."
    )
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
