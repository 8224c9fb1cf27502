"""Image files that are put together by hand, and what is decoded of them."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from PIL import Image

from shared.images import decode

MANY = 10**8
ODD_EXIF = b"\0\x08\0\x02\x01\x12\0\x03" + bytes(40)
DAMAGED = "The metadata of the image's file was ignored: it is damaged."
DAMAGED_EXIF = "The EXIF data of the image's file was ignored: it is damaged."
DAMAGED_PROFILE = "The colour profile of the image's file was ignored: it is damaged."


def flat(colour: tuple[int, ...], mode: str = "RGB") -> Image.Image:
    """A picture of one colour."""
    return Image.new(mode, (16, 16), colour)


def shown(data: bytes) -> list[int]:
    """The colour of a pixel in the middle."""
    pixel: list[int] = np.asarray(decode(data, MANY))[8, 8].tolist()
    return pixel


def ends(data: bytes) -> list[list[int]]:
    """The first and the last colour of a row."""
    both: list[list[int]] = np.asarray(decode(data, MANY))[0, [0, -1]].tolist()
    return both


def chunk(kind: bytes, body: bytes, crc: int | None = None) -> bytes:
    """Of a PNG."""
    return (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) if crc is None else crc)
    )


def beside(data: bytes, *chunks: bytes) -> bytes:
    """A PNG with chunks before its pixels."""
    return data[:33] + b"".join(chunks) + data[33:]


def drawn(bits: int, colour: int, row: bytes, *chunks: bytes) -> bytes:
    """A PNG of 8 × 8 pixels, all rows the same."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, bits, colour, 0, 0, 0))
    rest = chunk(b"IDAT", zlib.compress((b"\0" + row) * 8)), chunk(b"IEND", b"")
    return b"".join([b"\x89PNG\r\n\x1a\n", head, *chunks, *rest])


def segment(marker: int, body: bytes) -> bytes:
    """Of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def after_start(data: bytes, *segments: bytes) -> bytes:
    """A JPEG with segments before all others."""
    return data[:2] + b"".join(segments) + data[2:]


def tiff(orientation: int, order: str = ">", kind: int = 3) -> bytes:
    """EXIF's structure with one entry."""
    value = struct.pack(f"{order}{'I' if kind == 4 else 'H'}", orientation).ljust(4, b"\0")
    mark = b"MM\0*" if order == ">" else b"II*\0"
    return mark + struct.pack(f"{order}IHHHI", 8, 1, 0x0112, kind, 1) + value + bytes(4)
