"""A picture in any form that Python has it in, as the file that is sent: the same picture, whichever form it is in."""

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
    """Name and bytes of an image file.

    A Pillow image is sent as a viewer shows its file: upright by its EXIF, its colours by its profile.

    Raises:
        OSError: of a path that cannot be read.
        TypeError: this is no picture.
        ValueError: its values are not those of a picture.
    """
    match image:
        case bytes():
            return "image", image
        case str() | Path():
            return Path(image).name, Path(image).expanduser().read_bytes()
        case Image.Image():
            return _name(image), _png(image)
        case np.ndarray():
            return "image.png", _png(_drawn(image))
    raise TypeError(
        f"{type(image).__name__} is no picture; give a path, the bytes of a PNG, JPEG or WebP file, a Pillow image, or "
        f"{ARRAYS}"
    )


def _name(image: Image.Image) -> str:
    """Of the file that it was opened from, where it was."""
    name = getattr(image, "filename", "")
    return (Path(name).name if isinstance(name, str | Path) else "") or "image.png"


def _png(image: Image.Image) -> bytes:
    buffer, seen = BytesIO(), as_seen(image.copy(), deep="icc_profile" not in image.info)
    for note in seen.notes:
        warnings.warn(note, stacklevel=2)
    file = pictured(array(seen.image)) if seen.image.mode == "F" else seen.image
    file.save(buffer, "PNG")
    return buffer.getvalue()


def _drawn(values: NDArray[Any]) -> Image.Image:
    flat = values[:, :, 0] if values.ndim == 3 and values.shape[2] == 1 else values
    kind = values.dtype
    shaped = flat.ndim == 2 or (flat.ndim == 3 and flat.shape[2] in {3, 4})
    if not shaped or not (kind == np.uint8 or np.issubdtype(kind, np.floating)):
        first = values.ndim == 3 and values.shape[0] in {1, 3, 4}
        advice = "; its channels come first: give array.transpose(1, 2, 0)" if first and not shaped else ""
        raise TypeError(f"an array {values.shape} of {kind} is no picture; give {ARRAYS}{advice}")
    if kind == np.uint8:
        return Image.fromarray(np.ascontiguousarray(flat))
    if not (flat.size and flat.min() >= 0 and flat.max() <= 1):
        reach = f"from {flat.min():g} to {flat.max():g}" if flat.size else "nowhere"
        raise ValueError(f"the floats of a picture go from 0 to 1, and those of this array go {reach}")
    return Image.fromarray((flat * 255).round().astype(np.uint8))
