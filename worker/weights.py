"""Find or download weights from the command line.

python -m worker.weights vgg16        prints the source, or the size and progress of the download
"""

from __future__ import annotations

import argparse
import sys

from shared.errors import KernelscopeError
from shared.settings import settings
from shared.store import BlobStore
from worker.networks.checkpoints import network_of
from worker.networks.registry import Registry
from worker.networks.weights import cached, find, load, refused


def main() -> int:
    """Find or download the weights of the named networks."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("names", nargs="+", metavar="NETWORK")
    options = parser.parse_args()
    status, served = 0, [None]
    registry = Registry(BlobStore(settings().store), cached())
    registry.refresh()
    for name in options.names:
        try:
            found = find(name, settings().weights, registry, download=settings().download_weights)
            if found.source == "download":
                print(f"{name}: downloading {found.file.name}, {found.megabytes:.0f} MB", file=sys.stderr, flush=True)
            weights = load(name, settings().weights, registry, download=settings().download_weights)
            print(f"{name}: {found.reason}; covers {weights.layers[0]} to {weights.layers[-1]}")
            served.append(name)
        except KernelscopeError as error:
            status = 1
            print(f"unavailable: {error}")
    for file, reason in refused(settings().weights).items():
        if network_of(file) in served:
            print(f"not used: {file.name}: {reason}")
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # a partial download has been deleted
        sys.exit(130)
