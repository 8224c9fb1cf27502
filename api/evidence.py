"""What the pictures of a result are drawn from, out of the store."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

from api import figures
from api.services import Services
from shared import catalogue, images
from shared.errors import ArtifactNotFound
from shared.schemas import ExplainRequest, ItemResult


def evidence(
    services: Services, request: ExplainRequest, result: ItemResult, blobs: dict[str, str]
) -> figures.Evidence:
    """What a result's pictures are drawn from."""
    original = services.store.get(result.image)
    if original is None:
        raise ArtifactNotFound(f"the original image {result.image} is gone, so its pictures cannot be drawn")
    maps = np.load(BytesIO(blob(services, blobs, "maps.npz")))
    size = catalogue.network(request.model).input_size
    return figures.Evidence(
        request=request,
        result=result,
        original=images.resized(images.decode(original, services.max_pixels), size),
        optimized=Image.open(BytesIO(blob(services, blobs, "optimized.png"))),
        x=np.load(BytesIO(blob(services, blobs, "optimized.npy"))),
        before=maps["before"],
        after=maps["after"],
        others=maps["others"].tolist(),
        others_before=maps["others_before"],
        others_after=maps["others_after"],
    )


def blob(services: Services, blobs: dict[str, str], name: str) -> bytes:
    """The bytes of a file. Raises ArtifactNotFound where the store has lost it."""
    data = services.store.get(blobs[name])
    if data is None:
        raise ArtifactNotFound(f"{name} is gone from the store")
    return data
