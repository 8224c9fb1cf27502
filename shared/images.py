"""From the bytes that a caller sent to the RGB picture that a network sees.

The API checks with `decode` before it accepts an image; a worker decodes the same bytes with the same function.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps

from shared.errors import UnsupportedImage, UnusableImage

SIGNATURES = {"PNG": rb"\x89PNG\r\n\x1a\n", "JPEG": rb"\xff\xd8\xff", "WEBP": rb"RIFF....WEBP"}
SMALLEST_SIDE = 8  # a smaller picture is one colour after resizing: it has nothing to show

Image.MAX_IMAGE_PIXELS = None  # Pillow's guess of what is too large; ours is checked below, before anything is decoded


def decode(data: bytes, max_pixels: int) -> Image.Image:
    """Decode a PNG, JPEG or WebP into 8-bit RGB: EXIF-rotated, alpha flattened on white, first frame only.

    The pixel count is checked before anything is decoded.

    Raises:
        UnsupportedImage: the bytes are not of these formats.
        UnusableImage: too many pixels, a side under 8 pixels, truncated or damaged.
    """
    with _opened(data, max_pixels) as image:
        return _rgb(ImageOps.exif_transpose(image))


def pixels(data: bytes, max_pixels: int) -> int:
    """How many pixels an image says that it has, without decoding any. Raises as `decode`."""
    with _opened(data, max_pixels) as image:
        return image.width * image.height


def verify(data: bytes, max_pixels: int) -> None:
    """Decode all of an image and keep nothing. Raises as `decode`."""
    with _opened(data, max_pixels) as image:
        image.load()


@contextmanager
def _opened(data: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """An image of a format and a size that are taken; whatever hostile bytes make a decoder raise is our error."""
    form = form_of(data)
    try:
        with Image.open(BytesIO(data), formats=[form]) as image:
            _check_size(image.width, image.height, max_pixels)
            yield image
    except UnusableImage:
        raise
    except Exception as error:
        raise UnusableImage(f"{form} image is truncated or damaged ({error})") from None


def form_of(data: bytes) -> str:
    """`PNG`, `JPEG` or `WEBP`, by the first bytes.

    Raises:
        UnsupportedImage: none of them.
    """
    form = next((form for form, start in SIGNATURES.items() if re.match(start, data, re.DOTALL)), None)
    if form is None:
        raise UnsupportedImage("not an image that can be read; PNG, JPEG and WebP are taken")
    return form


def resized(image: Image.Image, size: int) -> Image.Image:
    """The network's input: size × size, bilinear with antialiasing, squashed and not cropped."""
    return image.resize((size, size), Image.Resampling.BILINEAR)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise UnusableImage(f"image is {width}×{height} pixels; at most {max_pixels / 1e6:g} megapixels are taken")
    if min(width, height) < SMALLEST_SIDE:
        raise UnusableImage(
            f"image is {width}×{height} pixels; each side needs at least {SMALLEST_SIDE} to show anything"
        )


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips instead of scaling
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
