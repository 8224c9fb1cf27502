"""Networks from the operator's own code: `KERNELSCOPE_MODELS=package.module:function`, imported by workers alone.

    def networks():
        return {"mine": {"network": module, "mean": [0.5] * 3, "std": [0.5] * 3, "input_size": 224}}

The function gives each name an `nn.Module` with its weights in it, in what training has left it, and what it is fed:
as in `networks.toml`, ImageNet's where nothing is said; and `input_size` and `channels` of its input.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from pydantic import ConfigDict, ValidationError
from torch import nn

from shared.catalogue import Network
from shared.schemas import Preprocessing
from shared.workers import NetworkState
from worker.networks.architectures import ARCHITECTURES, IMAGENET_FRAME, Architecture, Traced, catalogued
from worker.networks.checkpoints import IMAGENET
from worker.networks.definitions import NAME, Feeding, told

log = logging.getLogger(__name__)


class Own(Feeding):
    """What the function says of a name."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    network: nn.Module


@dataclass(frozen=True)
class OwnNetwork:
    """A network that the operator's code has made.

    Args:
        source: where it is from, `package.module:function`.
    """

    name: str
    own: Own
    source: str

    @property
    def traced(self) -> Traced:
        """Its layers.

        Raises:
            ValueError: it cannot be written as a graph.
        """
        if isinstance(self._traced, str):
            raise ValueError(self._traced)  # noqa: TRY004 - it is not of a type
        return self._traced

    @cached_property
    def _traced(self) -> Traced | str:
        try:
            module = copy.deepcopy(self.own.network).to("meta")
            title = self.own.title or self.name
            return Traced(Architecture(self.name, title, lambda: module, self.own.frame(IMAGENET_FRAME)))
        except Exception as error:
            log.warning("%s of %s cannot be explained", self.name, self.source, exc_info=True)
            return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"

    @cached_property
    def network(self) -> Network:
        """The catalogue's entry. Raises ValueError."""
        kind = type(self.own.network)
        entry = catalogued(self.traced)
        return entry.model_copy(update={"architecture": f"{kind.__module__}.{kind.__qualname__}"})

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Its parameters and buffers, also those that no file would have."""
        network = self.own.network
        return {key: tensor.detach() for key, tensor in (*network.named_parameters(), *network.named_buffers())}

    @cached_property
    def sha256(self) -> str:
        """Of what it does, and of its parameters in order: name, shape and numbers."""
        digest = hashlib.sha256(f"{self.traced.graph.network.code}{self.own.network!r}".encode())
        for key, tensor in self.tensors.items():
            digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def preprocessing(self) -> Preprocessing:
        """As the function says; else ImageNet's, which is assumed."""
        return self.own.preprocessing(IMAGENET.model_copy(update={"assumed": True}))

    @property
    def reason(self) -> str:
        """One phrase on where the weights are from."""
        return f"made by {self.source}"

    @property
    def state(self) -> NetworkState:
        """As long as it is not loaded."""
        try:
            layers = [layer.name for layer in self.network.layers]
        except ValueError as error:
            return NetworkState(available=False, reason=f"{self.source}: {error}")
        return NetworkState(
            available=True,
            reason=self.reason,
            source=self.source,
            preprocessing=self.preprocessing,
            layers=layers,
            whole=True,
        )


def own_networks(source: str) -> dict[str, OwnNetwork]:
    """What the function makes, by name; nothing where none is named.

    Raises:
        ValueError: it cannot be imported, fails, or gives something else; says what.
    """
    if not source:
        return {}
    place, _, function = source.partition(":")
    try:
        made = getattr(importlib.import_module(place), function)()
    except Exception as error:
        raise ValueError(f"KERNELSCOPE_MODELS={source}: {type(error).__name__}: {error}") from error
    if not isinstance(made, Mapping):
        raise ValueError(f"KERNELSCOPE_MODELS={source} gives {type(made).__name__}; it must give networks by name")  # noqa: TRY004
    return {name: OwnNetwork(name, _checked(source, name, entry), source) for name, entry in made.items()}


def _checked(source: str, name: Any, entry: Any) -> Own:
    where = f"KERNELSCOPE_MODELS={source}: {name}"
    if not isinstance(name, str) or name in ARCHITECTURES or not NAME.fullmatch(name):
        raise ValueError(
            f"{where}: a name has lower-case letters, digits, '.', '_' and '-', 64 at most, and is no architecture's"
        )
    try:
        return Own.model_validate({"network": entry} if isinstance(entry, nn.Module) else entry)
    except ValidationError as error:
        raise ValueError(f"{where}: {told(error, Own)}") from None
