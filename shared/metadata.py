"""Separates the metadata of an image file from its pixels, with limits on size.

Pillow rejects a file for a long text, or a wrong checksum in its metadata, although the pixels can be decoded.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

LARGEST_PROFILE = 1_000_000  # bytes
ORIENTATION = 0x0112
SCALES = {b"\x02\0": 85, b"\x04\0": 17}  # (bits, colour type) of grey in 2 and 4 bits → factor to 8 bits
JFIF, EXIF, ICC, ADOBE = b"JFIF\0", b"Exif\0\0", b"ICC_PROFILE\0", b"Adobe"
NAMES = {b"eXIf": "EXIF data", b"iCCP": "colour profile", b"tRNS": "transparency"}


@dataclass
class Metadata:
    """The metadata of one file.

    Args:
        exif: a TIFF structure, with or without the prefix `Exif`; empty: none.
        profile: an ICC profile; empty: none.
        notes: sentences about metadata that was ignored.
    """

    exif: bytes = b""
    profile: bytes = b""
    notes: list[str] = field(default_factory=list)

    def ignore(self, what: str, why: str) -> None:
        """Add a note, unless there is one with the same text."""
        note = f"The {what} of the image's file was ignored: it {why}."
        if note not in self.notes:
            self.notes.append(note)


def split(data: bytes, form: str) -> tuple[bytes, Metadata]:
    """The file without its metadata, and the metadata. WebP files are returned unchanged: Pillow handles them well.

    Nothing is rejected here: from the first damaged or unknown position on, the file is returned unchanged.
    """
    if form == "PNG":
        return _png(data)
    return _jpeg(data) if form == "JPEG" else (data, Metadata())


def orientation(exif: bytes) -> int:
    """EXIF's orientation, 1 to 8; 1 where there is none.

    Pillow would read every entry for it, and warn about each that is invalid.

    Raises:
        ValueError: this is not EXIF.
    """
    tiff = exif.removeprefix(EXIF)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        raise ValueError("no TIFF structure")
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", tiff, at)
            if tag == ORIENTATION:
                (value,) = struct.unpack_from(order + {1: "B", 4: "I"}.get(kind, "H"), tiff, at + 8)
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        raise ValueError("truncated") from None
    return 1


def _png(data: bytes) -> tuple[bytes, Metadata]:
    view, found, at = memoryview(data), Metadata(), 8
    kept: list[bytes | memoryview] = [view[:8]]
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data) or not kind.isalpha():
            break
        if kind[:1].isupper():
            kept.append(view[at:end])
        elif zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end]):
            found.ignore(NAMES.get(kind, "metadata"), "is damaged")
        else:
            kept.append(_ancillary(found, kind, data[at + 8 : end - 4], data[24:26]))
        at = len(data) if kind == b"IEND" else end
    return b"".join([*kept, view[at:]]), found


def _ancillary(found: Metadata, kind: bytes, body: bytes, depth: bytes) -> bytes:
    """Reads an ancillary chunk of a PNG; returns what remains of it in the file.

    Args:
        depth: the two bytes of the header with the bit depth and the colour type.
    """
    if kind == b"tRNS":
        body = _transparent(body, depth)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    if kind == b"eXIf":
        found.exif = found.exif or body
    if kind == b"iCCP":
        _inflate(found, body.partition(b"\0")[2][1:])
    return b""


def _transparent(body: bytes, depth: bytes) -> bytes:
    """The transparent colour, in the bit depth in which Pillow compares it with the pixels."""
    if depth == b"\x10\x02":  # RGB in 16 bits
        return bytes(value for high in body[0:6:2] for value in (0, high))
    if depth in SCALES and len(body) == 2:
        return bytes([0, body[1] * SCALES[depth] & 255])
    return body


def _inflate(found: Metadata, data: bytes) -> None:
    try:
        found.profile = zlib.decompressobj().decompress(data, LARGEST_PROFILE + 1)  # one byte more than allowed
    except zlib.error:
        found.ignore("colour profile", "is damaged")


def _jpeg(data: bytes) -> tuple[bytes, Metadata]:
    """Of the application segments only the two remain that define how colours are coded."""
    view, found, pieces, at = memoryview(data), Metadata(), list[bytes](), 2
    kept = [view[:2]]
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if marker == 0xFF:  # padding
            at += 1
            continue
        end = at + 2 + length
        if marker < 0xC0 or 0xD0 <= marker <= 0xDA or length < 2 or end > len(data):  # the scan, or damage
            break
        body = data[at + 4 : end]
        if marker == 0xE1 and body.startswith(EXIF):
            found.exif = found.exif or body
        if marker == 0xE2 and body.startswith(ICC):
            pieces.append(body[len(ICC) :])
        if _needed(marker, body):
            kept.append(view[at:end])
        at = end
    if pieces:
        _assemble(found, sorted(pieces))
    return b"".join([*kept, view[at:]]), found


def _needed(marker: int, body: bytes) -> bool:
    if marker == 0xE0:
        return body.startswith(JFIF) and len(body) >= 14
    if marker == 0xEE:
        return body.startswith(ADOBE) and len(body) >= 12
    return marker < 0xE0


def _assemble(found: Metadata, pieces: list[bytes]) -> None:
    """A JPEG stores its profile in pieces of 64 kB, each with its number and the number of pieces."""
    count = len(pieces)
    if count < 256 and [piece[:2] for piece in pieces] == [bytes([number, count]) for number in range(1, count + 1)]:
        found.profile = b"".join(piece[2:] for piece in pieces)
    else:
        found.ignore("colour profile", "is incomplete")
