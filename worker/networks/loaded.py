"""The networks of a worker: an architecture with weights, cut after each layer. Each is loaded once per process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import torch
from torch import Tensor

from shared.catalogue import Network
from shared.errors import ModelUnavailable
from shared.schemas import WeightsUsed
from shared.workers import NetworkState
from worker.methods.suppression import PixelSpace
from worker.networks.architectures import ARCHITECTURES, BUILT_IN, Traced, describe, layers_of
from worker.networks.checkpoints import network_of
from worker.networks.contents import Refused, sha256, version, version_now
from worker.networks.definitions import Definition, definitions, registered
from worker.networks.failures import LoadFailures
from worker.networks.layer import Layers, LoadedLayer, LoadedNetwork
from worker.networks.own import OwnNetwork
from worker.networks.preprocessing import input_space
from worker.networks.registry import Registry
from worker.networks.weights import LocatedWeights, Weights, file_of, find, load, network_names, refused

log = logging.getLogger(__name__)

RETRY_SECONDS = 300  # between two attempts to load a network after several have failed


@dataclass(frozen=True)
class _Origin:
    """What a network was loaded from."""

    definition: Definition | None
    file: Path
    version: tuple[int, int]  # of the file
    sha256: str


class Networks:
    """The networks of one worker process: loaded on first use, cached, and never changed.

    If the registration or file of a loaded network changes, the process must be restarted (`outdated`). All results of
    a process for a name are therefore of the same network.

    Args:
        folder: the weights folder; it need not exist.
        device: of the networks.
        registry: of networks in the object store.
        own: networks of the operator's code.
        download: whether torchvision's weights may be downloaded.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        registry: Registry | None = None,
        own: Mapping[str, OwnNetwork] | None = None,
        *,
        download: bool,
    ) -> None:
        self.folder = folder
        self.registry = registry
        self.own = own or {}
        self.device = device
        self.download = download
        self._loaded: dict[str, LoadedNetwork] = {}
        self._origins: dict[str, _Origin] = {}  # of loaded networks, by name
        self._failures = LoadFailures(self._source)
        self._refused: dict[Path, str] = {}
        self._loading: dict[str, Future[LoadedNetwork]] = {}
        self._lock = Lock()

    def get(self, name: str) -> LoadedNetwork:
        """The network, loaded on the first call.

        Raises:
            ModelUnavailable: no weights are available; says why.
        """
        if name in self._loaded:  # without the lock, which would wait for other downloads
            return self._loaded[name]
        try:
            return self._start(name).result()
        except ModelUnavailable as error:  # a shared exception would keep the frames of all callers alive
            raise ModelUnavailable(error.detail) from None

    def retry(self) -> None:
        """Start further attempts to load the networks whose pause after a failed attempt is over."""
        for name in self._failures.due(RETRY_SECONDS):
            self._start(name)

    def _start(self, name: str) -> Future[LoadedNetwork]:
        """Start to load a network, unless that has begun."""
        with self._lock:
            found = self._loading.get(name)
            if found is None:
                found = self._loading[name] = Future()
                # In a thread that ends: OpenMP keeps helper threads for each thread that has run torch. When there are
                # more helpers than cores they sleep between operations, and conv1_1 takes twice as long.
                Thread(target=self._load_for_all, args=(name, found), name=f"load {name}", daemon=True).start()
            return found

    def _load_for_all(self, name: str, found: Future[LoadedNetwork]) -> None:
        """Load a network for all callers that wait for it. Later callers get the loaded one, or try again."""
        finish: Callable[[Any], None] = found.set_result
        try:
            outcome: Any = self._loaded.get(name) or self._load(name)
            self._loaded[name] = outcome
            self._failures.forget(name)
        except Exception as error:
            finish, outcome = found.set_exception, error.with_traceback(None)  # whose frames hold half a network
            error.__context__ = None
        with self._lock:
            del self._loading[name]
        finish(outcome)

    def states(self) -> dict[str, NetworkState]:
        """The state of each network by name, without loading, downloading or reading the store."""
        files = refused(self.folder)
        for file, reason in sorted(files.items() - self._refused.items()):
            log.warning("%s is not used: %s", file, reason)
        self._refused = files
        return {name: self._state(name) for name in (*BUILT_IN, *self._with_weights(), *self._definitions(), *self.own)}

    def state(self, name: str) -> NetworkState | None:
        """The state of one network, cheap once it is loaded; None: no network has this name."""
        known = name in ARCHITECTURES or name in self.own or name in self._definitions()
        return self._state(name) if known else None

    def registered(self) -> list[Network]:
        """The networks that are not built in, with their layers, whether they can be run or not.

        Called by the heartbeat only, since it reads the store.
        """
        if self.registry:
            self.registry.refresh()
        found = [describe(name) for name in self._with_weights()]
        found += [registered(name, definition) for name, definition in self._definitions().items()]
        for own in self.own.values():
            with suppress(ValueError):  # its state says why
                found.append(own.network)
        return found

    def _with_weights(self) -> list[str]:
        """Torchvision's networks that are not built in and have weights on this machine."""
        return sorted(network_names(self.folder) - BUILT_IN.keys())

    def _definitions(self) -> dict[str, Definition]:
        in_store: Mapping[str, Definition] = self.registry.entries() if self.registry else {}
        return {**in_store, **definitions(self.folder).networks}

    def _load(self, name: str) -> LoadedNetwork:
        if (failure := self._failures.get(name)) and failure.pauses(RETRY_SECONDS):
            raise ModelUnavailable(failure.reason)
        if name in self.own:
            return self._of_own_code(self.own[name])
        if self.registry and name not in ARCHITECTURES and self._definitions().get(name) is None:
            self.registry.refresh()  # it may be newer than the last heartbeat
        definition = self._definitions().get(name)
        found = find(name, self.folder, self.registry, download=self.download)
        log.info("loading %s: %s", name, found.reason)
        try:
            weights = load(name, self.folder, self.registry, download=self.download)
            loaded = self._build(weights, name, definition, found.reason)
        except Exception as error:
            # The source is that of now: a download has made the file.
            raise self._failures.add(
                name, error, f"no weights for {name}: {found.reason}", self._source(name)
            ) from None
        if self._definitions().get(name) != definition or weights.file != found.file:
            return self._load(name)  # its registration has changed meanwhile
        self._origins[name] = _Origin(definition, weights.file, weights.version, weights.sha256)
        return loaded

    def outdated(self) -> list[str]:
        """The loaded networks whose registration or file has changed; not those that are no longer available."""
        return [name for name, origin in list(self._origins.items()) if self._changed(name, origin)]

    def _changed(self, name: str, origin: _Origin) -> bool:
        definition = self._definitions().get(name)
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
        except (Refused, OSError):  # missing or unavailable
            return False
        if not changed:  # same contents
            self._origins[name] = replace(origin, version=now)
        return changed

    def _source(self, name: str) -> object:
        """What would be loaded: the definition, and the file and its version, if any."""
        file = file_of(name, self.folder, self.registry, download=self.download)
        return self._definitions().get(name), file, version_now(file) if file else None

    def _build(self, weights: Weights, name: str, definition: Definition | None, reason: str) -> LoadedNetwork:
        arch = definition.arch if definition else name
        used = WeightsUsed(
            source=weights.file.name, sha256=weights.sha256, architecture=arch, preprocessing=weights.preprocessing
        )
        traced = layers_of(arch, definition.input if definition else None)
        return self._cut_up(name, traced, weights.tensors, used, reason)

    def _of_own_code(self, own: OwnNetwork) -> LoadedNetwork:
        try:
            used = WeightsUsed(
                source=own.source,
                sha256=own.sha256,
                architecture=own.network.architecture,
                preprocessing=own.preprocessing,
            )
            return self._cut_up(own.name, own.traced, own.tensors, used, own.reason)
        except Exception as error:
            raise self._failures.add(own.name, error, f"{own.name} of {own.source}") from None

    def _cut_up(
        self, name: str, own: Traced, parameters: Mapping[str, Tensor], used: WeightsUsed, reason: str
    ) -> LoadedNetwork:
        """The network on the device, with layers that are cut on first use."""
        tensors = {key: one.float() if one.is_floating_point() else one for key, one in parameters.items()}
        assert used.preprocessing
        numbers, convert = input_space(used.preprocessing)
        if convert:
            tensors |= {key: convert(tensors[key]) for key in own.graph.first}
        names = own.reached(tensors)
        filled = own.filled(tensors, names).to(self.device).to(memory_format=torch.channels_last)
        frame, space = own.architecture.frame, PixelSpace.of(*numbers, self.device)

        def layer(one: str) -> LoadedLayer:
            cut = own.cut(filled, one)
            node = own.layers[one]
            return LoadedLayer(name, one, cut, space, frame, used, own.below(cut), node.signed, node.without)

        rest = [one for one in names if not own.layers[one].main]
        layers, nodes = Layers(own.main(names), layer), Layers(rest, layer)
        signed = {one for one in names if own.layers[one].signed}
        return LoadedNetwork(name, space, frame, used, reason, layers, nodes, partial(own.each, filled), signed)

    def _state(self, name: str) -> NetworkState:
        files = {file.name: reason for file, reason in self._refused.items() if network_of(file) in (name, None)}
        refusals = [f"{file}: {reason}" for file, reason in files.items()]
        return self._availability(name).model_copy(update={"refused": refusals})

    def _availability(self, name: str) -> NetworkState:
        if loaded := self._loaded.get(name):
            arch = loaded.weights.architecture or name
            known = self.own[name].traced if name in self.own else layers_of(arch, loaded.frame)
            return NetworkState(
                available=True,
                reason=loaded.reason,
                source=loaded.weights.source,
                sha256=loaded.weights.sha256,
                preprocessing=loaded.weights.preprocessing,
                layers=list(loaded.layers),
                whole=list(loaded.layers) == known.main(known.layers),
            )
        failure = self._failures.get(name)
        loading = name in self._loading  # again: jobs wait for it, whatever came before
        if failure and (loading or failure.pauses(RETRY_SECONDS)):
            return NetworkState(
                available=False, reason=failure.reason, failure="temporary" if loading else failure.kind
            )
        if name in self.own:
            return self.own[name].state
        try:
            found = find(name, self.folder, self.registry, download=self.download)
        except ModelUnavailable as unavailable:
            return NetworkState(available=False, reason=unavailable.detail)
        return NetworkState(
            available=True,
            reason=found.reason,
            source=found.file.name,
            preprocessing=found.preprocessing,
            **self._covered(name, found),
        )

    def _covered(self, name: str, found: LocatedWeights) -> dict[str, Any]:
        """The layers that weights cover, from the file's header."""
        definition = self._definitions().get(name)
        own = layers_of(found.architecture, definition.input if definition else None)
        layers = [layer for layer in found.layers if layer in own.layers]
        return {"layers": layers, "whole": layers == own.main(own.layers)}
