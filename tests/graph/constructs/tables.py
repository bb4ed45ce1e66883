"""Position codes that are sliced, turned or joined before they meet channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.constructs.base import Construct


class SlicedPlaces(Construct):
    """As many rows of a table as there are tokens; the slice comes before the channels that it meets."""

    def layers(self) -> None:
        self.a, self.table = nn.Conv2d(12, 12, 1), nn.Parameter(torch.randn(70, 12))

    def between(self, x: Tensor) -> Tensor:
        codes = self.table[: x.shape[2] * x.shape[3]]
        return (self.a(x).flatten(2).mT + codes).mT.unflatten(2, x.shape[2:])


class NumberedPlaces(Construct):
    """Rows are taken by numbers that the network stores, of which there are as many as channels."""

    def layers(self) -> None:
        self.table = nn.Embedding(12, 12)
        self.register_buffer("numbers", torch.arange(12).flip(0)[None])

    def between(self, x: Tensor) -> Tensor:
        return x + self.table(self.numbers[:, : x.shape[2]]).mT.unsqueeze(3)


class PlacesOfALine(Construct):
    """As many places as channels, so that no length tells them apart; images get an axis."""

    def layers(self) -> None:
        self.register_buffer("table", torch.randn(12, 1, 12))

    def between(self, x: Tensor) -> Tensor:
        line = x.mean(3).permute(2, 0, 1)
        return x + (line + 0.5 * self.table[: line.shape[0]]).permute(1, 2, 0).unsqueeze(3)


class RowsBesideColumns(Construct):
    """Half of a code says the row, the other half the column."""

    def layers(self) -> None:
        self.rows, self.columns = nn.Parameter(torch.randn(10, 6)), nn.Parameter(torch.randn(10, 6))

    def between(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        columns, rows = self.columns[:w].unsqueeze(0).repeat(h, 1, 1), self.rows[:h].unsqueeze(1).repeat(1, w, 1)
        return x + torch.cat([columns, rows], -1).permute(2, 0, 1)


class TokensBeside(Construct):
    """Tokens of the network's own among those of an image."""

    def layers(self) -> None:
        self.own, self.places = nn.Parameter(torch.randn(2, 12)), nn.Parameter(torch.randn(66, 12))

    def between(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.own.unsqueeze(0).expand(x.shape[0], -1, -1), x.flatten(2).mT], 1)
        return (tokens + self.places[None]).relu()[:, 2:].mT.unflatten(2, x.shape[2:])


class LearnedQueries(Construct):
    """A table that a layer reads before it meets channels, with nothing but zeros added to it."""

    def layers(self) -> None:
        self.queries, self.q = nn.Parameter(torch.randn(5, 12)), nn.Linear(12, 8)
        self.k, self.v = nn.Linear(12, 8), nn.Linear(8, 12)

    def between(self, x: Tensor) -> Tensor:
        queries = torch.zeros_like(self.queries) + self.queries
        seen = (self.q(queries) + self.k(x.mean((2, 3)))[:, None]).relu()
        return (queries + self.v(seen)).mT.unsqueeze(3)


class ResizedPlaces(Construct):
    """Codes for images of another size, one table for each depth."""

    def layers(self) -> None:
        self.table = nn.Parameter(torch.randn(2, 12, 4, 4))

    def between(self, x: Tensor) -> Tensor:
        codes = F.interpolate(self.table, size=x.shape[2:], mode="bicubic")
        return (x + codes[0]).relu() + codes[1]
