"""Small networks, each with one way in which channels can be connected; images are (2, 3, 8, 8)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(channels_in: int, channels_out: int, size: int = 3, **options: object) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, size, padding=size // 2, bias=False, **options),  # type: ignore[arg-type]
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


class Head(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean((2, 3)))


class InPlaceResidual(nn.Module):
    """`add_`, `relu_` and `hardtanh_` on a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.a = nn.Conv2d(8, 12, 3, padding=1)
        self.b = nn.Conv2d(12, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.relu6 = nn.ReLU6(inplace=True)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.b(self.relu6(self.a(x))))
        y += x
        return self.head(self.relu6(y))


class Concat(nn.Module):
    """Three pieces side by side, one of them twice, one of them the image, then flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 5), conv(3, 6)
        self.c = conv(3 + 5 + 6 + 5, 7)
        self.linear = nn.Linear((5 + 7) * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        c = self.c(torch.cat([x, a, b, a], dim=1))
        return self.linear(torch.flatten(F.max_pool2d(torch.cat((a, c), 1), 2), 1))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 10)
        self.squeeze, self.excite = nn.Conv2d(10, 4, 1), nn.Conv2d(4, 10, 1)
        self.head = Head(10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = torch.sigmoid(self.excite(F.silu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(gate * x)


class SqueezeExciteLinear(nn.Module):
    """The form with linear layers, views and expand_as."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 10)
        self.squeeze, self.excite = nn.Linear(10, 4), nn.Linear(4, 10)
        self.head = Head(10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, c, _, _ = x.shape
        gate = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1).view(n, c))))
        return self.head(x * torch.sigmoid(gate).view(n, c, 1, 1).expand_as(x))


class Shuffle(nn.Module):
    """A channel shuffle between two grouped convolutions, with a depthwise one in between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 12)
        self.a = conv(12, 18, 1, groups=3)
        self.depthwise = conv(18, 18, groups=18)
        self.b = conv(18, 12, 1, groups=3)
        self.head = Head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.a(x)
        n, c, h, w = y.shape
        y = y.view(n, 3, c // 3, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
        return self.head(self.b(self.depthwise(y)) + x)


class ShuffleOtherWay(nn.Module):
    """A shuffle whose code fixes the last axis: the first one gets shorter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 12)
        self.last = conv(12, 6)
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = x.view(x.size(0), -1, 3, 8, 8).transpose(1, 2).flatten(1, 2)
        return self.head(self.last(x.unflatten(1, (4, -1)).permute(0, 2, 1, 3, 4).reshape(x.shape) * y))


class Branches(nn.Module):
    """Chunks of a channel axis that take different ways and meet again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 12)
        self.a = conv(6, 6)
        self.b = conv(12, 8)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, dim=1)
        return self.head(self.b(torch.cat([left, self.a(right)], 1)))


class Grouped(nn.Module):
    """Grouped convolutions alone: groups must stay equally wide, on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 12)
        self.grouped = nn.Conv2d(12, 8, 3, groups=4)
        self.last = conv(8, 5, 1)
        self.head = Head(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.grouped(self.stem(x)).relu()))


class Depthwise(nn.Module):
    """Two filters per channel, a per-channel factor, a slope per channel, a single gate channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 6)
        self.twice = nn.Conv2d(6, 12, 3, padding=1, groups=6)
        self.norm = nn.BatchNorm2d(12)
        self.slope = nn.PReLU(12)
        self.factor = nn.Parameter(torch.linspace(0.5, 1.5, 12).reshape(12, 1, 1))
        self.gate = nn.Conv2d(12, 1, 1)
        self.point = conv(12, 5, 1)
        self.head = Head(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.slope(self.norm(self.twice(self.stem(x)))) * self.factor
        return self.head(self.point(x * torch.sigmoid(self.gate(x))))


class Shared(nn.Module):
    """A block used twice, and a convolution whose weight is another's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 6)
        self.block = conv(6, 6)
        self.a, self.b = nn.Conv2d(6, 8, 1), nn.Conv2d(6, 8, 1)
        self.b.weight = self.a.weight
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.block(self.block(x))
        return self.head(F.relu(self.a(x)) * torch.tanh(self.b(y)))


class KeywordsAndLayout(nn.Module):
    """Arguments by keyword, channels last in between, means that keep their axes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 6), nn.Conv2d(6, 9, 3)
        self.mix = nn.Linear(9, 7)
        self.last = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(input=self.a(x), weight=self.b.weight, bias=self.b.bias, padding=1)
        x = self.mix(x.permute(0, 2, 3, 1))
        x = x.mean(dim=(1, 2), keepdim=True).squeeze(1).squeeze(1)
        return self.last(F.dropout(input=x.unsqueeze(0).squeeze(0), training=self.training))


SOUND = (
    InPlaceResidual,
    Concat,
    SqueezeExcite,
    SqueezeExciteLinear,
    Shuffle,
    ShuffleOtherWay,
    Branches,
    Grouped,
    Depthwise,
    Shared,
    KeywordsAndLayout,
)
"""Networks in which every group but the last can be cut."""
