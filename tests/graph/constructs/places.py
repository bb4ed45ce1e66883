"""What works beside the axis of channels: layers that mix places, pooling; and the larger of two values."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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


class TokensMixedBehindFactors(Construct):
    """As in ResMLP: the shift and the factors of the channels are read before the channels themselves."""

    frozen = ("mix",)

    def layers(self) -> None:
        self.mix = nn.Linear(64, 64)
        self.shift, self.factors = nn.Parameter(torch.randn(1, 1, 12)), nn.Parameter(torch.randn(1, 1, 12))

    def between(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        scaled = torch.addcmul(self.shift, self.factors, tokens)
        return (tokens + self.mix(scaled.transpose(1, 2)).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])


class PoolingOverPlacesBesideChannels(Construct):
    def layers(self) -> None:
        self.pool = nn.MaxPool2d((2, 1), stride=(2, 1))

    def between(self, x: Tensor) -> Tensor:
        return self.pool(x.movedim(1, 3)).movedim(3, 1)


class LargestOfNeighbours(Construct):
    def layers(self) -> None:
        self.a = nn.Conv2d(12, 24, 1)

    def between(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return x.view(x.shape[0], x.shape[1] // 2, 2, *x.shape[2:]).amax(2)


class GateBesideEachChannel(Construct):
    """Values and gates take turns, as ``rearrange(x, "b n (d two) -> two b n d", two=2)`` reads them."""

    def layers(self) -> None:
        self.a = nn.Linear(12, 16)
        self.b = nn.Linear(8, 12)

    def between(self, x: Tensor) -> Tensor:
        x = self.a(x.movedim(1, 3))
        values, gates = x.reshape(*x.shape[:3], x.shape[3] // 2, 2).permute(4, 0, 1, 2, 3).unbind(0)
        return self.b(values * gates.sigmoid()).movedim(3, 1)


class GridBesideChannels(Construct):
    """Basis functions of each channel, as in networks of Kolmogorov and Arnold."""

    def layers(self) -> None:
        self.register_buffer("nodes", torch.linspace(-2, 2, 5))
        self.a = nn.Linear(60, 12)

    def between(self, x: Tensor) -> Tensor:
        return self.a(torch.exp(-((x.movedim(1, 3)[..., None] - self.nodes) ** 2)).flatten(3)).movedim(3, 1)


class Experts(Construct):
    """Weights of several layers in one parameter, whose results are mixed."""

    frozen = ("gate",)

    def layers(self) -> None:
        self.gate = nn.Linear(12, 3)
        self.first, self.second = nn.Parameter(torch.randn(3, 12, 7) / 4), nn.Parameter(torch.randn(3, 7, 12) / 4)

    def between(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        shares = self.gate(tokens).softmax(-1)
        inner = torch.einsum("bnd,edh->benh", tokens, self.first).tanh()
        made = torch.einsum("bend,bne->bnd", torch.einsum("benh,ehd->bend", inner, self.second), shares)
        return (tokens + made).transpose(1, 2).view_as(x)


class StatesOfEachChannel(Construct):
    """A selective scan, as Mamba's is written by hand: each channel has states, whose axis is of other channels."""

    frozen = ("reads",)

    def layers(self) -> None:
        self.steps, self.reads = nn.Linear(12, 12), nn.Linear(12, 8)
        self.rates = nn.Parameter(torch.rand(12, 4))

    def between(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)[:, :3]
        steps = F.softplus(self.steps(tokens))
        written, read = self.reads(tokens).chunk(2, -1)
        decay = torch.exp(-torch.einsum("bld,dn->bldn", steps, self.rates))
        added = torch.einsum("bld,bln,bld->bldn", steps, written, tokens)
        state = torch.zeros_like(added[:, 0])
        for place in range(3):
            state = decay[:, place] * state + added[:, place] * written[:, place].unsqueeze(1)
        return x + torch.einsum("bdn,bn->bd", state, read[:, 2])[:, :, None, None]
