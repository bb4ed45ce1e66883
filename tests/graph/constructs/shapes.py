"""Axes and pixels: flattening, layouts, pooling, resampling, several outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.constructs.base import Construct
from tests.graph.nets import conv


class FlattenWithPositions(Construct):
    def layers(self) -> None:
        self.a, self.linear = nn.Conv2d(12, 5, 3, padding=1), nn.Linear(5 * 16, 7)
        self.back = nn.Linear(7, 12)

    def between(self, x: Tensor) -> Tensor:
        y = torch.flatten(F.max_pool2d(self.a(x), 2), 1)
        return x + self.back(F.relu(self.linear(y)))[:, :, None, None]


class ViewWithPositions(Construct):
    def layers(self) -> None:
        self.linear = nn.Linear(12 * 64, 12)

    def between(self, x: Tensor) -> Tensor:
        return x + self.linear(x.view(x.size(0), -1)).unsqueeze(-1).unsqueeze(-1)


class FlattenOfConcatenation(Construct):
    channels = 7

    def layers(self) -> None:
        self.a, self.linear = nn.Conv2d(12, 5, 1), nn.Linear((12 + 5) * 4, 7)

    def between(self, x: Tensor) -> Tensor:
        y = F.adaptive_avg_pool2d(torch.cat([x, self.a(x)], 1), 2).flatten(1)
        return self.linear(y).reshape(2, -1, 1, 1)


class ChannelsLast(Construct):
    def layers(self) -> None:
        self.factor = nn.Parameter(torch.linspace(0.5, 1.5, 12))

    def between(self, x: Tensor) -> Tensor:
        return (x.permute(0, 2, 3, 1) * self.factor).contiguous().permute(0, 3, 1, 2)


class TokensAndBack(Construct):
    def layers(self) -> None:
        self.a = nn.Linear(12, 12)

    def between(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        tokens = self.a(x.flatten(2).transpose(1, 2))
        return tokens.transpose(1, 2).reshape(n, -1, h, w)


class ViewCountedOnWhatALayerReads(Construct):
    """As many channels as before: the layer's go together with those that it reads."""

    def layers(self) -> None:
        self.a = nn.Conv2d(12, 12, 1)

    def between(self, x: Tensor) -> Tensor:
        return self.a(x).flatten(2).view(2, x.shape[1], 8, 8)


class MatricesTransposed(Construct):
    """Tokens and back by properties."""

    def layers(self) -> None:
        self.a = nn.Linear(12, 12)

    def between(self, x: Tensor) -> Tensor:
        return self.a(x.flatten(2).mT).mH.unflatten(2, x.shape[2:])


class PixelsAsFeatures(Construct):
    """A linear layer along the pixels, once for each channel: the channels pass, and its filters are none."""

    frozen = ("a", "b")

    def layers(self) -> None:
        self.a, self.b = nn.Linear(8, 10), nn.Linear(10, 8)

    def between(self, x: Tensor) -> Tensor:
        return x + self.b(F.relu(self.a(x)))


class PlacesMixedByMatrices(Construct):
    """Products with a graph's edges, on either side and by letters: the channels pass."""

    def layers(self) -> None:
        self.register_buffer("edges", torch.randn(64, 64) / 8)

    def between(self, x: Tensor) -> Tensor:
        tokens = F.relu(self.edges @ x.flatten(2).mT)
        tokens = F.relu(torch.einsum("ij,bjc->bic", self.edges, tokens))
        return (tokens.mT @ self.edges.mT @ self.edges).unflatten(2, x.shape[2:])


class ViewCountedOnWhatIsRead(Construct):
    """The code counts what the layer reads where it means what the layer makes."""

    def layers(self) -> None:
        self.a = nn.Conv2d(12, 12, 1)

    def between(self, x: Tensor) -> Tensor:
        return self.a(x).flatten(2).view(*x.shape)


class UnflattenedByAttributes(Construct):
    """Methods of other classes here, which are called the same, take channels apart by other lengths."""

    def layers(self) -> None:
        self.a, self.parts, self.width = nn.Conv2d(12, 12, 1), 3, 4

    def between(self, x: Tensor) -> Tensor:
        return self.a(x).unflatten(1, (self.parts, self.width)).flatten(1, 2)


class Shares(nn.Module):
    """Rows of equally many channels: only one of the two lengths is an attribute, and that is not to change."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 2

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, self.rows, c // self.rows, h, w).transpose(1, 2).reshape(n, c, h, w)


class ShuffledBetweenGroups(Construct):
    """Channels of one fate are in both rows, twice in each, so that the number of rows divides how many there are."""

    def layers(self) -> None:
        self.a, self.shares = nn.Conv2d(12, 12, 1, groups=2), Shares()
        self.b = nn.Conv2d(12, 12, 1, groups=2)

    def between(self, x: Tensor) -> Tensor:
        return self.b(self.shares(self.a(x)))


class LengthsInSequences(Construct):
    """Lengths of views in lists and tuples of the module: all but the first, one of several, and all of a copy."""

    def layers(self) -> None:
        self.a, self.b, self.c = nn.Linear(12, 10 * 4), nn.Linear(12, 14 * 4), nn.Linear(12, 12)
        self.behind, self.widths, self.place, self.one = [10, 2, 2], (10, 14), [2, 2], (1, 12, 1, 1)
        self.last_of_a, self.last_of_b = nn.Conv2d(10, 12, 1), nn.Conv2d(14, 12, 1)

    def between(self, x: Tensor) -> Tensor:
        code = x.mean((2, 3))
        shape = [x.size(0)] + self.behind  # noqa: RUF005
        a = self.last_of_a(self.a(code).view(shape))
        b = self.last_of_b(self.b(code).view(-1, self.widths[-1], *self.place))
        one = list(self.one)
        one[0] = x.shape[0]
        return x + F.interpolate(a + b, scale_factor=4) + self.c(code).reshape(one)


class UnpooledToTheirPlaces(Construct):
    """As in SegNet: another convolution's values go to where the maxima were."""

    def layers(self) -> None:
        self.a = nn.Conv2d(12, 12, 1)

    def between(self, x: Tensor) -> Tensor:
        y, places = F.max_pool2d(x, 2, return_indices=True)
        return F.max_unpool2d(self.a(y), places, 2)


class UnpooledOfWindowsThatOverlap(Construct):
    def between(self, x: Tensor) -> Tensor:
        y, places = F.max_pool2d(x, 3, 2, 1, return_indices=True)
        return F.max_unpool2d(y, places, 3, 2, 1, (8, 8))


class ColumnsOfATurnedImage(Construct):
    """As CRNNs read text: the rows are pooled while the channels stand where columns do."""

    def layers(self) -> None:
        self.pool = nn.AdaptiveAvgPool2d((None, 1))

    def between(self, x: Tensor) -> Tensor:
        lines = self.pool(x.permute(0, 3, 1, 2)).squeeze(3)
        return x * torch.sigmoid(lines).transpose(1, 2).unsqueeze(2)


class PickedPixels(Construct):
    """Rows and columns by lists of numbers; pairs of them move no axis."""

    def between(self, x: Tensor) -> Tensor:
        some = torch.tensor([[0, 2], [5, 4]])
        return x[:, :, some, some + 1] + torch.index_select(x, 3, torch.tensor([1, 6]))[:, :, :2]


class MaximumPooling(Construct):
    def between(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, 2, 1, ceil_mode=True)


class AveragePooling(Construct):
    def between(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(F.adaptive_max_pool2d(x, 6), (2, 1))


class StripPooling(Construct):
    def layers(self) -> None:
        self.a = nn.Conv2d(12, 12, (3, 1), padding=(1, 0))

    def between(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.a(F.adaptive_avg_pool2d(x, (None, 1))))


class Upsampling(Construct):
    channels = 24

    def between(self, x: Tensor) -> Tensor:
        small = F.interpolate(F.avg_pool2d(x, 2), size=x.shape[2:], mode="bilinear", align_corners=False)
        return torch.cat([small, F.interpolate(F.avg_pool2d(x, 4), scale_factor=4)], 1)


class FeaturePyramid(Construct):
    channels = 9

    def layers(self) -> None:
        self.down = conv(12, 10, stride=2)
        self.lateral, self.top = nn.Conv2d(12, 9, 1), nn.Conv2d(10, 9, 1)

    def between(self, x: Tensor) -> Tensor:
        return self.lateral(x) + F.interpolate(self.top(self.down(x)), size=x.shape[-2:], mode="nearest")


class ReflectedBorders(Construct):
    def between(self, x: Tensor) -> Tensor:
        return F.pad(F.pad(x, (1, 0, 1, 0), mode="reflect"), (0, 1, 0, 1), value=0.5)


class RolledPixels(Construct):
    def between(self, x: Tensor) -> Tensor:
        return torch.roll(x, (1, 2), dims=(2, 3)) + x.flip(3)


class SoftmaxOverPixels(Construct):
    def between(self, x: Tensor) -> Tensor:
        return x * x.flatten(2).softmax(-1).view(x.shape)


class StatisticsPerChannel(Construct):
    def between(self, x: Tensor) -> Tensor:
        return (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True) + 1e-3).sqrt() + x.norm(dim=(2, 3))[
            :, :, None, None
        ]


class Scale(nn.Module):
    """As MetaFormer scales its branches: the lengths of a view are one attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.size = (12, 1, 1)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 12))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.view(self.size)


class FactorInAShapeOfAnAttribute(Construct):
    def layers(self) -> None:
        self.scale = Scale()

    def between(self, x: Tensor) -> Tensor:
        return x + self.scale(x.sigmoid())
