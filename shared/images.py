"""From the bytes that a caller sent to the picture that a network sees, in RGB or grey.

The API checks with `decode` before it accepts an image; a worker decodes the same bytes with the same function.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError

from shared.errors import UnsupportedImage, UnusableImage
from shared.metadata import LARGEST_PROFILE, Metadata, orientation, split
from shared.schemas import Frame as Frame  # noqa: PLC0414 - imported from here too

SIGNATURES = {"PNG": rb"\x89PNG\r\n\x1a\n", "JPEG": rb"\xff\xd8\xff", "WEBP": rb"RIFF....WEBP"}
OTHERS = {  # formats that people try; the first that fits
    "AVIF": rb".{4}ftyp.{0,32}avi[fs]",
    "HEIC": rb".{4}ftyp.{0,32}(?:hei[cxms]|hev[cxms]|mif1|msf1)",
    "JPEG 2000": rb"\0\0\0\x0cjP  ",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "GIF": rb"GIF8",
    "BMP": rb"BM.{4}\0\0\0\0",
    "PSD": rb"8BPS",
    "PDF": rb"%PDF",
    "SVG": rb"(?:\xef\xbb\xbf)?\s*<(?:\?xml.*<)?(?:!--.*<|!DOCTYPE svg.*<)?svg[\s>]",
}
TAKEN = "PNG, JPEG and WebP are taken"
SMALLEST_SIDE = 8  # a smaller picture is one colour after resizing: it has nothing to show
TURNS = {  # what puts an image upright, by its orientation in EXIF
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SPACES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}  # of profiles, and the mode that each is for
ENDLESS = b"mpet"  # a kind of stage of which a profile may have any number, each computed for each colour
PROBES = Image.fromarray(np.mgrid[:256:17, :256:17, :256:17].T.reshape(256, 16, 3).astype(np.uint8))  # of all colours

STEPS = 257  # of 16 bits in one of 8: 65535 / 255

Image.MAX_IMAGE_PIXELS = None  # Pillow's guess of what is too large; ours is checked below, before anything is decoded


@dataclass(frozen=True)
class Decoded:
    """A picture in 8-bit sRGB, or deep grey, and what of its file was ignored, in sentences."""

    image: Image.Image
    notes: list[str]


def decode(data: bytes, max_pixels: int) -> Image.Image:
    """The picture of `decoded` alone."""
    return decoded(data, max_pixels).image


def decoded(data: bytes, max_pixels: int, *, deep: bool = False) -> Decoded:
    """Decode a PNG, JPEG or WebP as `as_seen`; of several frames the first.

    The pixel count is checked before anything is decoded. The pixels count: metadata that is broken or too large is
    ignored, and so noted.

    Args:
        deep: as for `as_seen`.

    Raises:
        UnsupportedImage: the bytes are not of these formats.
        UnusableImage: too many pixels, a side under 8 pixels, truncated or damaged.
    """
    with _opened(data, max_pixels) as (image, beside):
        image.load()
        for name, value in (("exif", beside.exif), ("icc_profile", beside.profile)):
            if value:
                image.info[name] = value
        seen = as_seen(image, deep=deep)
    return Decoded(seen.image, beside.notes + seen.notes)


def as_seen(image: Image.Image, *, deep: bool = False) -> Decoded:
    """A Pillow image as viewers show it, in 8-bit sRGB: upright, colours by its ICC profile, alpha flattened on white.

    The image itself is changed where that saves a copy of 50 megapixels.

    Args:
        deep: whether grey of 16 bits keeps them: it is of mode F then, from 0 to 255 in steps of 1/257, by no profile.

    Raises:
        ValueError: of mode I or F, with values that no picture has.
    """
    notes = Metadata()
    exif = image.info.get("exif")
    profile = image.info.get("icc_profile") if image.mode != "LAB" else None  # whose colours Pillow itself knows
    colours, alpha = _split(_upright(image, exif, notes), deep=deep)
    if colours.mode == "F" and profile:
        notes.ignore("colour profile", "is not for grey of 16 bits")
    picture = colours if colours.mode == "F" else _in_srgb(colours, profile, notes)
    if alpha is not None:
        white = 255 if picture.mode == "F" else "white"
        picture, coloured = Image.new(picture.mode, picture.size, white), picture
        picture.paste(coloured, mask=alpha)
    picture.info.clear()  # what was said of the file's pixels is not true of these
    return Decoded(picture, notes.notes)


def pixels(data: bytes, max_pixels: int) -> int:
    """How many pixels an image says that it has, without decoding any. Raises as `decode`."""
    with _opened(data, max_pixels) as (image, _):
        return image.width * image.height


def verify(data: bytes, max_pixels: int) -> None:
    """Decode all of an image and keep nothing. Raises as `decode`."""
    with _opened(data, max_pixels) as (image, _):
        image.load()


@contextmanager
def _opened(data: bytes, max_pixels: int) -> Iterator[tuple[Image.Image, Metadata]]:
    """An image of a format and a size that are taken; whatever hostile bytes make a decoder raise is our error."""
    form = form_of(data)
    try:
        alone, beside = split(data, form)
        with Image.open(BytesIO(alone), formats=[form]) as image:
            del alone
            _check_size(image.width, image.height, max_pixels)
            yield image, beside
    except UnusableImage:
        raise
    except UnidentifiedImageError:  # its message is the address of an object
        raise UnusableImage(f"{form} image is truncated or damaged") from None
    except Exception as error:
        raise UnusableImage(f"{form} image is truncated or damaged ({error})") from None


def form_of(data: bytes) -> str:
    """`PNG`, `JPEG` or `WEBP`, by the first bytes.

    Raises:
        UnsupportedImage: none of them.
    """
    start = data[:1024]
    form = _form(start, SIGNATURES)
    if form is None:
        other = _form(start, OTHERS)
        raise UnsupportedImage(
            f"this is {other}; {TAKEN}: convert it to one of them, or have the device save one"
            if other
            else f"not an image that can be read; {TAKEN}"
        )
    return form


def _form(start: bytes, forms: dict[str, bytes]) -> str | None:
    return next((form for form, pattern in forms.items() if re.match(pattern, start, re.DOTALL)), None)


def resized(image: Image.Image, frame: Frame, how: Literal["squash", "crop"] = "squash") -> Image.Image:
    """The network's input, bilinear with antialiasing: all of the image, squashed, or its middle of the frame's shape.

    Grey is Rec. 601's luma, of what is not grey already.
    """
    if how == "crop":
        scale = min(image.width / frame.width, image.height / frame.height)
        width, height = (max(1, round(scale * side)) for side in (frame.width, frame.height))
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    if frame.channels == 1 and image.mode != "F":
        image = image.convert("L")
    return image.resize((frame.width, frame.height), Image.Resampling.BILINEAR)


def array(image: Image.Image) -> NDArray[Any]:
    """An image's values from 0 to 255, (H, W, channels): uint8, or float32 in steps of 1/257 of one of mode F."""
    values = np.asarray(image)
    if image.mode == "F":
        values = ((values * STEPS).round() / STEPS).astype(np.float32)
    return values if values.ndim == 3 else values[..., None]


def pictured(values: NDArray[Any]) -> Image.Image:
    """The image of such an array: RGB, or grey of 8 or 16 bits."""
    if values.dtype != np.uint8:
        values = (values * STEPS).round().astype(np.uint16)
    return Image.fromarray(values if values.shape[2] == 3 else values[..., 0])


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise UnusableImage(f"image is {width}×{height} pixels; at most {max_pixels / 1e6:g} megapixels are taken")
    if min(width, height) < SMALLEST_SIDE:
        raise UnusableImage(
            f"image is {width}×{height} pixels; each side needs at least {SMALLEST_SIDE} to show anything"
        )


def _upright(image: Image.Image, exif: object, notes: Metadata) -> Image.Image:
    try:
        turn = TURNS.get(orientation(exif)) if isinstance(exif, bytes) and exif else None
    except ValueError:
        notes.ignore("EXIF data", "is damaged")
        turn = None
    return image if turn is None else image.transpose(turn)


def _split(image: Image.Image, *, deep: bool) -> tuple[Image.Image, Image.Image | None]:
    """Colours in mode L, RGB, CMYK or, of deep grey, F, and alpha where there is any."""
    if image.mode[:1] in {"I", "F"}:
        return _scaled(image, deep=deep)
    if image.mode == "La":
        image = image.convert("LA")
    grey = image.mode in {"1", "L", "LA"}
    if image.has_transparency_data:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        return rgba.getchannel("R") if grey else rgba.convert("RGB"), rgba.getchannel("A")
    wanted = "L" if grey else "CMYK" if image.mode == "CMYK" else "RGB"
    return image if image.mode == wanted else image.convert(wanted), None


def _scaled(image: Image.Image, *, deep: bool) -> tuple[Image.Image, Image.Image | None]:
    """Grey in more than 8 bits, which Pillow clips instead of scaling; and alpha."""
    values = np.asarray(image)
    least, most = float(values.min()), float(values.max())
    key = image.info.get("transparency")
    alpha = Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)) if isinstance(key, int) else None
    if image.mode.startswith("I;16") or (image.mode == "I" and least >= 0 and 255 < most < 65536):
        grey = (values / STEPS).astype(np.float32) if deep else (values >> 8).astype(np.uint8)
    elif image.mode == "F" and least >= 0 and most <= 1:
        grey = (values * 255).round().astype(np.uint8)
    elif least >= 0 and most <= 255:
        grey = values.round().astype(np.uint8)
    else:
        usual = "from 0 to 1 or to 255" if image.mode == "F" else "from 0 to 255 or to 65,535"
        raise ValueError(f"an image of mode {image.mode} has values {usual}; these go from {least:g} to {most:g}")
    return Image.fromarray(grey), alpha


def _in_srgb(image: Image.Image, profile: object, notes: Metadata) -> Image.Image:
    """In mode RGB; a profile that cannot be applied is none."""
    if isinstance(profile, bytes) and profile:
        try:
            return _transformed(image, profile)
        except _Inapplicable as why:
            notes.ignore("colour profile", str(why))
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
            notes.ignore("colour profile", "is damaged")
    return image if image.mode == "RGB" else image.convert("RGB")


class _Inapplicable(Exception):
    """Why a profile that is not damaged is not applied."""


def _transformed(image: Image.Image, profile: bytes) -> Image.Image:
    """By an ICC profile into sRGB, with its perceptual intent and black as black.

    Raises:
        _Inapplicable
        ImageCms.PyCMSError, OSError, TypeError, ValueError: it is damaged.
    """
    if len(profile) > LARGEST_PROFILE:
        raise _Inapplicable(f"is over {LARGEST_PROFILE / 1e6:g} MB")
    if ENDLESS in profile:
        raise _Inapplicable("has stages of a kind that may take very long")
    opened = ImageCms.ImageCmsProfile(BytesIO(profile))
    space = opened.profile.xcolor_space.strip()
    mode = SPACES.get(space)
    if (image.mode, mode) == ("L", "RGB"):
        image = image.convert("RGB")
    if image.mode != mode:
        raise _Inapplicable(f"is for {space if mode else 'other colours'} and the image is {image.mode}")
    transform = ImageCms.buildTransform(
        opened,
        ImageCms.createProfile("sRGB"),
        image.mode,
        "RGB",
        ImageCms.Intent.PERCEPTUAL,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    probes = PROBES.convert(image.mode)
    change = np.asarray(transform.apply(probes), dtype=int) - np.asarray(probes.convert("RGB"))
    if np.abs(change).max() <= 1:  # sRGB by another name: the pixels are left as they are
        return image if image.mode == "RGB" else image.convert("RGB")
    return transform.apply_in_place(image) if image.mode == "RGB" else transform.apply(image)
