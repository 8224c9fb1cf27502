"""A torch device for the engine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata

import numpy as np
import psutil
import torch
from torch import Tensor

from shared.catalogue import Network
from shared.errors import DeviceOutOfMemory
from shared.images import Frame
from shared.schemas import OPTIMIZED, WeightsUsed
from shared.surveys.parts import Seen
from shared.workers import NetworkState
from worker.engine.accelerator import broken
from worker.engine.answers import pictures
from worker.engine.baseline_batch import BaselineBatch
from worker.engine.questions import Batch, Device, Maps, Picture, Question
from worker.engine.survey import survey
from worker.engine.threads import Threads
from worker.engine.torch_batch import TorchBatch
from worker.methods.suppression import VERSION, silent
from worker.networks.failures import out_of_memory
from worker.networks.loaded import Networks

SELF_TEST_SECONDS = 60  # for a card to start and to run the self-test


class TorchDevice(Device):
    """One torch device with its networks.

    Args:
        networks: loaded on the device.
        most: the largest batch, for benchmarks.
    """

    version = f"suppression {VERSION}, zennit {metadata.version('zennit')}"

    def __init__(self, networks: Networks, most: int | None = None) -> None:
        self.networks = networks
        self.most = most
        self.threads = Threads(torch.get_num_threads() if networks.device.type == "cpu" else 1)

    @property
    def name(self) -> str:
        """`cpu`, or the card's name."""
        device = self.networks.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)

    def preload(self, model: str) -> None:
        """Load a network now."""
        self.networks.get(model)

    def retry(self) -> None:
        """Start further attempts to load networks that could not be loaded."""
        self.networks.retry()

    def states(self) -> dict[str, NetworkState]:
        """The state of each network by name."""
        return self.networks.states()

    def state(self, model: str) -> NetworkState | None:
        """The state of one network."""
        return self.networks.state(model)

    def registered(self) -> list[Network]:
        """The networks that are not built in."""
        return self.networks.registered()

    def outdated(self) -> list[str]:
        """Loaded networks whose registration or files have changed."""
        return self.networks.outdated()

    def frame(self, model: str) -> Frame:
        """The size of the network's input."""
        return self.networks.get(model).frame

    def weights(self, model: str) -> WeightsUsed:
        """The network's weights."""
        return self.networks.get(model).weights

    @torch.no_grad()
    def ranking(self, model: str, layer: str, picture: Picture) -> list[int]:
        """The layer's active kernels by mean |F|, highest first."""
        features = self._features(model, layer, picture)
        order = features.abs().mean(dim=(1, 2)).argsort(descending=True, stable=True)
        inactive = silent(features).tolist()
        return [kernel for kernel in order.tolist() if not inactive[kernel]]

    @torch.no_grad()
    def feature_maps(self, model: str, layer: str, picture: Picture) -> Maps:
        """F, (C, h, w), on the host."""
        maps: Maps = self._features(model, layer, picture).float().cpu().numpy()
        return maps

    def _features(self, model: str, layer: str, picture: Picture) -> Tensor:
        chosen = self.networks.get(model).layer(layer)
        return chosen.features(pictures([picture], chosen))[0]

    def survey(self, model: str, layers: Sequence[str], pictures: Sequence[Picture]) -> dict[str, Seen]:
        """Statistics of these layers' maps of the pictures, computed in halves if memory runs out."""
        network = self.networks.get(model)
        for layer in layers:
            network.layer(layer)  # raises if it is not covered
        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).to(self.networks.device)
        try:
            return survey(network, layers, pixels)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if len(pictures) == 1:
                raise DeviceOutOfMemory(f"an image of {model} does not fit into {self.name}") from error
        middle = len(pictures) // 2
        halves = [self.survey(model, layers, half) for half in (pictures[:middle], pictures[middle:])]
        return {layer: Seen.of([half[layer] for half in halves]) for layer in halves[0]}

    def batch(self, question: Question) -> Batch:
        """An empty batch for a layer."""
        layer = self.networks.get(question.model).layer(question.layer)
        if question.method not in OPTIMIZED:
            return BaselineBatch(layer)
        return TorchBatch(layer, self.threads, tapped=question.method == "evidence", most=self.most)

    def memory(self) -> int:
        """Bytes that torch has allocated on the card, or the resident memory of this process."""
        device = self.networks.device
        if device.type == "cuda":
            return torch.cuda.memory_allocated(device)
        return int(psutil.Process().memory_info().rss)

    def broken(self, error: Exception) -> bool:
        """Whether this is an error of the device itself, after which its context cannot be used."""
        return broken(error)

    def sound(self) -> bool:
        """The CPU always is. A card is tested in a new process, since this one's context may be what is broken."""
        device = self.networks.device
        if device.type == "cpu":
            return True
        command = [sys.executable, "-m", "worker.checkup", str(device)]
        try:
            return subprocess.run(command, timeout=SELF_TEST_SECONDS, check=False).returncode == 0  # noqa: S603 - ours
        except subprocess.TimeoutExpired:
            return False
