"""`GET /models`: what can be explained, and why not."""

from __future__ import annotations

from fastapi import APIRouter

from api.services import Opened, Services
from shared import catalogue, workers
from shared.catalogue import LayerInfo, ModelInfo
from shared.errors import ModelNotFound, UnknownModel

ABSENT = "it was registered, and no worker that is connected has it any more"

router = APIRouter(prefix="/models", tags=["models"])


@router.get("")
def list_models(services: Opened) -> list[ModelInfo]:
    """Every network with its layers."""
    states = _states(services)
    known = {**catalogue.networks(), **workers.told(services.redis)}
    return [_info(network, states) for network in known.values()]


@router.get("/{name}")
def get_model(name: str, services: Opened) -> ModelInfo:
    """One network with its layers."""
    try:
        network = workers.network(services.redis, name)
    except UnknownModel as error:
        raise ModelNotFound(error.detail) from None
    states = _states(services)
    nodes = _layers(network.nodes, states.get(network.name))
    return _info(network, states).model_copy(update={"nodes": nodes})


def _states(services: Services) -> dict[str, workers.NetworkState]:
    """Of several workers, one that can run the network speaks for all."""
    states: dict[str, workers.NetworkState] = {}
    for worker in workers.living(services.redis):
        for name, state in worker.networks.items():
            if name not in states or (state.available and not states[name].available):
                states[name] = state
    return states


def _info(network: catalogue.Network, states: dict[str, workers.NetworkState]) -> ModelInfo:
    state = states.get(network.name)
    return ModelInfo(
        name=network.name,
        title=network.title,
        input_size=network.input_size,
        channels=network.channels,
        available=state.available if state else False if states else None,
        architecture=network.architecture or network.name,
        reason=state.reason if state else ABSENT if states else "no worker is connected; jobs wait until one is",
        preprocessing=state.preprocessing if state else None,
        weights=state.source if state else None,
        weights_sha256=state.sha256 if state else None,
        weights_refused=state.refused if state else [],
        layers=_layers(network.layers, state),
    )


def _layers(layers: list[catalogue.Layer], state: workers.NetworkState | None) -> list[LayerInfo]:
    return [LayerInfo(**layer.model_dump(), available=state.covers(layer.name) if state else None) for layer in layers]
