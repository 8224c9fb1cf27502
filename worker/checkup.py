"""Reports devices, weights files and networks of this machine as JSON: `python -m worker.checkup`.

`kernelscope doctor` runs it in a process of its own, since a torch that does not match its torchvision ends the
process with an error on stderr. `python -m worker.checkup cuda:0` runs the self-test of a device, and prints nothing
if it passes.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torchvision

from shared.errors import ModelUnavailable, StoreUnavailable
from shared.settings import Settings, settings
from shared.store import BlobStore
from worker.engine.accelerator import check
from worker.networks.checkpoints import weights_files
from worker.networks.definitions import FILE, definitions
from worker.networks.own import own_networks
from worker.networks.registry import Registry
from worker.networks.weights import cached, file_error, find, network_names, refused


def report(configuration: Settings) -> dict[str, Any]:
    """Versions, the devices that torch can use, each weights file, and each network."""
    torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)  # an operator of torchvision that torch must find
    cards = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cards": cards,
        "mps": torch.backends.mps.is_available(),
        "files": _files(configuration.weights),
        "networks": _networks(configuration) | _own(configuration),
    }


def _networks(configuration: Settings) -> dict[str, Any]:
    """The networks of the `preload` setting, of the weights folder, and of the object store."""
    registry = Registry(BlobStore(configuration.store), cached())
    with suppress(StoreUnavailable):  # reported by another check
        registry.refresh()
    folder = configuration.weights
    names = [*configuration.preload, *sorted(network_names(folder)), *definitions(folder).networks, *registry.entries()]
    return {name: _network(name, configuration, registry) for name in dict.fromkeys(names)}


def _own(configuration: Settings) -> dict[str, Any]:
    """The networks of the operator's code."""
    try:
        own = own_networks(configuration.models)
    except ValueError as error:
        return {"KERNELSCOPE_MODELS": {"available": False, "source": "code", "reason": str(error)}}
    states = {name: network.state for name, network in own.items()}
    return {
        name: {"available": state.available, "source": "code", "reason": state.reason} for name, state in states.items()
    }


def _files(folder: Path) -> dict[str, str]:
    """The error of each weights file, or of the folder if it cannot be read."""
    try:
        files = {file.name: file_error(file) for file in weights_files(folder)}
        return files | {file.name: reason for file, reason in refused(folder).items() if file.name == FILE}
    except OSError as error:
        return {str(folder): f"cannot be read ({error.strerror})"}


def _network(name: str, configuration: Settings, registry: Registry) -> dict[str, Any]:
    try:
        found = find(name, configuration.weights, registry, download=configuration.download_weights)
    except ModelUnavailable as error:
        return {"available": False, "source": "", "reason": error.detail}
    return {"available": True, "source": found.source, "reason": found.reason}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        check(torch.device(sys.argv[1]))
    else:
        print(json.dumps(report(settings())))  # noqa: T201 - a command
