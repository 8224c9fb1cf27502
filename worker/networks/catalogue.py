"""Write `shared/catalogue.json`: `python -m worker.networks.catalogue`. A test checks that it is up to date."""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic import TypeAdapter

import shared
from shared.catalogue import Network
from worker.networks.architectures import BUILT_IN, describe


def catalogue() -> str:
    """The catalogue as JSON."""
    networks = [describe(name) for name in BUILT_IN]
    return (
        TypeAdapter(list[Network]).dump_json(networks, indent=1, exclude_none=True, exclude_defaults=True).decode()
        + "\n"
    )


def main() -> None:
    """Write it beside `shared/catalogue.py`."""
    file = Path(shared.__path__[0]) / "catalogue.json"
    file.write_text(catalogue())
    sys.stderr.write(f"{file}: {len(BUILT_IN)} networks\n")


if __name__ == "__main__":
    main()
