"""Networks of the operator's own code: `KERNELSCOPE_MODELS=package.module:function`, imported by workers only.

    def networks():
        return {"mine": {"network": module, "mean": [0.5] * 3, "std": [0.5] * 3, "input_size": 224}}

The function returns an `nn.Module` with its weights for each name, and its preprocessing, `input_size` and `channels`
as in `networks.toml`; by default ImageNet's.
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
from worker.networks.definitions import NAME, InputDefinition, validation_message

log = logging.getLogger(__name__)


class OwnDefinition(InputDefinition):
    """An entry of the function's result."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    network: nn.Module


@dataclass(frozen=True)
class OwnNetwork:
    """A network that the operator's code has created.

    Args:
        name: of the network.
        own: its definition.
        source: `package.module:function`.
    """

    name: str
    own: OwnDefinition
    source: str

    @property
    def traced(self) -> Traced:
        """The graph and its layers.

        Raises:
            ValueError: it cannot be traced.
        """
        if isinstance(self._traced, str):
            raise ValueError(self._traced)  # noqa: TRY004 - not an error of types
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
        """Its parameters and buffers, including those that are not stored in files."""
        network = self.own.network
        return {key: tensor.detach() for key, tensor in (*network.named_parameters(), *network.named_buffers())}

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of its code and of its parameters in order: name, shape, dtype and values."""
        digest = hashlib.sha256(f"{self.traced.graph.network.code}{self.own.network!r}".encode())
        for key, tensor in self.tensors.items():
            digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def preprocessing(self) -> Preprocessing:
        """The function's; by default ImageNet's, marked as assumed."""
        return self.own.preprocessing(IMAGENET.model_copy(update={"assumed": True}))

    @property
    def reason(self) -> str:
        """The source of the weights, as a phrase."""
        return f"made by {self.source}"

    @property
    def state(self) -> NetworkState:
        """Its state before it is loaded."""
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
    """The networks that the function returns, by name; none without a function.

    Raises:
        ValueError: the function cannot be imported, fails, or returns something else.
    """
    if not source:
        return {}
    place, _, function = source.partition(":")
    try:
        made = getattr(importlib.import_module(place), function)()
    except Exception as error:
        raise ValueError(f"KERNELSCOPE_MODELS={source}: {type(error).__name__}: {error}") from error
    if not isinstance(made, Mapping):
        raise ValueError(f"KERNELSCOPE_MODELS={source} returns {type(made).__name__}; it must return networks by name")  # noqa: TRY004
    return {name: OwnNetwork(name, _checked(source, name, entry), source) for name, entry in made.items()}


def _checked(source: str, name: Any, entry: Any) -> OwnDefinition:
    where = f"KERNELSCOPE_MODELS={source}: {name}"
    if not isinstance(name, str) or name in ARCHITECTURES or not NAME.fullmatch(name):
        raise ValueError(
            f"{where}: a name has lower-case letters, digits, '.', '_' and '-', 64 at most, and is no architecture's"
        )
    try:
        return OwnDefinition.model_validate({"network": entry} if isinstance(entry, nn.Module) else entry)
    except ValidationError as error:
        raise ValueError(f"{where}: {validation_message(error, OwnDefinition)}") from None
