"""The network that half precision is tried with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    """Kernels with weights of all kinds, light ones, and a softmax over pixels that has no form in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 33, 1)
        self.depthwise, self.narrow = nn.Conv2d(33, 33, 3, padding=1, groups=33), nn.Conv2d(33, 16, 1)
        self.grouped, self.squeeze = nn.Conv2d(32, 32, 3, padding=1, groups=2), nn.Conv2d(32, 32, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (16, 33, 33, 16, 32))
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = F.relu(self.norms[0](self.stem(x)))
        y = F.hardswish(self.norms[1](self.wide(x)))
        y = self.norms[3](self.narrow(F.relu6(self.norms[2](self.depthwise(y))))) + x
        z = torch.cat([F.max_pool2d(y, 3, 2, 1), F.avg_pool2d(x, 2)], 1)
        z = F.silu(self.norms[4](self.grouped(z)))
        z = z * torch.sigmoid(self.squeeze(F.adaptive_avg_pool2d(z, 1)))
        seen = F.softmax(z.flatten(2), 2)
        return self.head(z.mean((2, 3))), seen
