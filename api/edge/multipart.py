"""A parser of multipart forms (RFC 7578) that reads a form as it arrives and holds it in memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from shared.errors import MalformedBody, brief
from shared.schemas import MAX_IMAGES, MAX_KERNELS

IMAGE = "image"  # a part of this name is a file, with a filename or without
FIELD_BYTES = 64 * 1024
MOST_FIELDS = MAX_KERNELS + 256  # each kernel may have a field of its own
FILE_WANTED = "send each image as a file with a name (curl -F image=@cat.jpg)"
EXTENDED = re.compile(rb";\s*filename\*\s*=\s*\"?([\w-]+)'[^']*'([^;\"\s]*)", re.IGNORECASE)


@dataclass
class FormPart:
    """One part of a form; `filename` is None if it was sent without one."""

    name: str
    filename: str | None
    data: bytearray = field(default_factory=bytearray)

    @property
    def text(self) -> str:
        """The value of a field that is not a file.

        Raises:
            MalformedBody: it is not UTF-8.
        """
        return _text(self.data, f"field {brief(self.name)}")


class FormReader:
    """Parses a form's bytes as they arrive."""

    def __init__(self, content_type: str) -> None:
        self.parts: list[FormPart] = []
        self._header = bytearray(), bytearray()
        self._disposition = b""
        self._complete = False
        _, options = parse_options_header(content_type)
        if options.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"us-ascii"):
            raise _malformed("its charset is not UTF-8")
        if not (boundary := options.get(b"boundary")):
            raise _malformed("Content-Type has no boundary")
        with _parsing():
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": self._data,
                    "on_end": self._end,
                },
            )

    def write(self, data: bytes) -> None:
        """Parse the next bytes.

        Raises:
            MalformedBody: they are not part of a form, or its fields are too many or too long.
        """
        with _parsing():
            self._parser.write(data)

    def close(self) -> list[FormPart]:
        """Return the parts, after the last bytes. Raises as `write`."""
        if not self._complete:
            raise _malformed("it ends before its last boundary")
        return self.parts

    def _begin(self) -> None:
        self._disposition = b""
        if len(self.parts) >= MOST_FIELDS + MAX_IMAGES:
            raise _malformed(f"it has over {MOST_FIELDS} fields")

    def _end_header(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = bytes(value)
        self._header = bytearray(), bytearray()

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise _malformed("a part has no Content-Disposition with a name")
        name = _text(options[b"name"], "the name of a part")
        self.parts.append(FormPart(name, _filename(self._disposition, options.get(b"filename"))))

    def _data(self, data: bytes, start: int, end: int) -> None:
        part = self.parts[-1]
        part.data += data[start:end]
        if len(part.data) > FIELD_BYTES and part.filename is None and part.name.removesuffix("[]") != IMAGE:
            raise _malformed(f"field {brief(part.name)} has over {FIELD_BYTES // 1024} kB; {FILE_WANTED}")

    def _end(self) -> None:
        self._complete = True


def _filename(disposition: bytes, plain: bytes | None) -> str | None:
    """The part's filename. Its extended form (RFC 5987) is used only if there is no plain one; browsers send that."""
    if plain is not None:
        return plain.decode(errors="replace")
    if found := EXTENDED.search(disposition):
        charset = "latin-1" if found[1].lower() == b"iso-8859-1" else "utf-8"
        return unquote_to_bytes(found[2]).decode(charset, errors="replace")
    return None


def _text(data: bytes | bytearray, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _malformed(f"{what} is not UTF-8 ({error.reason})") from None


def _malformed(why: str) -> MalformedBody:
    return MalformedBody(f"the form cannot be read: {why}")


@contextmanager
def _parsing() -> Iterator[None]:
    try:
        yield
    except FormParserError as error:
        raise _malformed(brief(error, 200)) from None
