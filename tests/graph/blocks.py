"""Networks of residual blocks of convolutions, each with a branch that can be removed."""

from __future__ import annotations

import torch
from torch import nn

from aap_hw.models.initialise import calibrate_batch_norm, initialise


class Residual(nn.Module):
    """relu(x + branch(x)), or x + branch(x)."""

    def __init__(self, *branch: nn.Module, relu: bool = True) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)
        self.relu = relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block."""
        out = x + self.branch(x)
        return torch.relu(out) if self.relu else out


def conv(before: int, after: int, size: int = 3, **options: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, size, padding=size // 2, bias=False, **options),
        nn.BatchNorm2d(after),  # type: ignore[arg-type]
    )


def net(*blocks: nn.Module) -> nn.Module:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    model = nn.Sequential(conv(3, 8), nn.ReLU(), *blocks, *head)
    initialise(model, seed=0)
    calibrate_batch_norm(model, (3, 12, 12), seed=0)
    return model.eval()


class Excited(nn.Module):
    """A branch with a gate of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = conv(8, 16), conv(16, 8, 1)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the branch."""
        x = nn.functional.silu(self.wide(x))
        gate = self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        return self.narrow(x * torch.sigmoid(gate))  # type: ignore[no-any-return]


REMOVABLE = {
    "basic": Residual(conv(8, 16), nn.ReLU(inplace=True), conv(16, 8)),
    "bottleneck": Residual(conv(8, 6, 1), nn.ReLU(), conv(6, 6), nn.ReLU(), conv(6, 8, 1)),
    "inverted": Residual(conv(8, 24, 1), nn.ReLU6(), conv(24, 24, groups=24), nn.ReLU6(), conv(24, 8, 1), relu=False),
    "excited": Residual(Excited()),
}
