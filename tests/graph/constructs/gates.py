"""Tensors that meet: sums, products, gates, attention over channels and pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.constructs.base import Construct


class Residual(Construct):
    def layers(self) -> None:
        self.a, self.b = nn.Conv2d(12, 9, 3, padding=1), nn.Conv2d(9, 12, 1)

    def between(self, x: Tensor) -> Tensor:
        return x + self.b(F.relu(self.a(x)))


class ResidualInPlace(Construct):
    def layers(self) -> None:
        self.a = nn.Conv2d(12, 12, 1)

    def between(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y += x
        return y.mul_(0.5).relu_()


class DownsampledShortcut(Construct):
    channels = 10

    def layers(self) -> None:
        self.a, self.shortcut = nn.Conv2d(12, 10, 3, 2, 1), nn.Conv2d(12, 10, 1, 2)

    def between(self, x: Tensor) -> Tensor:
        return self.a(x) + self.shortcut(x)


class SqueezeAndExcitation(Construct):
    def layers(self) -> None:
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)

    def between(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))


class SqueezeAndExcitationOfVectors(Construct):
    def layers(self) -> None:
        self.squeeze, self.excite = nn.Linear(12, 4), nn.Linear(4, 12)

    def between(self, x: Tensor) -> Tensor:
        n, c, _, _ = x.size()
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3)))))
        return x * F.hardsigmoid(gate).view(n, c, 1, 1).expand_as(x)


class GateOfOneChannel(Construct):
    def layers(self) -> None:
        self.gate = nn.Conv2d(12, 1, 1)

    def between(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.gate(x))


class GateStretchedOverChannels(Construct):
    """One gate for all channels, repeated as often as a tensor or an attribute says."""

    def layers(self) -> None:
        self.gate, self.width = nn.Conv2d(12, 1, 1), 12

    def between(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        gate = torch.sigmoid(self.gate(x))
        x = x * gate.expand(n, c, h, w)
        x = x + gate.expand(-1, self.width, -1, -1)
        return gate.repeat(1, c, 1, 1) - x


class GatesStretchedTogether(Construct):
    """By PyTorch, to the shape of one of them and to one that none has."""

    def layers(self) -> None:
        self.gate, self.factor = nn.Conv2d(12, 1, 1), nn.Parameter(torch.randn(12, 1, 1))

    def between(self, x: Tensor) -> Tensor:
        y, gate, factor = torch.broadcast_tensors(x, torch.sigmoid(self.gate(x)), self.factor)
        row, column = torch.broadcast_tensors(x.mean(2, keepdim=True), x.mean(3, keepdim=True))
        return y * gate * factor + row * column


class SpatialGateOfMeanAndMaximum(Construct):
    """The gate looks at a mean over the channels that stay."""

    def layers(self) -> None:
        self.gate = nn.Conv2d(2, 1, 3, padding=1)

    def between(self, x: Tensor) -> Tensor:
        seen = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.gate(seen))


class ChannelGateByConvolution1d(Construct):
    """A window slides over the channels."""

    frozen = ("gate",)

    def layers(self) -> None:
        self.gate = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def between(self, x: Tensor) -> Tensor:
        y = self.gate(x.mean((2, 3))[:, None, :])
        return x * torch.sigmoid(y).view(x.shape[0], -1, 1, 1)


class GatedLinearUnit(Construct):
    def layers(self) -> None:
        self.a = nn.Conv2d(12, 24, 1)

    def between(self, x: Tensor) -> Tensor:
        return F.glu(self.a(x), dim=1)


class SwishGatedMlp(Construct):
    def layers(self) -> None:
        self.gate, self.value, self.project = nn.Linear(12, 18), nn.Linear(12, 18), nn.Linear(18, 12)

    def between(self, x: Tensor) -> Tensor:
        y = x.permute(0, 2, 3, 1)
        return x + self.project(F.silu(self.gate(y)) * self.value(y)).permute(0, 3, 1, 2)


class SelectiveKernels(Construct):
    channels = 8

    def layers(self) -> None:
        self.a, self.b = nn.Conv2d(12, 8, 3, padding=1), nn.Conv2d(12, 8, 5, padding=2)
        self.reduce, self.select = nn.Conv2d(8, 5, 1), nn.Conv2d(5, 16, 1)

    def between(self, x: Tensor) -> Tensor:
        paths = torch.stack([self.a(x), self.b(x)], dim=1)
        attention = self.select(F.relu(self.reduce(paths.sum(1).mean((2, 3), keepdim=True))))
        n, c, _, _ = attention.shape
        return (paths * attention.view(n, 2, c // 2, 1, 1).softmax(1)).sum(1)


class SplitAttention(Construct):
    channels = 8

    def layers(self) -> None:
        self.radix = 2
        self.a = nn.Conv2d(12, 16, 3, padding=1, groups=2)
        self.reduce, self.select = nn.Conv2d(8, 5, 1), nn.Conv2d(5, 16, 1)

    def between(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        n, c, h, w = x.shape
        x = x.reshape(n, self.radix, c // self.radix, h, w)
        attention = self.select(F.relu(self.reduce(x.sum(1).mean((2, 3), keepdim=True))))
        attention = attention.view(n, 1, self.radix, -1).transpose(1, 2).softmax(1).reshape(n, -1)
        return (x * attention.reshape(n, self.radix, c // self.radix, 1, 1)).sum(1)


class SelfAttention(Construct):
    """Queries, keys and values are frozen; what reads and follows them is not."""

    frozen = ("qkv",)

    def layers(self) -> None:
        self.qkv, self.project = nn.Linear(12, 24), nn.Linear(8, 12)

    def between(self, x: Tensor) -> Tensor:
        y = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(y).reshape(2, 64, 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 64, 8)
        return x + self.project(y).transpose(1, 2).reshape(x.shape)


class ScaleByTheNumberOfChannels(Construct):
    """What is divided by the number of channels would change with it."""

    frozen = ("stem.0",)

    def between(self, x: Tensor) -> Tensor:
        return x * x.shape[1] ** -0.5


class PoolMinusImage(Construct):
    def between(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) - x


class MaximumOfTwo(Construct):
    channels = 8

    def layers(self) -> None:
        self.a, self.b = nn.Conv2d(12, 8, 1), nn.Conv2d(12, 8, 1)

    def between(self, x: Tensor) -> Tensor:
        return torch.maximum(self.a(x), torch.where(self.a(x) > 0, self.b(x), -self.b(x)))


class WhereWithANumber(Construct):
    """Channels or a number, by a mask of the image's own."""

    def layers(self) -> None:
        self.mask = nn.Conv2d(12, 1, 1)

    def between(self, x: Tensor) -> Tensor:
        return torch.where(self.mask(x) > 0, x, -0.5)
