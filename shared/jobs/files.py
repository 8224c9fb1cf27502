"""The names of a job's files, and of what kind they are."""

from __future__ import annotations

STORED_ARTIFACTS = ("optimized.png", "optimized.npy", "maps.npz", "history.json")
DRAWN_ARTIFACTS = (
    "original.png",  # stored, but for results of before it was
    "contrast.png",
    "feature_map.png",
    "optimized_feature_map.png",
    "difference.png",
    "others.png",
    "panel.png",
    "sweep.png",
)
JOB_ARTIFACTS = ("contact_sheet.png", "consistency.json")  # of a job on several images
LOOKED_AT = ("activations.npz",)  # stored, and
SHEETS = ("thumbnails.png",)  # drawn, where kernels are ranked
ARTIFACTS = (*STORED_ARTIFACTS, *DRAWN_ARTIFACTS, *LOOKED_AT, *SHEETS)
MEDIA_TYPES = {
    "png": "image/png",
    "npy": "application/octet-stream",
    "npz": "application/octet-stream",
    "json": "application/json",
}


def drawn_artifacts(method: str) -> tuple[str, ...]:
    """The pictures of a result that are drawn when they are first asked for."""
    return {"activations": SHEETS, "survey": ()}.get(method, DRAWN_ARTIFACTS)
