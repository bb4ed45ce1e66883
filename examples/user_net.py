"""A network of one's own, with blocks that no library has: what `--model examples/user_net.py:make` builds.

Nothing here knows aap-hw. Any function without arguments that returns a `torch.nn.Module` will do.
"""

import torch
from torch import nn


class GhostBlock(nn.Module):
    """Half of the channels by a 1 x 1 convolution, the other half by a cheap depthwise one from these, gated.

    After Han et al., arXiv 1911.11907, with a squeeze-and-excitation gate on the result.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        half = channels_out // 2
        self.primary = nn.Sequential(
            nn.Conv2d(channels_in, half, 3, stride, padding=1, bias=False), nn.BatchNorm2d(half), nn.ReLU()
        )
        self.cheap = nn.Sequential(
            nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False), nn.BatchNorm2d(half), nn.ReLU()
        )
        self.squeeze = nn.Conv2d(channels_out, channels_out // 4, 1)
        self.excite = nn.Conv2d(channels_out // 4, channels_out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.primary(x)
        x = torch.cat([x, self.cheap(x)], dim=1)
        gate = self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class UserNet(nn.Module):
    """Three ghost blocks and a classifier: (N, 3, H, W) to (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(GhostBlock(16, 32, 2), GhostBlock(32, 64, 2), GhostBlock(64, 64, 1))
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.blocks(self.stem(x)).mean((2, 3)))


def make() -> nn.Module:
    """The network; load your trained weights here."""
    return UserNet()
