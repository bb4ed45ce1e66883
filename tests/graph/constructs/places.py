"""What works beside the axis of channels: layers that mix places, pooling; and the larger of two values."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.graph.constructs.base import Construct


class LargerOfTwo(Construct):
    channels = 8

    def layers(self) -> None:
        self.a = nn.Conv2d(12, 16, 1)

    def between(self, x: Tensor) -> Tensor:
        left, right = self.a(x).chunk(2, 1)
        return torch.max(left, right) + torch.min(left, right).relu()


class TokensMixedByConvolutions(Construct):
    frozen = "mix.0", "mix.2"

    def layers(self) -> None:
        self.mix = nn.Sequential(nn.Conv1d(64, 7, 1), nn.GELU(), nn.Conv1d(7, 64, 1))

    def between(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return (tokens + self.mix(tokens)).transpose(1, 2).unflatten(2, x.shape[2:])


class PoolingOverPlacesBesideChannels(Construct):
    def layers(self) -> None:
        self.pool = nn.MaxPool2d((2, 1), stride=(2, 1))

    def between(self, x: Tensor) -> Tensor:
        return self.pool(x.movedim(1, 3)).movedim(3, 1)
