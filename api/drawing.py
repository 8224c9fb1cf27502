"""Which picture an artifact's name stands for."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

from api.figures import Evidence, difference, enlarged, heat, panel, stretched
from api.sheets import others, sweep


def draw(name: str, evidence: Evidence, siblings: Sequence[Evidence] = ()) -> bytes:
    """The PNG of one artifact.

    Args:
        siblings: what else the job has on the same kernel and image, and `evidence`; for figures that show all of it.
    """
    picture = {
        "original.png": lambda: evidence.original,
        "contrast.png": lambda: stretched(evidence.x),
        "feature_map.png": lambda: enlarged(heat(evidence.before, evidence.scale)),
        "optimized_feature_map.png": lambda: enlarged(heat(evidence.after, evidence.scale)),
        "difference.png": lambda: enlarged(difference(evidence.after - evidence.before, evidence.scale)),
        "others.png": lambda: others(evidence),
        "panel.png": lambda: panel(evidence, siblings or [evidence]),
        "sweep.png": lambda: sweep(evidence, siblings or [evidence]),
    }[name]()
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
