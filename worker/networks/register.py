"""Register networks in the object store for all workers: `kernelscope models add`, and `remove`.

python -m worker.networks.register add NAME --arch vgg16 --weights FILE [--mean … --std … --range … --order … --title …]
python -m worker.networks.register remove NAME
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from shared.errors import KernelscopeError
from shared.settings import settings
from shared.store import BlobStore
from worker.networks.checkpoints import ExpectedNetwork, read
from worker.networks.contents import Refused, sha256
from worker.networks.definitions import FILE, Definition, checked, definitions
from worker.networks.registry import Entry, Registry
from worker.networks.weights import cached

FIELDS = (  # options that are fields of a definition
    "arch",
    "mean",
    "std",
    "range",
    "order",
    "channels",
    "input_size",
    "resize",
    "title",
)


def add(registry: Registry, options: argparse.Namespace) -> str:
    """Check a file and register it. Returns a report.

    Raises:
        Refused: the file or the definition is invalid.
        StoreUnavailable.
    """
    name, file = options.name, Path(options.weights)
    given = {option: value for option in FIELDS if (value := getattr(options, option)) is not None}
    try:
        definition = checked(name, {**given, "weights": file.name})
    except ValueError as error:
        raise Refused(str(error)) from None
    if reason := _taken(registry, name, replace=options.replace):
        raise Refused(reason)
    entry = _entry(definition, file)
    registry.add(name, entry, file)
    fed = entry.preprocessing(entry.of_file)
    return (
        f"{name}: {entry.arch} with {file.name} ({entry.size / 1e6:.0f} MB, SHA-256 {entry.sha256[:8]}…), covers "
        f"{entry.layers[0]} to {entry.layers[-1]}, fed {fed}; workers have it within seconds"
    )


def _taken(registry: Registry, name: str, *, replace: bool) -> str:
    """Why the name cannot be used; empty: it can."""
    known = definitions(settings().weights)
    if name in known.networks or name in known.wrong:
        return f"{name} is in {settings().weights / FILE} already; choose another name, or remove it there"
    try:
        before = registry.entry(name)
    except ValueError:
        how = "in a format that this version cannot read"
    else:
        how = f"as {before.arch} with {before.weights}" if before else ""
    return f"{name} is registered already, {how}; --replace replaces it" if how and not replace else ""


def _entry(definition: Definition, file: Path) -> Entry:
    """The entry, after all values of the file were read."""
    try:
        checkpoint = read(file, ExpectedNetwork(definition.arch, definition.channels))
        return Entry(
            **definition.model_dump(),
            sha256=sha256(file),
            size=file.stat().st_size,
            layers=tuple(checkpoint.layers),
            of_file=checkpoint.preprocessing,
        )
    except (Refused, OSError) as error:
        raise Refused(f"{file}: {error}") from error


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    adding = commands.add_parser("add")
    adding.add_argument("name")
    adding.add_argument("--arch", required=True)
    adding.add_argument("--weights", required=True)
    adding.add_argument("--mean", type=lambda text: text.split(","))
    adding.add_argument("--std", type=lambda text: text.split(","))
    adding.add_argument("--range")
    adding.add_argument("--order")
    adding.add_argument("--channels", type=int)
    adding.add_argument("--size", dest="input_size")
    adding.add_argument("--resize")
    adding.add_argument("--title")
    adding.add_argument("--replace", action="store_true")
    commands.add_parser("remove").add_argument("name")
    options = parser.parse_args()
    registry = Registry(BlobStore(settings().store), cached())
    try:
        if options.command == "add":
            print(add(registry, options))
        elif registry.remove(options.name):
            print(f"{options.name} has been removed; results that were computed with it remain")
        else:
            print(f"no network {options.name} is registered in the object store", file=sys.stderr)
            return 1
    except (Refused, KernelscopeError, ValueError) as error:
        done = "registered" if options.command == "add" else "removed"
        print(f"{options.name} is not {done}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
