"""What of an answer is kept: numbers for the job's record, files for the store."""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from worker.questions import Answer, Question

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
    """Words for a result that shows what was not there."""
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


def artifacts(answer: Answer) -> dict[str, bytes]:
    """The files that are committed with an item; pictures that only show them are drawn when first asked for."""
    png, npy, npz = BytesIO(), BytesIO(), BytesIO()
    Image.fromarray(answer.picture).save(png, "PNG")
    np.save(npy, answer.x)
    np.savez_compressed(npz, allow_pickle=False, **answer.maps)
    columns = ("iteration", "preservation", "suppression", "regularization", "total")
    history = json.dumps({"columns": columns, "rows": answer.history})
    return {
        "optimized.png": png.getvalue(),
        "optimized.npy": npy.getvalue(),
        "maps.npz": npz.getvalue(),
        "history.json": history.encode(),
    }
