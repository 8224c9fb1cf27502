"""The images in a ZIP or tar archive, one after the other, whatever else is in it.

For archives of one's own: zipfile and tarfile can be had to work for hours, or to unpack gigabytes at once, by who
means to (decisions/0029). Nothing is ever written to a path that an archive names. What cannot be taken is passed on as
`Odd`, with the reason in words, and the rest goes on.
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

from shared.errors import UnsupportedImage

MOST_MEMBERS = 200_000
MOST_NAME = 500  # letters
ARCHIVES = {  # what they begin with, and where
    "ZIP": ((0, b"PK\3\4"), (0, b"PK\5\6")),
    "tar": ((257, b"ustar"),),
    "gzip": ((0, b"\x1f\x8b"),),
    "bzip2": ((0, b"BZh"),),
    "xz": ((0, b"\xfd7zXZ\0"),),
    "7z": ((0, b"7z\xbc\xaf\x27\x1c"),),
    "RAR": ((0, b"Rar!\x1a\x07"),),
}
TARS = ("tar", "gzip", "bzip2", "xz")
UTF8_NAME = 0x800  # the bit of a ZIP's entry that says how its name is coded
LITTER = ("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini")  # that systems leave behind


@dataclass(frozen=True)
class Member:
    """A file of an archive: its path there, with `/`, and its bytes."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Odd:
    """What could not be taken, and why."""

    name: str
    reason: str


def archive_form(head: bytes) -> str | None:
    """Which archive bytes begin: one of `ARCHIVES`; None: none that is known."""
    for form, beginnings in ARCHIVES.items():
        if any(head[at : at + len(mark)] == mark for at, mark in beginnings):
            return form
    return None


def members(file: IO[bytes], most_bytes: int) -> Iterator[Member | Odd]:
    """The files of an archive, in its order; folders, and what systems leave behind, are passed over.

    Args:
        file: seekable; a tar may be compressed by gzip, bzip2 or xz.
        most_bytes: of one file.

    Raises:
        UnsupportedImage: it is no archive of these kinds.
    """
    form = archive_form(file.read(512))
    file.seek(0)
    if form == "ZIP":
        found = _of_zip(file, most_bytes)
    elif form in TARS:
        found = _of_tar(file, most_bytes)
    elif form:
        raise UnsupportedImage(f"this is a {form} archive; ZIP and tar (also .gz, .bz2, .xz) are taken")
    else:
        raise UnsupportedImage("this is no archive; ZIP and tar (also .gz, .bz2, .xz) are taken")
    for count, one in enumerate(found):
        if count == MOST_MEMBERS:
            yield Odd(one.name, f"the archive has more than {MOST_MEMBERS:,} files; the rest is left out")
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
                yield Odd(name, "encrypted; archives without a password are taken")
            elif reason := _refused(name, entry.file_size, most_bytes):
                yield Odd(name, reason)
            else:
                try:
                    with archive.open(entry) as opened:
                        yield _member(name, opened, most_bytes)
                except Exception as error:
                    yield Odd(name, f"damaged in the archive: {_said(error)}")


class _Whole(tarfile.TarInfo):
    """An entry of an archive that ends where it says so: by itself tarfile takes a damaged header for the end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """The next one."""
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
                    yield Odd(name, "no file, but a device or the like")
                elif reason := _refused(name, entry.size, most_bytes):
                    yield Odd(name, reason)
                elif opened := archive.extractfile(entry):
                    yield _member(name, opened, most_bytes)
    except Exception as error:
        if not name:
            raise UnsupportedImage(f"the tar archive cannot be read: {_said(error)}") from None
        yield Odd(name, f"the archive is damaged or cut off here, and ends: {_said(error)}")


def _member(name: str, opened: IO[bytes], most_bytes: int) -> Member | Odd:
    data = opened.read(most_bytes + 1)
    if len(data) > most_bytes:
        return Odd(name, _too_large(most_bytes))
    form = archive_form(data[:512])
    if form:
        return Odd(name, f"a {form} archive inside an archive; unpack it first")
    return Member(name, data)


def _refused(name: str, size: int, most_bytes: int) -> str | None:
    """Why a file is not even read."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or name[1:3] in (":/", ":"):
        return "its path leads out of the archive"
    return _too_large(most_bytes) if size > most_bytes else None


def _too_large(most_bytes: int) -> str:
    return f"larger than {most_bytes / 1e6:g} MB, which an image may have"


def _zip_name(entry: zipfile.ZipInfo) -> str:
    """Names that are not said to be UTF-8 mostly are, if they can be; else they are of the first PCs' code page."""
    if entry.flag_bits & UTF8_NAME:
        return entry.filename
    try:
        return entry.filename.encode("cp437").decode()
    except UnicodeError:
        return entry.filename


def shown(name: str) -> str:
    """A name that can be shown and stored: one form of each letter, no control characters, `/` between folders.

    Of one that is too long the end is kept.
    """
    plain = name.replace("\\", "/").encode(errors="surrogateescape").decode(errors="replace")
    kept = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in plain)
    return unicodedata.normalize("NFC", kept)[-MOST_NAME:]


def _litter(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return any(part in LITTER or part.startswith("._") for part in parts)


def _said(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
