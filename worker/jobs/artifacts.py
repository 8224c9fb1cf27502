"""What of an answer is kept: numbers for the job's record, files for the store."""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import numpy as np

from shared.images import pictured
from shared.schemas import OPTIMIZED
from worker.engine.questions import Answer, Picture, Question

INVENTIVE = 0.1  # the invention above which a result says so


def facts(answer: Answer) -> dict[str, Any]:
    """The numbers of an answer, under the names that the contract gives them."""
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
    """Words for a result that shows what was not there, or nothing at all."""
    free = question.method in OPTIMIZED and not question.bounded
    if free and answer.metrics.sparsity == 1:
        return (
            "This is the blank picture: with these weights no other that was found has a lower loss. "
            "Ask for a smaller beta, or for a target_ssim."
        )
    if free and answer.losses.total > answer.loss_blank:
        return (
            f"The blank picture has a lower loss ({answer.loss_blank:.2f}) than this one ({answer.losses.total:.2f}): "
            "the kernel's map is small against what these weights ask for. Ask for a smaller beta."
        )
    evidence = question.method == "evidence"
    invention = answer.metrics.invention_beyond_blank if evidence else answer.metrics.invention
    if invention is None or invention <= INVENTIVE:
        return None
    advice = (
        "Ask for a larger gamma, or a smaller max_invention."
        if evidence
        else "Ask for methods=evidence, which keeps that small."
    )
    return (
        f"This picture excites the layers below {question.layer} beyond what the image does, by {invention:.0%} of the "
        f"image's own activation: what is seen in it need not be in the image. {advice}"
    )


def artifacts(answer: Answer, original: bytes) -> dict[str, bytes]:
    """The files that are committed with an item; pictures that only show them are drawn when first asked for.

    Args:
        original: a PNG of the network's input, so that nobody decodes the image again to draw it.
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
    """A PNG."""
    png = BytesIO()
    pictured(picture).save(png, "PNG")
    return png.getvalue()
