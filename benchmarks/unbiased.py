"""For `benchmarks.ground_truth`: `vgg_mini` trained without biases, so that no kernel responds to a blank picture."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from shared.images import Frame
from shared.schemas import WeightsUsed
from worker.methods.suppression import PixelSpace
from worker.networks.architectures import ARCHITECTURES, Traced
from worker.networks.layer import Layers, LoadedLayer, LoadedNetwork
from worker.networks.loaded import Networks
from worker.networks.vgg_mini import VggMini
from worker.networks.vgg_mini.train import accuracy, pictures, train

FRAME = Frame(VggMini.INPUT_SIZE, VggMini.INPUT_SIZE)
PICTURES, HELD_OUT, EPOCHS, RATE = 6000, 500, 6, 2e-3


def trained(file: Path) -> VggMini:
    """Load the network from the file; train it and write the file if there is none."""
    model = VggMini(bias=False)
    if file.exists():
        model.load_state_dict(load_file(file))
        return model
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    rng = np.random.default_rng(0)
    with contextlib.redirect_stdout(sys.stderr):
        print("training a small network without biases, some minutes")
        train(model.to(memory_format=torch.channels_last), *pictures(rng, PICTURES), rng, EPOCHS, RATE)
        print("held-out accuracy:", accuracy(model.eval(), *pictures(np.random.default_rng(1), HELD_OUT)))
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, file)
    return model


class UnbiasedNetworks(Networks):
    """The network for a `TorchDevice`, under the name `vgg_mini`.

    Args:
        file: of its weights.
    """

    def __init__(self, file: Path) -> None:
        super().__init__(Path("/nonexistent"), torch.device("cpu"), download=False)
        own = Traced(replace(ARCHITECTURES["vgg_mini"], build=lambda: VggMini(bias=False)))
        names = [name for name, node in own.layers.items() if node.main]
        filled = own.filled(dict(trained(file).state_dict()), names)
        space = PixelSpace.of(VggMini.MEAN, VggMini.STD)
        used = WeightsUsed(source=file.name, sha256=hashlib.sha256(file.read_bytes()).hexdigest())

        def layer(name: str) -> LoadedLayer:
            cut = own.cut(filled, name)
            return LoadedLayer(
                "vgg_mini without biases",
                name,
                cut,
                space,
                FRAME,
                used,
                own.below(cut),
            )

        layers = Layers(names, layer)
        reason = "trained by the benchmark"
        self.unbiased = LoadedNetwork("vgg_mini", space, FRAME, used, reason, layers)

    def get(self, name: str) -> LoadedNetwork:
        """The only network."""
        assert name == "vgg_mini"
        return self.unbiased
