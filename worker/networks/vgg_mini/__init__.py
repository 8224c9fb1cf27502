"""`vgg_mini`: a small bundled VGG, for machines without ImageNet weights.

It classifies the shape, the colour and the texture of a drawn figure (`shared/drawings.py`). Its weights,
`vgg_mini.safetensors`, are trained by `python -m worker.networks.vgg_mini.train`.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

WEIGHTS_FILE = Path(__file__).with_name("vgg_mini.safetensors")


class VggMini(nn.Module):
    """Eight 3×3 convolutions in four blocks, global average, one linear layer.

    Input: (B, 3, 96, 96), normalised. Output: (B, 16) logits: 6 shapes, 6 colours, 4 textures.
    """

    INPUT_SIZE = 96
    MEAN = (0.5, 0.5, 0.5)
    STD = (0.25, 0.25, 0.25)
    WIDTHS = (16, 32, 64, 96)
    OUTPUTS = (6, 6, 4)

    def __init__(self, *, batch_norm: bool = False, bias: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for block, width in enumerate(self.WIDTHS):
            if block:
                layers.append(nn.MaxPool2d(2))
            for _ in range(2):
                layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=bias))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.ReLU())
                channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, sum(self.OUTPUTS))

    def forward(self, image: Tensor) -> Tensor:
        """Logits of the figure's shape, colour and texture."""
        maps = self.features(image)  # (B, 96, 12, 12)
        logits: Tensor = self.classifier(maps.mean(dim=(2, 3)))
        return logits
