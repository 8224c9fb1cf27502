"""From the parts of a multipart form to a body."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from api.edge.multipart import FILE_WANTED, IMAGE, FormPart
from api.edge.problems import invalid
from shared.errors import InvalidRequest, UnsupportedImage, brief
from shared.images import form_of
from shared.schemas import CONTROL, MAX_IMAGES, MAX_NAME, ActivationsBody, ExplainBody, ImageSource, number

LISTS = ("kernels", "methods", "alpha", "beta")

OptionsT = TypeVar("OptionsT", bound=BaseModel)
BodyT = TypeVar("BodyT", ExplainBody, ActivationsBody)


def with_images(parts: list[FormPart], options: type[OptionsT], body: type[BodyT]) -> BodyT:
    """A body with images.

    Raises:
        InvalidRequest.
    """
    images: list[ImageSource] = []
    texts: dict[str, list[str]] = {}
    for part in parts:
        name = _field_name(part.name)
        if name == IMAGE:
            images += _image(part)
        elif part.filename is not None:
            raise InvalidRequest(f"file field {brief(name)!r} is not known; send files as 'image'")
        else:
            texts.setdefault(name, []).append(part.text)
    fields = _options(texts, options)
    if not images:
        raise _no_file()
    if len(images) > MAX_IMAGES:
        raise InvalidRequest(f"image: {len(images)} files; at most {MAX_IMAGES} are accepted")
    return body.model_construct(**dict(fields), images=images)


def files(parts: list[FormPart]) -> list[tuple[str, bytes]]:
    """The files of a form that has nothing else: (name, bytes).

    Raises:
        InvalidRequest.
    """
    found = []
    for part in parts:
        if _field_name(part.name) != IMAGE or part.filename is None:
            raise InvalidRequest(f"field {brief(part.name)!r} is not known; {FILE_WANTED}")
        if part.data or part.filename:
            found.append((part.filename, _moved(part)))
    if not found:
        raise _no_file()
    return found


def _no_file() -> InvalidRequest:
    return InvalidRequest("image: the form has no file; send one or more as 'image' (curl -F image=@cat.jpg)")


def _moved(part: FormPart) -> bytes:
    """The bytes of a part, which are then no longer held twice."""
    data = bytes(part.data)
    part.data.clear()
    return data


def _image(part: FormPart) -> list[ImageSource]:
    """The part's image; none where a web form was sent without choosing a file."""
    data = _moved(part)
    if not data and not part.filename:
        return []
    if part.filename is None:
        try:
            form_of(data)
        except UnsupportedImage:
            raise InvalidRequest(f"image: this part has no filename and is no image; {FILE_WANTED}") from None
    return [ImageSource.model_construct(data=data, sha256=None, name=_image_name(part.filename or ""))]


def _image_name(filename: str) -> str | None:
    """The filename without its folders and control characters, cut to the length of a name."""
    return re.sub(rf"^.*[/\\]|[{CONTROL}]", "", filename, flags=re.DOTALL)[:MAX_NAME] or None


def _field_name(name: str) -> str:
    """A part's field: some programs send the values of a list as `kernels[]`."""
    plain = name.removesuffix("[]")
    return plain if plain in (IMAGE, *LISTS) else name


def _options(texts: Mapping[str, list[str]], model: type[OptionsT]) -> OptionsT:
    """The options in a form's fields.

    Raises:
        InvalidRequest: also where a field that is not a list is given more than once.
    """
    texts = {
        name: _filled(values) or values
        for name, values in texts.items()
        if _filled(values) or name not in model.model_fields
    }
    repeated = [
        {"type": "repeated", "loc": (name,), "msg": f"given {len(values)} times; give it once"}
        for name, values in texts.items()
        if len(values) > 1 and name not in LISTS and name in model.model_fields
    ]
    if repeated:
        raise invalid(repeated)
    try:
        return model.model_validate({name: _value(name, values) for name, values in texts.items()})
    except ValidationError as error:
        raise invalid(error.errors(), [IMAGE, *model.model_fields]) from None


def _filled(values: list[str]) -> list[str]:
    """Those that are not empty: a web form also sends the fields that were left empty."""
    return [value for value in values if value.strip()]


def _value(name: str, texts: list[str]) -> object:
    """A field's value as in JSON: `kernels=3,16` is a list, and so are `kernels=3` and `kernels=16` together."""
    if name not in LISTS or (len(texts) == 1 and name == "kernels" and texts[0].startswith("top:")):
        return texts[0]
    return [_number(part) for text in texts for part in text.split(",")]


def _number(text: str) -> object:
    """A number as in JSON, else the text: 12 is an index, 1_2 is not a number."""
    try:
        return number(text)
    except ValueError:
        return text.strip()
