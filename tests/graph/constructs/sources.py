"""Where channels come from and how they get back to pixels: tables, features as maps, sampled grids, channel lines."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.constructs.base import Construct
from tests.graph.nets import conv


class EmbeddedPlaces(Construct):
    """A row of a table for each pixel; the table's columns are channels."""

    def layers(self) -> None:
        self.register_buffer("places", torch.arange(64).reshape(1, 8, 8))
        self.table = nn.Embedding(64, 12)

    def between(self, x: Tensor) -> Tensor:
        return x + self.table(self.places).permute(0, 3, 1, 2)


class EmbeddedDecisions(Construct):
    """The table is read alone, where the largest channel says."""

    channels = 7
    frozen = ("stem.0",)

    def layers(self) -> None:
        self.table = nn.Embedding(12, 7, padding_idx=0)

    def between(self, x: Tensor) -> Tensor:
        return self.table(x.argmax(1)).permute(0, 3, 1, 2)


class BagOfEmbeddings(Construct):
    """Rows that are summed as they are read, which is not followed."""

    frozen = ("stem.0",)

    def layers(self) -> None:
        self.register_buffer("places", torch.arange(6).reshape(2, 3))
        self.table = nn.EmbeddingBag(6, 12)

    def between(self, x: Tensor) -> Tensor:
        return x * self.table(self.places)[:, :, None, None]


class Maps(nn.Module):
    """A generator's first step: features become the channels of a small image."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 6
        self.linear, self.up = nn.Linear(12, 6 * 16), nn.ConvTranspose2d(6, 5, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(F.relu(self.linear(x).view(-1, self.width, 4, 4)))


class FeaturesAsMaps(Construct):
    """How many channels there are is an attribute."""

    channels = 5

    def layers(self) -> None:
        self.maps = Maps()

    def between(self, x: Tensor) -> Tensor:
        return self.maps(x.mean((2, 3)))


class FeaturesAsMapsUnflattened(Construct):
    channels = 5

    def layers(self) -> None:
        self.linear, self.up = nn.Linear(12, 6 * 16), nn.ConvTranspose2d(6, 5, 4, stride=2, padding=1)

    def between(self, x: Tensor) -> Tensor:
        return self.up(F.relu(self.linear(x.mean((2, 3)))).unflatten(1, (-1, 4, 4)))


class SampledGrid(Construct):
    """Pixels from where a network says; each channel is sampled alike."""

    frozen = ("where.0",)

    def layers(self) -> None:
        self.where = conv(12, 2)

    def between(self, x: Tensor) -> Tensor:
        grid = self.where(x).tanh().permute(0, 2, 3, 1)
        return F.grid_sample(x, grid, align_corners=False, padding_mode="border") + x


class EfficientChannelAttention(Construct):
    """A convolution along the channels, whose neighbours are others after a cut."""

    frozen = ("line",)

    def layers(self) -> None:
        self.line = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def between(self, x: Tensor) -> Tensor:
        y = self.line(x.mean((2, 3)).unsqueeze(-1).transpose(1, 2)).transpose(1, 2).unsqueeze(-1)
        return x * y.sigmoid()


class BestPixels(Construct):
    """The pixels of which a layer thinks most, gathered by numbers that are repeated for each channel."""

    frozen = ("best",)

    def layers(self) -> None:
        self.best = nn.Conv2d(12, 1, 1)

    def between(self, x: Tensor) -> Tensor:
        pixels = x.flatten(2).mT
        numbers = self.best(x).flatten(1).topk(16, 1).indices
        first = pixels.gather(1, numbers.unsqueeze(-1).repeat(1, 1, pixels.shape[-1]))
        second = pixels.relu().gather(1, numbers.unsqueeze(-1).expand(-1, -1, pixels.shape[-1]))
        return (first + second).mT.unflatten(2, (4, 4))
