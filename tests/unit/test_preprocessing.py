"""How an image reaches the network, against torchvision's own module and the usual preprocessing."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import vgg11

from shared.images import array, decode, resized
from worker.engine.device import TorchDevice
from worker.jobs.activations import ranked
from worker.networks.loaded import Networks

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("layer", "modules"), [("conv1_1", 2), ("conv2_1", 5)])
def test_the_means_are_those_of_the_usual_preprocessing(tmp_path: Path, layer: str, modules: int) -> None:
    """Bilinear resizing by Pillow, division by 255, ImageNet's mean and standard deviation, the first modules."""
    torch.manual_seed(0)
    features = vgg11(weights=None).features[:modules].eval()
    torch.save({f"features.{name}": value for name, value in features.state_dict().items()}, tmp_path / "vgg11.pth")
    photograph = (ROOT / "api/web/astronaut.jpg").read_bytes()
    small = Image.open(BytesIO(photograph)).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
    x = torch.from_numpy(np.array(small)).permute(2, 0, 1) / 255
    x = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        expected = features(x[None])[0].mean(dim=(1, 2))

    networks = Networks(tmp_path, torch.device("cpu"), download=False)
    device = TorchDevice(networks)
    picture = array(resized(decode(photograph, 10**8), device.frame("vgg11")))
    found = {one.kernel: one.mean for one in ranked(device.feature_maps("vgg11", layer, picture))}
    assert [found[kernel] for kernel in range(len(expected))] == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-6)
