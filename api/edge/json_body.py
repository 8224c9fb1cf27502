"""A JSON body, parsed strictly and within bounds: the bytes of images are cut out before anything is parsed.

So little is parsed, whatever was sent: a list of short values takes twenty times its length in memory once parsed.
"""

from __future__ import annotations

import json
import re
import secrets
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from api.edge.problems import invalid
from shared.errors import BodyTooLarge, InvalidRequest, MalformedBody, brief
from shared.schemas import ActivationsBody, ExplainBody

MOST_BESIDE = 200_000  # bytes of a body besides the images' data
MOST_FIELDS = 64  # of one object; a request has about twenty
SHORT = 4096  # bytes; a shorter image is parsed with the rest
AHEAD = 64  # bytes before a value in which its name is searched
DATA_AHEAD = re.compile(rb'(?<!\\)"data"[ \t\r\n]*:[ \t\r\n]*$')
BOM = b"\xef\xbb\xbf"

BodyT = TypeVar("BodyT", ExplainBody, ActivationsBody)
ObjectT = TypeVar("ObjectT", bound=BaseModel)


def with_images(body: bytearray, model: type[BodyT]) -> BodyT:
    """A body with images. Raises as `parse`."""
    found = validated(parse(body), model)
    for index, image in enumerate(found.images):
        if (image.data is None) == (image.sha256 is None):
            raise InvalidRequest(f"images.{index}: give either data (base64) or sha256")
    return found


def validated(fields: object, model: type[ObjectT]) -> ObjectT:
    """Parsed JSON as an object of this model.

    Raises:
        InvalidRequest.
    """
    if not isinstance(fields, dict):
        required = ", ".join(f'"{name}": …' for name, one in model.model_fields.items() if one.is_required())
        raise InvalidRequest(f"the body is JSON but not an object; send {{{required}}}")
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise invalid(error.errors(), list(model.model_fields)) from None


def parse(body: bytearray) -> object:
    """The JSON value in a body. If an image's `data` is long, it is a view of its base64 in the body.

    Raises:
        MalformedBody: it is not JSON in UTF-8.
        BodyTooLarge: it has more than 200 kB besides the images' data.
        InvalidRequest: a field is given twice, or a number is not finite.
    """
    return _Parser(body).value()


@dataclass
class _Parser:
    body: bytearray
    cut: list[tuple[int, int]] = field(default_factory=list)  # where each image's base64 begins and ends
    mark: str = field(default_factory=lambda: secrets.token_hex(8))  # replaces it in the text that is parsed
    quotes: int = 0

    def value(self) -> object:
        try:
            text = self._beside().decode()
        except UnicodeDecodeError as error:
            raise MalformedBody(f"the body is not JSON in UTF-8: {error}") from None
        try:
            found = json.loads(text, object_pairs_hook=self._object, parse_constant=_no_constant)
            if "\\u" in text:
                json.dumps(found, ensure_ascii=False, default=lambda _: "").encode()
        except RecursionError:
            raise MalformedBody("the body is JSON that is nested too deeply") from None
        except UnicodeEncodeError:
            raise MalformedBody("the body has half of a surrogate pair, which is not a character") from None
        except ValueError as error:
            raise MalformedBody(f"the body is not JSON: {error}") from None
        return found

    def _beside(self) -> bytes:
        """The body with marks in place of the long strings that objects have as `data`."""
        pieces, size = [], 0
        start = at = len(BOM) if self.body.startswith(BOM) else 0
        while (quote := self.body.find(b'"', at)) >= 0:
            end = self._end(quote + 1)
            if end - quote > SHORT and DATA_AHEAD.search(self.body, max(0, quote - AHEAD), quote):
                pieces += [bytes(self.body[start : quote + 1]), f"{self.mark}{len(self.cut)}".encode()]
                size += len(pieces[-2])
                self.cut.append((quote + 1, end))
                start = end
            at = end + 1
        if size + len(self.body) - start > MOST_BESIDE:
            _too_large()
        return b"".join([*pieces, self.body[start:]])

    def _end(self, at: int) -> int:
        """The end of the string that begins here: its closing quote, or the end of the body."""
        while (end := self.body.find(b'"', at)) >= 0:
            self.quotes += 1
            if self.quotes > MOST_BESIDE:  # base64 has none
                _too_large()
            if not self._escaped(at, end):
                return end
            at = end + 1
        return len(self.body)

    def _escaped(self, start: int, at: int) -> bool:
        """Whether an odd number of backslashes precedes this place."""
        if at == start or self.body[at - 1] != ord("\\"):
            return False
        before = self.body[start:at]
        return (len(before) - len(before.rstrip(b"\\"))) % 2 == 1

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(pairs) > MOST_FIELDS:
            names = ", ".join(brief(name, 20) for name, _ in pairs[:3])
            raise InvalidRequest(f"an object has {len(pairs)} fields ({names}, …); no object of a request has so many")
        fields = dict(pairs)
        if len(fields) < len(pairs):
            name, count = Counter(name for name, _ in pairs).most_common(1)[0]
            raise InvalidRequest(f"{brief(name)}: given {count} times; give it once")
        data = fields.get("data")
        if isinstance(data, str) and data.startswith(self.mark):
            fields["data"] = self._data(*self.cut[int(data.removeprefix(self.mark))])
        return fields

    def _data(self, begin: int, end: int) -> object:
        if self.body.find(b"\\", begin, end) < 0:
            return memoryview(self.body)[begin:end]
        return json.loads(self.body[begin - 1 : end + 1])


def _too_large() -> NoReturn:
    raise BodyTooLarge(f"the body has more than {MOST_BESIDE / 1000:g} kB of JSON besides the images' data")


def _no_constant(name: str) -> float:
    raise InvalidRequest(f"{name} is not a valid number; give a finite number")
