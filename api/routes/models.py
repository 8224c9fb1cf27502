"""`GET /models`: the networks that can be explained, and why others cannot."""

from __future__ import annotations

from fastapi import APIRouter

from api.openapi import example, refusals
from api.routes.examples import WEIGHTS
from api.services import Services, ServicesDep
from shared import catalogue, workers
from shared.catalogue import LayerInfo, ModelInfo
from shared.errors import ModelNotFound, UnknownModel

ABSENT = "it was registered, but no connected worker has it any more"
VGG16 = {
    "name": "vgg16",
    "title": "VGG-16",
    "architecture": "vgg16",
    "input_size": 224,
    "channels": 3,
    "available": True,
    "reason": "in the weights folder",
    "weights": WEIGHTS.source,
    "weights_sha256": WEIGHTS.sha256,
    "weights_refused": [],
    "layers": [],
}

router = APIRouter(prefix="/models", tags=["models"])


@router.get("", responses={**example(200, [VGG16]), **refusals()})
def list_models(services: ServicesDep) -> list[ModelInfo]:
    """Every network with its layers."""
    states = _states(services)
    known = {**catalogue.networks(), **workers.registered(services.redis)}
    return [_info(network, states) for network in known.values()]


@router.get("/{name}", responses={**example(200, VGG16), **refusals(ModelNotFound)})
def get_model(name: str, services: ServicesDep) -> ModelInfo:
    """One network with its layers."""
    try:
        network = workers.network(services.redis, name)
    except UnknownModel as error:
        raise ModelNotFound(error.detail) from None
    states = _states(services)
    nodes = _layers(network.nodes, states.get(network.name))
    return _info(network, states).model_copy(update={"nodes": nodes})


def _states(services: Services) -> dict[str, workers.NetworkState]:
    """Each network's state on a worker that can run it, if any can; else on any worker."""
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
