"""A network to export, for any number of images."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """A depthwise convolution, a residual, batch norms and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12))
        self.wide = nn.Conv2d(12, 20, 1)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(20, 7))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + torch.relu(self.depthwise(x))
        return self.head(torch.relu(self.wide(x)).mean((2, 3)))  # type: ignore[no-any-return]


ANY_NUMBER = {"dynamic_shapes": ({0: torch.export.Dim("n", min=1)},)}
