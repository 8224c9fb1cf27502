"""What a worker would find on this machine, as JSON: `python -m worker.checkup`. `kernelscope doctor` asks it.

With a device, `python -m worker.checkup cuda:0`, that one computes a little: nothing is printed where it is sound.

In a process of its own: a torch that does not fit its torchvision ends it, and says why on stderr.
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
from worker.networks.weights import cached, find, network_names, refused, trouble


def report(configuration: Settings) -> dict[str, Any]:
    """Versions, the devices that torch can use, each weights file, each network that is to be loaded."""
    torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)  # an operator of torchvision's that torch has to find
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
    """Those that are to be loaded, those of the weights folder, and those of the object store."""
    registry = Registry(BlobStore(configuration.store), cached())
    with suppress(StoreUnavailable):  # which is told of elsewhere
        registry.look()
    folder = configuration.weights
    names = [*configuration.preload, *sorted(network_names(folder)), *definitions(folder).networks, *registry.entries()]
    return {name: _network(name, configuration, registry) for name in dict.fromkeys(names)}


def _own(configuration: Settings) -> dict[str, Any]:
    """Those of the operator's code."""
    try:
        own = own_networks(configuration.models)
    except ValueError as error:
        return {"KERNELSCOPE_MODELS": {"available": False, "source": "code", "reason": str(error)}}
    states = {name: network.state for name, network in own.items()}
    return {
        name: {"available": state.available, "source": "code", "reason": state.reason} for name, state in states.items()
    }


def _files(folder: Path) -> dict[str, str]:
    """What is wrong with each weights file; where the folder itself cannot be read, that."""
    try:
        files = {file.name: trouble(file) for file in weights_files(folder)}
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
