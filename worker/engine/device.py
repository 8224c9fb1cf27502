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
from worker.engine.accelerator import broken, out_of_memory
from worker.engine.answers import pictures
from worker.engine.baseline_batch import BaselineBatch
from worker.engine.questions import Batch, Device, Maps, Picture, Question
from worker.engine.survey import survey
from worker.engine.threads import Threads
from worker.engine.torch_batch import TorchBatch
from worker.methods.suppression import VERSION, silent
from worker.networks.loaded import Networks

SOUND_SECONDS = 60  # that a card may take to start and to compute a little


class TorchDevice(Device):
    """One torch device with its networks.

    Args:
        networks: on the device.
        most: problems in a batch at most; a benchmark compares them.
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

    def states(self) -> dict[str, NetworkState]:
        """Which networks can be run."""
        return self.networks.states()

    def state(self, model: str) -> NetworkState | None:
        """Of one of them."""
        return self.networks.state(model)

    def registered(self) -> list[Network]:
        """The networks beside those that come with the program."""
        return self.networks.registered()

    def outdated(self) -> list[str]:
        """Networks that were registered anew, or whose files were changed, since they were loaded."""
        return self.networks.outdated()

    def frame(self, model: str) -> Frame:
        """Of the network's input."""
        return self.networks.get(model).frame

    def weights(self, model: str) -> WeightsUsed:
        """Which weights the network has."""
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
        """What these layers' maps of pictures are, in halves where there is no memory for all at once."""
        network = self.networks.get(model)
        for layer in layers:
            network.layer(layer)  # it is covered
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
        return TorchBatch(layer, self.threads, watched=question.method == "evidence", most=self.most)

    def memory(self) -> int:
        """Bytes: of the card that torch has allocated, or of this process."""
        device = self.networks.device
        if device.type == "cuda":
            return torch.cuda.memory_allocated(device)
        return int(psutil.Process().memory_info().rss)

    def broken(self, error: Exception) -> bool:
        """Whether this is an error of the device itself, after which its context cannot be used."""
        return broken(error)

    def sound(self) -> bool:
        """The CPU is; a card is asked from a process of its own, as this one's context may be the trouble."""
        device = self.networks.device
        if device.type == "cpu":
            return True
        command = [sys.executable, "-m", "worker.checkup", str(device)]
        try:
            return subprocess.run(command, timeout=SOUND_SECONDS, check=False).returncode == 0  # noqa: S603 - ours
        except subprocess.TimeoutExpired:
            return False
