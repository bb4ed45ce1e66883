"""Layers: convolutions of all kinds, linear layers, normalisation, activations, weights that are shared or computed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torchvision.ops import DeformConv2d

from tests.graph.constructs.base import Construct
from tests.graph.nets import conv


class DenseConvolution(Construct):
    channels = 8

    def layers(self) -> None:
        self.a = nn.Conv2d(12, 8, 3)

    def between(self, x: Tensor) -> Tensor:
        return self.a(x)


class DilatedStridedConvolution(Construct):
    channels = 8

    def layers(self) -> None:
        self.a = nn.Conv2d(12, 8, (3, 1), stride=2, padding="valid", dilation=(2, 1), bias=False)

    def between(self, x: Tensor) -> Tensor:
        return self.a(x)


class GroupedConvolution(Construct):
    channels = 8

    def layers(self) -> None:
        self.a = nn.Conv2d(12, 8, 3, groups=4)

    def between(self, x: Tensor) -> Tensor:
        return self.a(x)


class DepthwiseConvolution(Construct):
    def layers(self) -> None:
        self.a = nn.Conv2d(12, 12, 3, padding=1, groups=12)

    def between(self, x: Tensor) -> Tensor:
        return self.a(x)


class DepthwiseConvolutionWithMultiplier(Construct):
    channels = 36

    def layers(self) -> None:
        self.a = nn.Conv2d(12, 36, 3, padding=1, groups=12)

    def between(self, x: Tensor) -> Tensor:
        return self.a(x)


class Convolution1d(Construct):
    channels = 5

    def layers(self) -> None:
        self.a, self.norm = nn.Conv1d(12, 5, 3, padding=1), nn.BatchNorm1d(5)

    def between(self, x: Tensor) -> Tensor:
        return self.norm(self.a(x.flatten(2))).unsqueeze(3)


class Convolution3d(Construct):
    channels = 5

    def layers(self) -> None:
        self.a, self.norm = nn.Conv3d(12, 5, (2, 3, 3), padding=(0, 1, 1)), nn.BatchNorm3d(5)

    def between(self, x: Tensor) -> Tensor:
        return self.norm(self.a(torch.stack([x, x.tanh()], 2))).squeeze(2)


class DeformableConvolution(Construct):
    channels = 10
    frozen = ("where", "how_much")

    def layers(self) -> None:
        self.where, self.how_much = nn.Conv2d(12, 18, 3, padding=1), nn.Conv2d(12, 9, 3, padding=1)
        self.a = DeformConv2d(12, 10, 3, padding=1)

    def between(self, x: Tensor) -> Tensor:
        return F.relu(self.a(x, self.where(x), self.how_much(x).sigmoid()))


class TransposedConvolution(Construct):
    channels = 7

    def layers(self) -> None:
        self.a = nn.ConvTranspose2d(12, 7, 2, stride=2)

    def between(self, x: Tensor) -> Tensor:
        return self.a(x)


class GroupedTransposedConvolution(Construct):
    channels = 8

    def layers(self) -> None:
        self.a = nn.ConvTranspose2d(12, 8, 2, stride=2, groups=4)

    def between(self, x: Tensor) -> Tensor:
        return self.a(x)


class DepthwiseTransposedConvolution(Construct):
    channels = 24

    def layers(self) -> None:
        self.a = nn.ConvTranspose2d(12, 24, 2, stride=2, groups=12)

    def between(self, x: Tensor) -> Tensor:
        return self.a(x)


class TransposedConvolution1d(Construct):
    channels = 5

    def layers(self) -> None:
        self.a = nn.ConvTranspose1d(12, 5, 3)

    def between(self, x: Tensor) -> Tensor:
        return self.a(x.flatten(2)).unsqueeze(3)


class LinearOnChannelsLast(Construct):
    channels = 9

    def layers(self) -> None:
        self.a = nn.Linear(12, 9)

    def between(self, x: Tensor) -> Tensor:
        return self.a(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MatrixOfParameters(Construct):
    channels = 9

    def layers(self) -> None:
        self.matrix = nn.Parameter(torch.randn(12, 9))

    def between(self, x: Tensor) -> Tensor:
        return (x.movedim(1, -1) @ self.matrix).movedim(-1, 1)


class MatrixAndBias(nn.Module):
    """As GPT-2's layers are written, with weights of shape (in, out)."""

    def __init__(self, made: int, read: int) -> None:
        super().__init__()
        self.made = made
        self.weight, self.bias = nn.Parameter(torch.randn(read, made) / 4), nn.Parameter(torch.randn(made))

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], self.made)
        return torch.addmm(self.bias, x.reshape(-1, x.size(-1)), self.weight).view(shape)


class ProductAndSum(Construct):
    channels = 9

    def layers(self) -> None:
        self.a, self.b = MatrixAndBias(20, 12), MatrixAndBias(9, 20)

    def between(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x.movedim(1, -1)))).movedim(-1, 1)


class ProductsOverAxes(Construct):
    """Over the last axes, and over axes that are given, as `torch.inner` and `torch.tensordot` have it."""

    channels = 9

    def layers(self) -> None:
        self.a, self.b = nn.Parameter(torch.randn(10, 12) / 4), nn.Parameter(torch.randn(9, 10) / 4)

    def between(self, x: Tensor) -> Tensor:
        rows = F.relu(torch.inner(x.movedim(1, -1), self.a))
        return torch.tensordot(self.b, rows, ([1], [3])).movedim(0, 1)


class MatricesTurnedOver(Construct):
    """On either side of a product, one of them in the type that the code asks for, and as the weight of a layer."""

    channels = 7

    def layers(self) -> None:
        self.right, self.left = nn.Parameter(torch.randn(9, 12) / 4), nn.Parameter(torch.randn(10, 7) / 4)
        self.middle, self.bias = nn.Parameter(torch.randn(9, 10) / 4), nn.Parameter(torch.randn(10))

    def between(self, x: Tensor) -> Tensor:
        rows = F.relu(x.movedim(1, -1) @ self.right.to(x.dtype).T).flatten(1, 2)
        rows = F.relu(F.linear(rows, self.middle.t(), self.bias))
        return (torch.transpose(self.left, 0, 1) @ rows.mT).unflatten(2, x.shape[2:])


class MatrixOfParametersOnTheLeft(Construct):
    channels = 9

    def layers(self) -> None:
        self.first, self.second = nn.Parameter(torch.randn(10, 12) / 4), nn.Parameter(torch.randn(10, 9) / 4)

    def between(self, x: Tensor) -> Tensor:
        y = F.relu(self.first @ x.flatten(2)).unflatten(2, (8, 8))
        return torch.einsum("nchw,cd->ndhw", y, self.second)


class BatchNormBeforeConvolution(Construct):
    def layers(self) -> None:
        self.norm = nn.BatchNorm2d(12)

    def between(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(x))


class InstanceNorm(Construct):
    def layers(self) -> None:
        self.norm = nn.InstanceNorm2d(12, affine=True, track_running_stats=True)

    def between(self, x: Tensor) -> Tensor:
        return self.norm(x)


class GroupNorm(Construct):
    def layers(self) -> None:
        self.norm = nn.GroupNorm(4, 12)

    def between(self, x: Tensor) -> Tensor:
        return self.norm(x)


class GroupNormOfEveryChannel(Construct):
    def layers(self) -> None:
        self.norm = nn.GroupNorm(12, 12)

    def between(self, x: Tensor) -> Tensor:
        return self.norm(x)


class GroupNormWithoutWeights(Construct):
    """How many groups are left is told to the layer."""

    def layers(self) -> None:
        self.a, self.b = nn.GroupNorm(4, 12, affine=False), nn.GroupNorm(6, 12, affine=False)

    def between(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x).relu()


class GroupNormOfEveryChannelWithoutWeights(Construct):
    def layers(self) -> None:
        self.norm = nn.GroupNorm(12, 12, affine=False)

    def between(self, x: Tensor) -> Tensor:
        return self.norm(x)


class LayerNormMlp(Construct):
    """The stream is normalised over its channels; the hidden layer is a group of its own."""

    def layers(self) -> None:
        self.norm = nn.LayerNorm(12)
        self.expand, self.project = nn.Linear(12, 20), nn.Linear(20, 12)

    def between(self, x: Tensor) -> Tensor:
        y = self.norm(x.permute(0, 2, 3, 1))
        return x + self.project(F.gelu(self.expand(y))).permute(0, 3, 1, 2)


class LayerNormOverPixels(Construct):
    def layers(self) -> None:
        self.norm = nn.LayerNorm((8, 8))

    def between(self, x: Tensor) -> Tensor:
        return self.norm(x)


class SlopePerChannel(Construct):
    def layers(self) -> None:
        self.slope = nn.PReLU(12)

    def between(self, x: Tensor) -> Tensor:
        return self.slope(x - 0.5)


class SlopeForAll(Construct):
    def layers(self) -> None:
        self.slope = nn.PReLU()

    def between(self, x: Tensor) -> Tensor:
        return self.slope(x - 0.5)


class PointwiseActivations(Construct):
    def between(self, x: Tensor) -> Tensor:
        x = F.celu(F.elu(F.leaky_relu(F.mish(F.selu(F.softplus(F.softsign(x)))))))
        x = F.hardswish(F.hardsigmoid(F.hardtanh(F.logsigmoid(F.gelu(x, approximate="tanh"))))) + x
        return torch.clamp(F.relu6(x), max=4).abs().sqrt() + F.threshold(x, 0.1, 0.0) + torch.erf(x) + x.exp().log1p()


class ActivationsInPlace(Construct):
    """PyTorch does not say of some of these that they are element by element."""

    def between(self, x: Tensor) -> Tensor:
        x = x * F.relu6(x + 3.0, inplace=True) / 6.0
        x = F.threshold(F.mish(x + 0.5, inplace=True), 0.1, 0.0, inplace=True)
        return (x - 1).abs_().masked_fill_(x > 2, 1.0)


class DataOfAValue(Construct):
    """PyTorch's export does not follow `data`, which older code reads where it means `detach`."""

    channels = 24

    def between(self, x: Tensor) -> Tensor:
        return torch.cat([x.data, x.relu()], 1)


class Dropouts(Construct):
    def between(self, x: Tensor) -> Tensor:
        return F.dropout2d(
            F.alpha_dropout(F.dropout(x, training=self.training), 0.0, self.training), 0.0, self.training
        )


class LayerScale(Construct):
    def layers(self) -> None:
        self.a, self.gamma = nn.Conv2d(12, 12, 3, padding=1), nn.Parameter(torch.linspace(0.5, 1.5, 12))

    def between(self, x: Tensor) -> Tensor:
        return x + self.gamma[:, None, None] * self.a(x)


class TiedWeights(Construct):
    channels = 8

    def layers(self) -> None:
        self.a, self.b = nn.Conv2d(12, 8, 1), nn.Conv2d(12, 8, 1)
        self.b.weight = self.a.weight

    def between(self, x: Tensor) -> Tensor:
        return self.a(x) * torch.tanh(self.b(x.flip(2)))


class BlockUsedTwice(Construct):
    def layers(self) -> None:
        self.block = conv(12, 12)

    def between(self, x: Tensor) -> Tensor:
        return self.block(self.block(x))


class StandardisedFilters(Construct):
    """Filters and inputs may go; these take part in their mean and variance."""

    channels = 8

    def layers(self) -> None:
        self.a = nn.Conv2d(12, 8, 3)

    def between(self, x: Tensor) -> Tensor:
        weight = self.a.weight
        mean, var = weight.mean((1, 2, 3), keepdim=True), weight.var((1, 2, 3), keepdim=True)
        return F.conv2d(x, (weight - mean) / (var + 1e-5).sqrt(), self.a.bias)


class StandardisedByBatchNorm(Construct):
    channels = 8

    def layers(self) -> None:
        self.a, self.gain = nn.Conv2d(12, 8, 3), nn.Parameter(torch.linspace(0.5, 1, 8).reshape(8, 1, 1, 1))

    def between(self, x: Tensor) -> Tensor:
        weight = self.a.weight
        flat = weight.reshape(1, self.a.out_channels, -1)
        scaled = F.batch_norm(flat, None, None, weight=self.gain.view(-1), training=True).reshape_as(weight)
        return F.conv2d(x, scaled, self.a.bias)


class NormedFilters(Construct):
    """Weight normalisation as a parametrisation: filters and inputs can go."""

    channels = 8

    def layers(self) -> None:
        self.a = weight_norm(nn.Conv2d(12, 8, 3))

    def between(self, x: Tensor) -> Tensor:
        return self.a(x)


class BiasOfWhichAPartIsZero(Construct):
    """As of the keys in Swin Transformer V2; where the part begins, the code asks the bias."""

    def layers(self) -> None:
        self.a = nn.Conv2d(12, 12, 1)

    def between(self, x: Tensor) -> Tensor:
        bias = self.a.bias.clone()
        bias[bias.numel() // 2 :].zero_()
        return F.conv2d(x, self.a.weight, bias)


class BlurWithFixedFilters(Construct):
    """Filters in a buffer, one per channel; how many there are is an attribute."""

    def layers(self) -> None:
        self.count = 12
        self.register_buffer("filters", torch.ones(12, 1, 3, 3) / 9)

    def between(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.filters, padding=1, groups=self.count)


class BlurOfAllChannels(Construct):
    """The code asks how many there are."""

    def layers(self) -> None:
        self.register_buffer("filters", torch.rand(12, 1, 3, 3))

    def between(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.filters, padding=1, groups=x.shape[1])


class BlurOfTwelveChannels(Construct):
    """The code says how many there are."""

    frozen = ("stem.0",)

    def layers(self) -> None:
        self.register_buffer("filters", torch.rand(12, 1, 3, 3))

    def between(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.filters, padding=1, groups=12)


class GridInBuffers(Construct):
    """Values for each column and each row, which are there for all channels."""

    def layers(self) -> None:
        self.register_buffer("columns", torch.linspace(0, 1, 8))
        self.register_buffer("rows", torch.linspace(0, 1, 8)[:, None])

    def between(self, x: Tensor) -> Tensor:
        return x * self.columns + self.rows


class ReparameterisedBranches(Construct):
    """Three branches that could be folded into one convolution."""

    def layers(self) -> None:
        self.wide, self.narrow = nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.Conv2d(12, 12, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(12) for _ in range(3))

    def between(self, x: Tensor) -> Tensor:
        return self.norms[0](self.wide(x)) + self.norms[1](self.narrow(x)) + self.norms[2](x)
