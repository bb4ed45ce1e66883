"""A network of one layer, what is read over its channels, and a last layer; and what it gives of the channels kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aap_hw.graph import ChannelGraph
from tests.graph.ground_truth import IMAGES

KEEP = [0, 2, 3, 7, 10]
Reference = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.stem, self.norm, self.last = nn.Conv2d(3, 12, 3, padding=1), norm, nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.stem(x)).sigmoid())  # type: ignore[no-any-return]


def made(make: Callable[[], nn.Module]) -> tuple[Net, Tensor]:
    torch.manual_seed(0)
    net, images = Net(make()).double().eval(), torch.randn(IMAGES, dtype=torch.float64)
    with torch.no_grad():
        for parameter in net.norm.parameters():
            parameter.uniform_(0.5, 1.5)
    return net, images


def ready(make: Callable[[], nn.Module]) -> tuple[Net, ChannelGraph, Tensor]:
    net, images = made(make)
    return net, ChannelGraph.trace(net, (images,)), images


def expected(net: Net, formula: Reference, images: Tensor) -> Tensor:
    with torch.no_grad():
        x = F.conv2d(images, net.stem.weight[KEEP], net.stem.bias[KEEP], padding=1)  # type: ignore[index]
        return F.conv2d(formula(net.norm, x).sigmoid(), net.last.weight[:, KEEP], net.last.bias)
