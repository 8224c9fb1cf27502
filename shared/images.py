"""Decodes uploaded images and brings them to the input of a network, in RGB or greyscale.

The API checks an image with the same `decode` that the worker uses later.
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
OTHERS = {  # common formats that are not supported; the first match counts
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
ACCEPTED = "PNG, JPEG and WebP are accepted"
SMALLEST_SIDE = 8  # smaller pictures are nearly uniform after resizing
TURNS = {  # EXIF orientation → the transposition that makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SPACES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}  # colour space of a profile → mode of its images
UNBOUNDED = b"mpet"  # multi-process elements: a profile may have any number, each evaluated for every colour
PROBES = Image.fromarray(np.mgrid[:256:17, :256:17, :256:17].T.reshape(256, 16, 3).astype(np.uint8))  # RGB colours
STEPS = 257  # 16-bit steps per 8-bit step: 65535 / 255

Image.MAX_IMAGE_PIXELS = None  # our own limit is checked below, before anything is decoded


@dataclass(frozen=True)
class Decoded:
    """A picture in 8-bit sRGB, or 16-bit grey, and notes on metadata of its file that was ignored."""

    image: Image.Image
    notes: list[str]


def decode(data: bytes, max_pixels: int) -> Image.Image:
    """As `decoded`, without the notes."""
    return decoded(data, max_pixels).image


def decoded(data: bytes, max_pixels: int, *, deep: bool = False) -> Decoded:
    """Decode a PNG, JPEG or WebP (the first frame of an animation) and convert it with `as_seen`.

    The number of pixels is checked before anything is decoded. Damaged or oversized metadata is ignored, with a note.

    Args:
        deep: as in `as_seen`.

    Raises:
        UnsupportedImage: the file has none of these formats.
        UnusableImage: too many pixels, a side under 8 pixels, truncated or damaged.
    """
    with _opened(data, max_pixels) as (image, metadata):
        image.load()
        for name, value in (("exif", metadata.exif), ("icc_profile", metadata.profile)):
            if value:
                image.info[name] = value
        seen = as_seen(image, deep=deep)
    return Decoded(seen.image, metadata.notes + seen.notes)


def as_seen(image: Image.Image, *, deep: bool = False) -> Decoded:
    """A Pillow image as viewers show it, in 8-bit sRGB: upright, ICC profile applied, alpha flattened on white.

    May modify the image itself, to save a copy of up to 50 megapixels.

    Args:
        deep: keep the precision of 16-bit grey: the result has mode F then, with values from 0 to 255 in steps of
            1/257, and its profile is ignored.

    Raises:
        ValueError: an image of mode I or F has values outside the usual ranges.
    """
    notes = Metadata()
    exif = image.info.get("exif")
    profile = image.info.get("icc_profile") if image.mode != "LAB" else None  # Pillow converts LAB itself
    colours, alpha = _split(_upright(image, exif, notes), deep=deep)
    if colours.mode == "F" and profile:
        notes.ignore("colour profile", "is not for grey of 16 bits")
    picture = colours if colours.mode == "F" else _in_srgb(colours, profile, notes)
    if alpha is not None:
        white = 255 if picture.mode == "F" else "white"
        picture, coloured = Image.new(picture.mode, picture.size, white), picture
        picture.paste(coloured, mask=alpha)
    picture.info.clear()  # it describes the pixels of the file, not these
    return Decoded(picture, notes.notes)


def pixels(data: bytes, max_pixels: int) -> int:
    """The number of pixels according to the file's header. Raises as `decode`."""
    with _opened(data, max_pixels) as (image, _):
        return image.width * image.height


def verify(data: bytes, max_pixels: int) -> None:
    """Decode an image completely and discard it. Raises as `decode`."""
    with _opened(data, max_pixels) as (image, _):
        image.load()


@contextmanager
def _opened(data: bytes, max_pixels: int) -> Iterator[tuple[Image.Image, Metadata]]:
    """An image of a supported format and size. Every exception of the decoder becomes an UnusableImage."""
    form = form_of(data)
    try:
        stripped, metadata = split(data, form)
        with Image.open(BytesIO(stripped), formats=[form]) as image:
            del stripped
            _check_size(image.width, image.height, max_pixels)
            yield image, metadata
    except UnusableImage:
        raise
    except UnidentifiedImageError:  # its message is the address of an object
        raise UnusableImage(f"{form} image is truncated or damaged") from None
    except Exception as error:
        raise UnusableImage(f"{form} image is truncated or damaged ({error})") from None


def form_of(data: bytes) -> str:
    """`PNG`, `JPEG` or `WEBP`, from the first bytes of a file.

    Raises:
        UnsupportedImage: it is none of them.
    """
    start = data[:1024]
    form = _form(start, SIGNATURES)
    if form is None:
        other = _form(start, OTHERS)
        raise UnsupportedImage(
            f"this is {other}; {ACCEPTED}: convert it, or let the device save one of these formats"
            if other
            else f"not an image that can be read; {ACCEPTED}"
        )
    return form


def _form(start: bytes, forms: dict[str, bytes]) -> str | None:
    return next((form for form, pattern in forms.items() if re.match(pattern, start, re.DOTALL)), None)


def resized(image: Image.Image, frame: Frame, how: Literal["squash", "crop"] = "squash") -> Image.Image:
    """The network's input: the image squashed to the frame, or its centre crop; bilinear with antialiasing.

    Colours are converted to grey by the luma of Rec. 601.
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
    """The image's values from 0 to 255, (H, W, channels): uint8; for mode F float32 in steps of 1/257."""
    values = np.asarray(image)
    if image.mode == "F":
        values = ((values * STEPS).round() / STEPS).astype(np.float32)
    return values if values.ndim == 3 else values[..., None]


def pictured(values: NDArray[Any]) -> Image.Image:
    """The image of an array from `array`: RGB, or grey with 8 or 16 bits."""
    if values.dtype != np.uint8:
        values = (values * STEPS).round().astype(np.uint16)
    return Image.fromarray(values if values.shape[2] == 3 else values[..., 0])


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise UnusableImage(f"image is {width}×{height} pixels; at most {max_pixels / 1e6:g} megapixels are accepted")
    if min(width, height) < SMALLEST_SIDE:
        raise UnusableImage(f"image is {width}×{height} pixels; each side needs at least {SMALLEST_SIDE}")


def _upright(image: Image.Image, exif: object, notes: Metadata) -> Image.Image:
    try:
        turn = TURNS.get(orientation(exif)) if isinstance(exif, bytes) and exif else None
    except ValueError:
        notes.ignore("EXIF data", "is damaged")
        turn = None
    return image if turn is None else image.transpose(turn)


def _split(image: Image.Image, *, deep: bool) -> tuple[Image.Image, Image.Image | None]:
    """The colours, in mode L, RGB or CMYK, or F for 16-bit grey, and the alpha channel if there is one."""
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
    """Grey with more than 8 bits, scaled (Pillow would clip it); and the alpha channel if there is one."""
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
    """The image in mode RGB. A profile that cannot be applied is ignored, with a note."""
    if isinstance(profile, bytes) and profile:
        try:
            return _transformed(image, profile)
        except _Inapplicable as why:
            notes.ignore("colour profile", str(why))
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
            notes.ignore("colour profile", "is damaged")
    return image if image.mode == "RGB" else image.convert("RGB")


class _Inapplicable(Exception):
    """A profile is not damaged, but is not applied; the message says why."""


def _transformed(image: Image.Image, profile: bytes) -> Image.Image:
    """Converted by an ICC profile into sRGB, with perceptual intent and black point compensation.

    Raises:
        _Inapplicable
        ImageCms.PyCMSError, OSError, TypeError, ValueError: the profile is damaged.
    """
    if len(profile) > LARGEST_PROFILE:
        raise _Inapplicable(f"is over {LARGEST_PROFILE / 1e6:g} MB")
    if UNBOUNDED in profile:
        raise _Inapplicable("has elements that may take very long to evaluate")
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
    if np.abs(change).max() <= 1:  # the profile is sRGB itself: leave the pixels unchanged
        return image if image.mode == "RGB" else image.convert("RGB")
    return transform.apply_in_place(image) if image.mode == "RGB" else transform.apply(image)
