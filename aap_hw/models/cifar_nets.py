"""VGG-19, MobileNetV2 and ShuffleNetV2 as they are used on images of 32 x 32 or 64 x 64: fewer strides, one classifier.

The two mobile networks are torchvision's with their first strides taken out; parameter names are therefore theirs.
"""

from __future__ import annotations

import torch
from torch import nn

# Simonyan and Zisserman, arXiv 1409.1556, configuration E; 0 is a pooling.
VGG19 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512, 512, 512, 512, 0)
# Expansion, channels, blocks, stride: those of Sandler et al., arXiv 1801.04381, with the second stride taken out.
MOBILENET_V2 = [
    [1, 16, 1, 1],
    [6, 24, 2, 1],
    [6, 32, 3, 2],
    [6, 64, 4, 2],
    [6, 96, 3, 1],
    [6, 160, 3, 2],
    [6, 320, 1, 1],
]


class CifarVGG(nn.Module):
    """VGG-19 with batch norms and a single linear layer: (N, 3, H, W) to logits (N, classes), H and W from 32 on."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in VGG19:
            if width == 0:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [
                nn.Conv2d(channels, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the network."""
        return self.classifier(torch.flatten(self.pool(self.features(x)), 1))  # type: ignore[no-any-return]


def mobilenet_v2(classes: int = 10) -> nn.Module:
    """Torchvision's MobileNetV2 with three strides instead of five: 32 x 32 becomes 4 x 4."""
    from torchvision.models import MobileNetV2

    network: nn.Module = MobileNetV2(num_classes=classes, inverted_residual_setting=MOBILENET_V2)
    network.get_submodule("features.0.0").stride = (1, 1)  # type: ignore[assignment]
    return network


def shufflenet_v2(classes: int = 10) -> nn.Module:
    """Torchvision's ShuffleNetV2 x1.0 without its first stride and pooling: 32 x 32 becomes 4 x 4."""
    from torchvision.models import shufflenet_v2_x1_0

    network: nn.Module = shufflenet_v2_x1_0(num_classes=classes)
    network.get_submodule("conv1.0").stride = (1, 1)  # type: ignore[assignment]
    network.maxpool = nn.Identity()
    return network
