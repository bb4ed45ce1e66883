"""A small U-Net, and images of shapes to try it with.

After Ronneberger et al., "U-Net: convolutional networks for biomedical image segmentation", MICCAI 2015.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 64
CLASSES = 3  # background, square, disc
WIDTHS = (16, 32, 64)


def block(read: int, made: int) -> nn.Sequential:
    """Two convolutions with batch norm and ReLU."""
    layers: list[nn.Module] = []
    for channels in (read, made):
        layers += [nn.Conv2d(channels, made, 3, padding=1, bias=False), nn.BatchNorm2d(made), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Images (N, 3, H, W) to a score for each class of each pixel (N, CLASSES, H, W); H and W divide by 4."""

    def __init__(self) -> None:
        super().__init__()
        first, second, third = WIDTHS
        self.down = nn.ModuleList([block(3, first), block(first, second), block(second, third)])
        self.grow = nn.ModuleList([nn.ConvTranspose2d(third, second, 2, 2), nn.ConvTranspose2d(second, first, 2, 2)])
        self.up = nn.ModuleList([block(2 * second, second), block(2 * first, first)])
        self.head = nn.Conv2d(first, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = [self.down[0](x)]
        for level in (1, 2):
            kept.append(self.down[level](F.max_pool2d(kept[-1], 2)))
        x = kept.pop()
        for grow, up in zip(self.grow, self.up, strict=True):
            x = up(torch.cat([kept.pop(), grow(x)], dim=1))
        return self.head(x)


def make() -> nn.Module:
    """The unpruned network."""
    return UNet()


def drawn(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (N, 3, SIDE, SIDE) of a square and a disc in noise, and the class of each pixel (N, SIDE, SIDE)."""
    random = torch.Generator().manual_seed(seed)
    images = 0.5 * torch.randn(count, 3, SIDE, SIDE, generator=random)
    classes = torch.zeros(count, SIDE, SIDE, dtype=torch.int64)
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    for number in range(count):
        for shape in (1, 2):
            y, x = (int(each) for each in torch.randint(12, SIDE - 12, (2,), generator=random))
            half = int(torch.randint(6, 12, (), generator=random))
            across, down = (columns - x).abs(), (rows - y).abs()
            inside = (torch.maximum(across, down) if shape == 1 else (across**2 + down**2) ** 0.5) <= half
            images[number, :, inside] += torch.rand(3, 1, generator=random) + 0.5
            classes[number, inside] = shape
    return images, classes


def samples() -> Tensor:
    """Some images, as ``--example``: they tell which filters matter."""
    return drawn(32, 1)[0]
