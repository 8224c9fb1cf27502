"""Arguments and answers of the tools for language models: pictures and text."""

from __future__ import annotations

from base64 import b64decode, b64encode
from contextlib import suppress
from io import BytesIO
from pathlib import Path

from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ImageContent, TextContent
from PIL import Image

from kernelscope.client import AsyncJob, AsyncResult

MOST_SHOWN = 8  # X̂ that one response shows as pictures
SMALLEST = 128  # pixels of a picture's longer side: below that it is enlarged, each pixel a square

Shown = list[TextContent | ImageContent]


async def explained(job: AsyncJob, *, figure: bool) -> Shown:
    """Numbers of every result, pictures of the first."""
    done = [one for one in job.results if one.status == "succeeded"]
    shown: Shown = []
    if not figure and done:
        shown = [text("the image, as the network sees it"), png(await done[0].file("original.png"))]
    for one in job.results:
        shown.append(text(_numbers(job, one)))
        if one in done[:MOST_SHOWN]:
            shown.append(png(await one.file("panel.png" if figure else "optimized.png")))
    if len(done) > MOST_SHOWN:
        shown.append(text(f"pictures of the first {MOST_SHOWN} kernels only; request the others by their numbers"))
    return shown


def _numbers(job: AsyncJob, one: AsyncResult) -> str:
    who = f"kernel {one.kernel} of {job.request.layer} of {job.request.model}, by {one.method}"
    if one.error:
        return f"{who}: {one.error.title}: {one.error.detail}"
    if one.metrics is None:
        return f"{who}: {one.status}"
    found = one.metrics.model_dump(include={"ssim", "leakage", "invention", "sparsity"}, exclude_none=True)
    shown = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
    return f"{who}: {shown}" + (f". {one.note}" if one.note else "")


def picture(image: str) -> Path | bytes:
    """The file of a path, else the bytes of base64.

    Raises:
        ToolError: it is neither.
    """
    with suppress(OSError, ValueError):  # no path at all: too long, or with a null character
        if (path := Path(image).expanduser()).is_file():
            return path
    given = image.partition(",")[2] if image.startswith("data:") else image
    try:
        return b64decode("".join(given.split()), validate=True)
    except ValueError:
        raise ToolError(
            f"{image[:80]!r} is neither a file on this machine nor base64; give the path of a PNG, JPEG or WebP "
            "file, or its bytes in base64"
        ) from None


def text(content: str) -> TextContent:
    """A text as content of a tool's response."""
    return TextContent(type="text", text=content)


def png(data: bytes) -> ImageContent:
    """A picture as PNG content; one of few pixels is enlarged."""
    with Image.open(BytesIO(data)) as opened:
        shown = opened.convert("RGB")
    times = -(-SMALLEST // max(shown.size))
    if times > 1:
        shown = shown.resize((shown.width * times, shown.height * times), Image.Resampling.NEAREST)
    file = BytesIO()
    shown.save(file, "PNG")
    return ImageContent(type="image", data=b64encode(file.getvalue()).decode(), mime_type="image/png")
