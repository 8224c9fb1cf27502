"""The names of a job's files, and their media types."""

from __future__ import annotations

STORED_ARTIFACTS = ("optimized.png", "optimized.npy", "maps.npz", "history.json")
DRAWN_ARTIFACTS = (
    "original.png",  # stored, except for results of earlier versions
    "contrast.png",
    "feature_map.png",
    "optimized_feature_map.png",
    "difference.png",
    "others.png",
    "panel.png",
    "sweep.png",
)
JOB_ARTIFACTS = ("contact_sheet.png", "consistency.json")  # of jobs with several images
STORED_RANKING = ("activations.npz",)  # of jobs that rank kernels
DRAWN_RANKING = ("thumbnails.png",)
ARTIFACTS = (*STORED_ARTIFACTS, *DRAWN_ARTIFACTS, *STORED_RANKING, *DRAWN_RANKING)
MEDIA_TYPES = {
    "png": "image/png",
    "npy": "application/octet-stream",
    "npz": "application/octet-stream",
    "json": "application/json",
}


def drawn_artifacts(method: str) -> tuple[str, ...]:
    """The pictures of a result that are drawn on their first request."""
    return {"activations": DRAWN_RANKING, "survey": ()}.get(method, DRAWN_ARTIFACTS)
