"""Reads the files of a ZIP or tar archive, one at a time.

Only for archives of the user's own: a hostile archive can keep zipfile and tarfile busy for hours, or make them unpack
gigabytes (decisions/0029). Nothing is ever written to a path from an archive. Entries that cannot be read are returned
as `Odd`, with the reason in words, and reading continues.
"""

from __future__ import annotations

import stat
import tarfile
import unicodedata
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Self

from shared.errors import UnsupportedImage, first_line

MOST_MEMBERS = 200_000
MOST_NAME = 500  # characters
ARCHIVES = {  # signatures, each with its offset
    "ZIP": ((0, b"PK\3\4"), (0, b"PK\5\6")),
    "tar": ((257, b"ustar"),),
    "gzip": ((0, b"\x1f\x8b"),),
    "bzip2": ((0, b"BZh"),),
    "xz": ((0, b"\xfd7zXZ\0"),),
    "7z": ((0, b"7z\xbc\xaf\x27\x1c"),),
    "RAR": ((0, b"Rar!\x1a\x07"),),
}
TARS = ("tar", "gzip", "bzip2", "xz")
UTF8_NAME = 0x800  # flag of a ZIP entry: its name is encoded in UTF-8
LITTER = ("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini")  # files that operating systems add


@dataclass(frozen=True)
class Member:
    """A file of an archive: its path, with `/` as separator, and its bytes."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Odd:
    """An entry that was rejected, and why."""

    name: str
    reason: str


def archive_form(head: bytes) -> str | None:
    """The archive format of a file with this beginning, one of `ARCHIVES`; None if it is none of them."""
    for form, beginnings in ARCHIVES.items():
        if any(head[at : at + len(mark)] == mark for at, mark in beginnings):
            return form
    return None


def members(file: IO[bytes], most_bytes: int) -> Iterator[Member | Odd]:
    """The files of an archive, in its order, without folders and files that operating systems add.

    Args:
        file: seekable; a tar may be compressed by gzip, bzip2 or xz.
        most_bytes: limit on the size of one file.

    Raises:
        UnsupportedImage: it is not a ZIP or tar archive.
    """
    form = archive_form(file.read(512))
    file.seek(0)
    if form == "ZIP":
        found = _of_zip(file, most_bytes)
    elif form in TARS:
        found = _of_tar(file, most_bytes)
    elif form:
        raise UnsupportedImage(f"this is a {form} archive; ZIP and tar (also .gz, .bz2, .xz) are accepted")
    else:
        raise UnsupportedImage("this is not an archive; ZIP and tar (also .gz, .bz2, .xz) are accepted")
    for count, one in enumerate(found):
        if count == MOST_MEMBERS:
            yield Odd(one.name, f"the archive has more than {MOST_MEMBERS:,} files; the rest is skipped")
            return
        yield one


def _of_zip(file: IO[bytes], most_bytes: int) -> Iterator[Member | Odd]:
    try:
        archive = zipfile.ZipFile(file)
    except Exception as error:
        raise UnsupportedImage(f"the ZIP archive cannot be read: {error}") from None
    with archive:
        for entry in archive.infolist():
            name = shown(_zip_name(entry))
            if entry.is_dir() or _litter(name):
                continue
            if stat.S_ISLNK(entry.external_attr >> 16):
                yield Odd(name, "a link; put the image itself into the archive")
            elif entry.flag_bits & 1:
                yield Odd(name, "encrypted; only archives without a password are accepted")
            elif reason := _refused(name, entry.file_size, most_bytes):
                yield Odd(name, reason)
            else:
                try:
                    with archive.open(entry) as opened:
                        yield _member(name, opened, most_bytes)
                except Exception as error:
                    yield Odd(name, f"damaged in the archive: {first_line(error)}")


class _Whole(tarfile.TarInfo):
    """An entry of an archive. A damaged header is an error here; tarfile regards it as the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """The next entry."""
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            if isinstance(error, tarfile.EOFHeaderError):  # type: ignore[attr-defined]  # its types lack it
                raise
            raise tarfile.ReadError(str(error)) from error


def _of_tar(file: IO[bytes], most_bytes: int) -> Iterator[Member | Odd]:
    name = ""
    try:
        with tarfile.open(fileobj=file, mode="r|*", tarinfo=_Whole) as archive:
            for entry in archive:
                name = shown(entry.name)
                if entry.isdir() or _litter(name):
                    continue
                if entry.issym() or entry.islnk():
                    yield Odd(name, "a link; put the image itself into the archive")
                elif not entry.isfile():
                    yield Odd(name, "not a regular file")
                elif reason := _refused(name, entry.size, most_bytes):
                    yield Odd(name, reason)
                elif opened := archive.extractfile(entry):
                    yield _member(name, opened, most_bytes)
    except Exception as error:
        if not name:
            raise UnsupportedImage(f"the tar archive cannot be read: {first_line(error)}") from None
        yield Odd(name, f"the archive is damaged or truncated here; the rest is skipped: {first_line(error)}")


def _member(name: str, opened: IO[bytes], most_bytes: int) -> Member | Odd:
    data = opened.read(most_bytes + 1)
    if len(data) > most_bytes:
        return Odd(name, _too_large(most_bytes))
    form = archive_form(data[:512])
    if form:
        return Odd(name, f"a {form} archive inside an archive; unpack it first")
    return Member(name, data)


def _refused(name: str, size: int, most_bytes: int) -> str | None:
    """Why a file is rejected before it is read; None if it is not."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or name[1:3] in (":/", ":"):
        return "its path leads out of the archive"
    return _too_large(most_bytes) if size > most_bytes else None


def _too_large(most_bytes: int) -> str:
    return f"larger than the {most_bytes / 1e6:g} MB that an image may have"


def _zip_name(entry: zipfile.ZipInfo) -> str:
    """The name, decoded as UTF-8 where possible, even without the flag; otherwise as code page 437."""
    if entry.flag_bits & UTF8_NAME:
        return entry.filename
    try:
        return entry.filename.encode("cp437").decode()
    except UnicodeError:
        return entry.filename


def shown(name: str) -> str:
    """A name that can be shown and stored: NFC, no control characters, `/` as separator, shortened at its beginning."""
    plain = name.replace("\\", "/").encode(errors="surrogateescape").decode(errors="replace")
    kept = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in plain)
    return unicodedata.normalize("NFC", kept)[-MOST_NAME:]


def _litter(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return any(part in LITTER or part.startswith("._") for part in parts)
