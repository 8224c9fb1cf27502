"""Encodes images as the files that are sent: paths, bytes, Pillow images and arrays."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.images import array, as_seen, pictured

Picture = str | Path | bytes | Image.Image | NDArray[np.uint8] | NDArray[np.floating[Any]]

ARRAYS = "an array (height, width) or (height, width, channels), with 1, 3 or 4 channels, of uint8 or of floats in 0-1"


def file_of(image: Any) -> tuple[str, bytes]:
    """Name and content of the file of an image.

    A Pillow image is sent as viewers display its file: with its EXIF orientation and its colour profile applied.

    Raises:
        OSError: the file cannot be read.
        TypeError: not an image.
        ValueError: an array whose values are not those of an image.
    """
    match image:
        case bytes():
            return "image", image
        case str() | Path():
            return Path(image).name, Path(image).expanduser().read_bytes()
        case Image.Image():
            return _name(image), _png(image)
        case np.ndarray():
            return "image.png", _png(_image(image))
    raise TypeError(
        f"{type(image).__name__} is not an image; use a path, the bytes of a PNG, JPEG or WebP file, a Pillow image, "
        f"or {ARRAYS}"
    )


def _name(image: Image.Image) -> str:
    """The name of the file that the image was opened from, if any."""
    name = getattr(image, "filename", "")
    return (Path(name).name if isinstance(name, str | Path) else "") or "image.png"


def _png(image: Image.Image) -> bytes:
    buffer, seen = BytesIO(), as_seen(image.copy(), deep="icc_profile" not in image.info)
    for note in seen.notes:
        warnings.warn(note, stacklevel=2)
    file = pictured(array(seen.image)) if seen.image.mode == "F" else seen.image
    file.save(buffer, "PNG")
    return buffer.getvalue()


def _image(values: NDArray[Any]) -> Image.Image:
    flat = values[:, :, 0] if values.ndim == 3 and values.shape[2] == 1 else values
    kind = values.dtype
    shaped = flat.ndim == 2 or (flat.ndim == 3 and flat.shape[2] in {3, 4})
    if not shaped or not (kind == np.uint8 or np.issubdtype(kind, np.floating)):
        first = values.ndim == 3 and values.shape[0] in {1, 3, 4}
        advice = "; its channels come first: use array.transpose(1, 2, 0)" if first and not shaped else ""
        raise TypeError(f"an array {values.shape} of {kind} is not an image; use {ARRAYS}{advice}")
    if not flat.size:
        raise ValueError(f"an array {values.shape} has no pixels")
    if kind == np.uint8:
        return Image.fromarray(np.ascontiguousarray(flat))
    if not (flat.min() >= 0 and flat.max() <= 1):
        low, high = flat.min(), flat.max()
        raise ValueError(
            f"the floats of an image must be between 0 and 1; this array's are between {low:g} and {high:g}"
        )
    return Image.fromarray((flat * 255).round().astype(np.uint8))
