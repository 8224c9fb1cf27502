"""Derives the synchronous client from the asynchronous one: `python -m kernelscope.client.generate`.

What is written once is `asynchronous/`. `sync/` is the same code without `async` and `await`, except for the blocks
in DIFFERENCES and for the files of a result, which are properties there.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SOURCE, TARGET = HERE / "asynchronous", HERE / "sync"

WORDS = {
    "aclosing": "closing",
    "aclose": "close",
    "aread": "read",
    "aiter_bytes": "iter_bytes",
    "aiter_sse": "iter_sse",
    "asynchronous": "sync",
    "asyncio": "time",  # of which `sleep` is used
    "in_thread": "directly",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
}

DIFFERENCES = {
    # Results are read when they are first used.
    '''
        """The results so far, by item index.

        Raises:
            ResultsNotRead: the job has more than 64 items, and neither `wait` nor `read` was awaited.
        """
        if self.known_results is None:
            raise ResultsNotRead(self)
''': '''
        """The results so far, by item index; those of a job of more than 64 items are read on first use."""
        if self.known_results is None:
            return self.read()
''',
    """
        await self.read()
        return self
""": """
        return self
""",
    # A notebook can download what it shows.
    '''
        """The results that a notebook shows: of those that are read, because nothing can be awaited there."""
        return (self.known_results or [])[: notebook.MOST_ROWS]
''': '''
        """The results that a notebook shows."""
        if self.known_results is None:
            return self._read_results(notebook.MOST_ROWS)
        return self.known_results[: notebook.MOST_ROWS]
''',
    '''
        """The content of one of `artifacts`, if it was downloaded: nothing can be awaited here. Raises KeyError."""
        return self._files[name]
''': '''
        """The content of one of `artifacts`. Raises KeyError."""
        return self.file(name)
''',
    # Docstrings.
    "The client for programs on an event loop; `python -m kernelscope.client.generate` derives the synchronous one.": (
        "The synchronous client."
    ),
    "  # noqa: ASYNC109 - as of the other client": "",
}
FILES = re.compile(r"async def (optimized|optimized_array|original|contrast|panel|maps|history)\(self\)")


def synchronous(text: str) -> str:
    """The synchronous form of a source file, not yet formatted."""
    for block, other in DIFFERENCES.items():
        text = text.replace(block, other)
    text = FILES.sub(r"@property\n    def \1(self)", text)
    text = re.sub(r"\basync (def|with|for)\b", r"\1", text)
    text = re.sub(r"\bawait ", "", text)
    text = re.sub(r"\bAsync(?=[A-Z])", "", text)
    return re.sub("|".join(rf"\b{word}\b" for word in WORDS), lambda found: WORDS[found[0]], text)


def generated() -> dict[Path, str]:
    """The content of every file of the synchronous client."""
    found = {}
    for source in sorted(SOURCE.glob("*.py")):
        header = f"# Generated from {source.relative_to(HERE)} by `python -m kernelscope.client.generate`: edit that.\n"
        found[TARGET / source.name] = _formatted(header + synchronous(source.read_text()), TARGET / source.name)
    return found


def _formatted(text: str, path: Path) -> str:
    """By ruff, because shorter names sort and wrap differently."""
    for command in (["check", "--fix-only", "--unsafe-fixes", "--quiet", "--select", "I,F401,UP028"], ["format"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(path), "-"]
        text = subprocess.run(ruff, input=text, capture_output=True, text=True, check=True).stdout
    return text


if __name__ == "__main__":
    TARGET.mkdir(exist_ok=True)
    for path, text in generated().items():
        path.write_text(text)
