"""architecture + weights + layer → a frozen network cut after the layer. Loaded once a process; cuts share modules."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock, Thread

import torch
from torch import nn

from shared.catalogue import Network
from shared.errors import LayerNotCovered, ModelUnavailable, StoreUnavailable
from shared.schemas import WeightsUsed
from shared.workers import NetworkState
from worker.methods.suppression import PixelSpace
from worker.networks.architectures import ARCHITECTURES, cuts
from worker.networks.checkpoints import network_of
from worker.networks.contents import Refused, sha256, version
from worker.networks.definitions import Definition, definitions, registered
from worker.networks.layer import Layer
from worker.networks.preprocessing import fed
from worker.networks.registry import Registry
from worker.networks.weights import Weights, find, load, refused

log = logging.getLogger(__name__)

AWAY_SECONDS = 10  # for which a store that is away is not asked for weights again
RETRY_SECONDS = 300  # weights that could not be downloaded or read are not tried again sooner


@dataclass(frozen=True)
class LoadedNetwork:
    """A network's convolutional part on a device: frozen, in eval mode, as far as its weights reach."""

    name: str
    space: PixelSpace
    input_size: int
    weights: WeightsUsed
    reason: str
    layers: dict[str, Layer]  # that the weights cover

    @classmethod
    def of(
        cls, name: str, cuts: dict[str, nn.Sequential], space: PixelSpace, size: int, weights: WeightsUsed, reason: str
    ) -> LoadedNetwork:
        """From its cuts, each up to a layer but for its ReLU, which share their modules."""
        architecture = weights.architecture or name
        layers = {
            layer: Layer(name, layer, cut, space, size, weights, tuple(_below(architecture, cut, cuts)))
            for layer, cut in cuts.items()
        }
        return cls(name, space, size, weights, reason, layers)

    def layer(self, name: str) -> Layer:
        """One of its layers.

        Raises:
            LayerNotCovered: the weights end below the layer.
        """
        if name not in self.layers:
            raise LayerNotCovered(
                f"the weights of {self.name} ({self.weights.source}) do not cover {name}; "
                f"they cover {', '.join(self.layers)}"
            )
        return self.layers[name]


def _below(architecture: str, cut: nn.Sequential, others: dict[str, nn.Sequential]) -> Iterator[str]:
    """The ReLU layers below a layer, in order: by the layers' names, or torchvision's where they have none."""
    named = {str(len(other)): name for name, other in others.items()}
    if architecture in ARCHITECTURES:
        named |= {one.node.removeprefix("features."): name for name, one in cuts(architecture).items()}
    for path, module in cut.named_modules():
        if isinstance(module, nn.ReLU):
            yield named.get(path, f"features.{path}")


@dataclass(frozen=True)
class _Origin:
    """What a network was made of."""

    definition: Definition | None
    file: Path
    version: tuple[int, int]  # of the file
    sha256: str


class Networks:
    """The networks of one worker process: loaded when first wanted, kept, and never changed.

    Where a name comes to stand for something else, the process is to start anew: `outdated`. So whatever is computed in
    it, and whenever it is looked at, is of the same network.

    Args:
        folder: the weights folder; it need not exist.
        download: whether torchvision's weights may be fetched.
        device: where the networks live.
        registry: of networks in the object store.
    """

    def __init__(self, folder: Path, device: torch.device, registry: Registry | None = None, *, download: bool) -> None:
        self.folder = folder
        self.registry = registry
        self.device = device
        self.download = download
        self._loaded: dict[str, LoadedNetwork] = {}
        self._origins: dict[str, _Origin] = {}  # of what is loaded, by name
        self._failed: dict[str, tuple[float, Definition | None, ModelUnavailable]] = {}
        self._refused: dict[Path, str] = {}
        self._loading: dict[str, Future[LoadedNetwork]] = {}
        self._lock = Lock()

    def get(self, name: str) -> LoadedNetwork:
        """The network, loaded on the first call.

        Raises:
            ModelUnavailable: no weights can be had; says why.
        """
        if name in self._loaded:  # without a lock: nobody waits for somebody else's download
            return self._loaded[name]
        with self._lock:
            found = self._loading.get(name)
            if found is None:
                found = self._loading[name] = Future()
                # In a thread that ends: OpenMP keeps helpers for each thread that has run torch, and once there are
                # more of them than cores they sleep between operations: conv1_1 was half as fast.
                Thread(target=self._load_for_all, args=(name, found), name=f"load {name}", daemon=True).start()
        try:
            return found.result()
        except ModelUnavailable as error:  # one for all who wait would keep all their frames alive
            raise ModelUnavailable(error.detail) from None

    def _load_for_all(self, name: str, found: Future[LoadedNetwork]) -> None:
        """Load it for everybody who waits; who comes later has what is loaded, or tries again."""
        failure: Exception | None = None
        try:
            self._loaded[name] = self._loaded.get(name) or self._load(name)
        except Exception as error:
            failure = error
        with self._lock:
            del self._loading[name]
        if failure:
            found.set_exception(failure)
        else:
            found.set_result(self._loaded[name])

    def states(self) -> dict[str, NetworkState]:
        """What can be run. Nothing is loaded or downloaded for it, and nothing asked of the store."""
        files = refused(self.folder)
        for file, reason in sorted(files.items() - self._refused.items()):
            log.warning("%s is not used: %s", file, reason)
        self._refused = files
        return {name: self._state(name) for name in (*ARCHITECTURES, *self._definitions())}

    def registered(self) -> list[Network]:
        """Networks of `networks.toml` and of the object store, and their layers, whether they can be run or not.

        For the heartbeat, which alone asks the store what is new.
        """
        if self.registry:
            self.registry.look()
        return [registered(name, definition) for name, definition in self._definitions().items()]

    def _definitions(self) -> dict[str, Definition]:
        in_store: Mapping[str, Definition] = self.registry.entries() if self.registry else {}
        return {**in_store, **definitions(self.folder).networks}

    def _definition(self, name: str) -> Definition | None:
        return self._definitions().get(name)

    def _load(self, name: str) -> LoadedNetwork:
        if error := self._failure(name):
            raise ModelUnavailable(error.detail)
        if self.registry and name not in ARCHITECTURES and self._definition(name) is None:
            self.registry.look()  # it is newer than the last heartbeat
        definition = self._definition(name)
        found = find(name, self.folder, self.registry, download=self.download)
        log.info("loading %s: %s", name, found.reason)
        try:
            weights = load(name, self.folder, self.registry, download=self.download)
            loaded = self._build(weights, name, definition, found.reason)
        except StoreUnavailable as error:
            unavailable = ModelUnavailable(f"no weights for {name} now: {error}")
            self._failed[name] = (time.monotonic() - RETRY_SECONDS + AWAY_SECONDS, definition, unavailable)
            raise unavailable from error
        except Exception as error:
            if not isinstance(error, ModelUnavailable):
                log.exception("%s could not be loaded", name)
                error = ModelUnavailable(f"no weights for {name}: {found.reason}: {error}")
            self._failed[name] = (time.monotonic(), definition, error)
            raise error from None
        if self._definition(name) != definition or weights.file != found.file:
            return self._load(name)  # it was registered anew meanwhile
        self._origins[name] = _Origin(definition, weights.file, weights.version, weights.sha256)
        return loaded

    def outdated(self) -> list[str]:
        """Names that stand for something else than what is loaded: registered anew, or their files were changed.

        What can be had no more, or not now, stays as it is.
        """
        return [name for name, origin in list(self._origins.items()) if self._changed(name, origin)]

    def _changed(self, name: str, origin: _Origin) -> bool:
        definition = self._definition(name)
        try:
            found = find(name, self.folder, self.registry, download=self.download)
        except ModelUnavailable:
            return definition not in (None, origin.definition)
        if (definition, found.file) != (origin.definition, origin.file):
            return True
        try:
            now = version(found.file)
            if now == origin.version:
                return False
            changed = sha256(found.file) != origin.sha256
        except (Refused, OSError):  # it is gone, or away
            return False
        if not changed:  # written again, or touched
            self._origins[name] = replace(origin, version=now)
        return changed

    def _failure(self, name: str) -> ModelUnavailable | None:
        """Why the network could not be loaded a short while ago."""
        failed_at, definition, error = self._failed.get(name, (-math.inf, None, None))
        recent = time.monotonic() - failed_at < RETRY_SECONDS
        return error if recent and definition == self._definition(name) else None

    def _build(self, weights: Weights, name: str, definition: Definition | None, reason: str) -> LoadedNetwork:
        arch = definition.arch if definition else name
        architecture, own = ARCHITECTURES[arch], cuts(arch)
        features = architecture.features()[: own[weights.layers[-1]].depth]
        tensors = {key.removeprefix("features."): tensor.float() for key, tensor in weights.tensors.items()}
        space, tensors["0.weight"] = fed(weights.preprocessing, tensors["0.weight"])
        absent = {key: torch.zeros(meta.shape) for key, meta in features.state_dict().items() if key not in tensors}
        features.load_state_dict({**tensors, **absent}, strict=False, assign=True)
        features = features.requires_grad_(False).eval().to(self.device).to(memory_format=torch.channels_last)
        used = WeightsUsed(
            source=weights.file.name, sha256=weights.sha256, architecture=arch, preprocessing=weights.preprocessing
        )
        return LoadedNetwork.of(
            name,
            {layer: own[layer].preactivation(features) for layer in weights.layers},
            PixelSpace.of(*space, self.device),
            architecture.input_size,
            used,
            reason,
        )

    def _state(self, name: str) -> NetworkState:
        state = self._availability(name)
        told = {file.name: reason for file, reason in self._refused.items() if network_of(file) in (name, None)}
        return state.model_copy(update={"refused": [f"{file}: {reason}" for file, reason in told.items()]})

    def _availability(self, name: str) -> NetworkState:
        if loaded := self._loaded.get(name):
            return NetworkState(
                available=True,
                reason=loaded.reason,
                source=loaded.weights.source,
                sha256=loaded.weights.sha256,
                preprocessing=loaded.weights.preprocessing,
                layers=list(loaded.layers),
            )
        if error := self._failure(name):
            return NetworkState(available=False, reason=error.detail)
        try:
            found = find(name, self.folder, self.registry, download=self.download)
        except ModelUnavailable as unavailable:
            return NetworkState(available=False, reason=unavailable.detail)
        return NetworkState(
            available=True,
            reason=found.reason,
            source=found.file.name,
            preprocessing=found.preprocessing,
            layers=found.layers,
        )
