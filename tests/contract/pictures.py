"""Image files of every accepted kind, hostile variations of them, and decompression bombs."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from tests.conftest import encoded, noise

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SIDES = (0, 1, 7, 8, 9, 255, 7000, 7071, 16383, 16384, 65535, 2**31 - 1, 2**31, 2**32 - 1)
LENGTHS = (0, 1, 2, 255, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
BIG = 7000  # 49 megapixels: just within the limit


def seeds() -> list[bytes]:
    """Valid files."""
    picture = noise(48, 32)
    clear = picture.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(picture.size))
    grey = Image.fromarray(np.arange(48 * 32, dtype=np.uint16).reshape(32, 48) * 40)
    palette = picture.quantize(16)
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = [noise(48, 32, number) for number in range(3)]
    return [
        encoded(picture, "PNG"),
        encoded(clear, "PNG"),
        encoded(palette, "PNG"),
        encoded(palette, "PNG", transparency=3),
        encoded(picture.convert("1"), "PNG"),
        encoded(clear.convert("LA"), "PNG"),
        encoded(grey, "PNG"),
        encoded(picture, "PNG", save_all=True, append_images=frames),
        encoded(picture, "JPEG"),
        encoded(picture, "JPEG", progressive=True, quality=95),
        encoded(picture.convert("CMYK"), "JPEG"),
        encoded(picture.convert("L"), "JPEG", exif=turned),
        encoded(picture, "WEBP"),
        encoded(clear, "WEBP", lossless=True),
        encoded(picture, "WEBP", exif=turned.tobytes()),
        encoded(picture, "WEBP", save_all=True, append_images=frames),
    ]


def bombs() -> list[bytes]:
    """Small files that decode to large ones: just within the limit of pixels, beyond it, and in their metadata."""
    chunk = zlib.compress(bytes(100_000_000), 9)
    size = (BIG, BIG)
    plain = encoded(noise(48, 32), "PNG")
    return [
        encoded(Image.new("RGB", size), "PNG"),
        encoded(Image.new("RGBA", size), "PNG"),
        encoded(Image.new("P", size), "PNG", transparency=0),
        encoded(Image.new("I;16", size), "PNG"),
        encoded(Image.new("1", size), "PNG"),
        encoded(Image.new("RGB", size), "JPEG", progressive=True),
        encoded(Image.new("CMYK", size), "JPEG"),
        encoded(Image.new("RGBA", size), "WEBP", lossless=True, method=0),
        encoded(Image.new("RGB", (8, 6_250_000)), "PNG"),
        encoded(Image.new("L", (BIG + 100, BIG + 100)), "PNG"),
        _with_chunk(plain, b"zTXt", b"a\0\0" + chunk),
        _with_chunk(plain, b"iCCP", b"a\0\0" + chunk),
        _with_chunk(plain, b"iTXt", b"a\0\1\0\0\0" + chunk),
        _with_chunk(plain, b"IDAT", chunk),
    ]


def variations(seed: int) -> Iterator[bytes]:
    """An endless sequence, the same for the same seed."""
    chance = random.Random(seed)
    files = seeds()
    while True:
        data = chance.choice(files)
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            data = chance.choice(MUTATIONS)(data, chance, files)
        yield data


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Names and contents of a PNG's chunks, as far as they can be read."""
    found, at = [], len(SIGNATURE)
    while at + 8 <= len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        found.append((name, data[at + 8 : at + 8 + length]))
        at += length + 12
    return found


def _packed(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG with correct lengths and checksums."""
    parts = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    return SIGNATURE + b"".join(parts)


def _with_chunk(data: bytes, name: bytes, body: bytes) -> bytes:
    first, *rest = _chunks(data)
    return _packed([first, (name, body), *rest])


Mutation = Callable[[bytes, random.Random, list[bytes]], bytes]


def _flipped(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    changed = bytearray(data)
    for _number in range(chance.choice((1, 2, 8, 64))):
        if changed:
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _truncated(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def _spliced(data: bytes, chance: random.Random, files: list[bytes]) -> bytes:
    other = chance.choice(files)
    return data[: chance.randrange(len(data) + 1)] + other[chance.randrange(len(other)) :]


def _repeated(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    start = chance.randrange(len(data) + 1)
    part = data[start : start + chance.choice((1, 4, 16, 256, 4096))]
    at = chance.choice((start, chance.randrange(len(data) + 1)))
    return data[:at] + part * chance.choice((1, 2, 50)) + data[at:]


def _removed(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    start = chance.randrange(len(data) + 1)
    return data[:start] + data[start + chance.choice((1, 4, 16, 256)) :]


def _number(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    """Change a number of two, three or four bytes, such as a length."""
    form = chance.choice((">H", "<H", ">I", "<I"))
    value = chance.choice(LENGTHS) % 2 ** (8 * struct.calcsize(form))
    at = chance.randrange(min(len(data), 64) + 1) if chance.random() < 0.5 else chance.randrange(len(data) + 1)
    return data[:at] + struct.pack(form, value) + data[at + struct.calcsize(form) :]


def _resized(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    """Change the dimensions in the header only."""
    sides = (chance.choice(SIDES), chance.choice(SIDES))
    if data.startswith(SIGNATURE) and (chunks := _chunks(data)):
        return _packed([(chunks[0][0], struct.pack(">II", *sides) + chunks[0][1][8:]), *chunks[1:]])
    short = [side % 65536 for side in sides]
    for marker in (b"\xff\xc0", b"\xff\xc2"):  # of JPEG: length, precision, then the sides
        if (at := data.find(marker)) > 0:
            return data[: at + 5] + struct.pack(">HH", *short) + data[at + 9 :]
    if (at := data.find(b"VP8X")) > 0:
        canvas = b"".join(struct.pack("<I", side % 2**24)[:3] for side in sides)
        return data[: at + 12] + canvas + data[at + 18 :]
    if (at := data.find(b"\x9d\x01\x2a")) > 0:  # of VP8
        return data[: at + 3] + struct.pack("<HH", *short) + data[at + 7 :]
    return data


def _rechunked(data: bytes, chance: random.Random, files: list[bytes]) -> bytes:
    """A PNG whose chunks are doubled, dropped, swapped or changed, with correct checksums."""
    chunks = _chunks(data) if data.startswith(SIGNATURE) else []
    if not chunks:
        return _flipped(data, chance, files)
    at = chance.randrange(len(chunks))
    name, body = chunks[at]
    other = chance.randrange(len(chunks))
    action = chance.randrange(5)
    if action == 0:
        chunks[at:at] = [chunks[at]] * chance.choice((1, 2, 30))
    elif action == 1:
        del chunks[at]
    elif action == 2:
        chunks[at], chunks[other] = chunks[other], chunks[at]
    elif action == 3:
        chunks[at] = (chunks[other][0], body)
    else:
        chunks[at] = (name, _flipped(body, chance, files))
    return _packed(chunks)


def _unpacked(data: bytes, chance: random.Random, files: list[bytes]) -> bytes:
    """A PNG whose pixel data is changed before compression."""
    chunks = _chunks(data) if data.startswith(SIGNATURE) else []
    for number, (name, body) in enumerate(chunks):
        if name == b"IDAT":
            try:
                pixels = zlib.decompress(body)
            except zlib.error:
                break
            changed = chance.choice(MUTATIONS[:5])(pixels, chance, files)
            chunks[number] = (name, zlib.compress(changed))
            return _packed(chunks)
    return _number(data, chance, files)


MUTATIONS: tuple[Mutation, ...] = (
    _flipped,
    _truncated,
    _spliced,
    _repeated,
    _removed,
    _number,
    _resized,
    _rechunked,
    _unpacked,
)
