"""Channels of zeros, or of another number, before and behind those that a layer makes: shortcuts without parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.constructs.base import Construct


class PaddedOnBothSides(Construct):
    """As in small ResNets: half of the new channels on each side, which go two by two."""

    channels = 20

    def layers(self) -> None:
        self.wide, self.new = nn.Conv2d(12, 20, 3, padding=1), 8

    def between(self, x: Tensor) -> Tensor:
        return self.wide(x) + F.pad(x, (0, 0, 0, 0, self.new // 2, self.new - self.new // 2))


class PaddedTwice(Construct):
    """What is padded is padded again, so that a layer makes channels of several groups; sides that differ stay."""

    channels = 30
    frozen = ("wide",)

    def layers(self) -> None:
        self.wide, self.wider = nn.Conv2d(12, 20, 1), nn.Conv2d(20, 30, 1)
        self.before, self.behind, self.more = 3, 5, 10

    def between(self, x: Tensor) -> Tensor:
        y = self.wide(x) + F.pad(x, (0, 0, 0, 0, self.before, self.behind))
        return self.wider(y) + F.pad(y, [0, 0, 0, 0, 0, self.more], value=0.5)


class PaddedByWhatIsLacking(Construct):
    """As in PyramidNet: the code asks both branches for their lengths."""

    channels = 17

    def layers(self) -> None:
        self.wide = nn.Conv2d(12, 17, 3, padding=1)

    def between(self, x: Tensor) -> Tensor:
        y = self.wide(x)
        return y + F.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class PaddedByALambda(Construct):
    """The number is a variable of the code that made a function, which others of its functions know as well."""

    channels = 16

    def layers(self) -> None:
        planes = self.channels
        self.wide, self.wider = nn.Conv2d(12, 20, 1), nn.Conv2d(20, 16, 1)
        self.shortcut = Lambda(lambda x: F.pad(x, (0, 0, 0, 0, planes // 4, planes // 4)))
        self.back = Lambda(lambda x: x[:, :, : planes // 2])

    def between(self, x: Tensor) -> Tensor:
        return self.back(self.wider(F.relu(self.wide(x) + self.shortcut(x))))


class PaddedByANumber(Construct):
    """Nothing says where the number comes from: the new channels stay, and those that are padded can go."""

    channels = 16
    frozen = ("wide",)

    def layers(self) -> None:
        self.wide = nn.Conv2d(12, 16, 3, padding=1)

    def between(self, x: Tensor) -> Tensor:
        return self.wide(x) + F.pad(x, (0, 0, 0, 0, 2, 2))


class PaddedAround(Construct):
    """Pixels and channels in one call, and channels that are the last axis."""

    channels = 24

    def layers(self) -> None:
        self.wide, self.wider = nn.Conv2d(12, 16, 3, padding=2), nn.Linear(16, 24)
        self.new, self.newer = 4, 8

    def between(self, x: Tensor) -> Tensor:
        y = self.wide(x) + F.pad(x, (1, 1, 1, 1, 0, self.new))
        rows = y.flatten(2).transpose(1, 2)
        return (self.wider(rows) + F.pad(rows, (0, self.newer))).transpose(1, 2).unflatten(2, y.shape[2:])


class PaddedByAShare(Construct):
    """The share is rounded: it is right for many widths, by chance, and wrong for others."""

    channels = 16
    frozen = ("stem.0", "wide")

    def layers(self) -> None:
        self.wide = nn.Conv2d(12, 16, 3, padding=1)

    def between(self, x: Tensor) -> Tensor:
        y = self.wide(x)
        return y + F.pad(x, (0, 0, 0, 0, y.shape[1] // 8, y.shape[1] // 8))


class PaddedByOneModule(Construct):
    """One module pads twice, in one number."""

    channels = 16
    frozen = ("wide", "wider")

    def layers(self) -> None:
        planes = self.channels
        self.wide, self.back, self.wider = nn.Conv2d(12, 16, 1), nn.Conv2d(16, 12, 1), nn.Conv2d(12, 16, 1)
        self.shortcut = Lambda(lambda x: F.pad(x, (0, 0, 0, 0, 0, planes // 4)))

    def between(self, x: Tensor) -> Tensor:
        x = self.back(F.relu(self.wide(x) + self.shortcut(x)))
        return self.wider(x) + self.shortcut(x)
