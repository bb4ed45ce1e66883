"""Channels side by side and taken apart: concatenation, chunks, splits, slices, stacks, shuffles, padding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.constructs.base import Construct


class Concatenation(Construct):
    channels = 12 + 5 + 7

    def layers(self) -> None:
        self.a, self.b = nn.Conv2d(12, 5, 1), nn.Conv2d(12, 7, 3, padding=1)

    def between(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.a(x), self.b(x)], 1)


class ConcatenationWithNothing(Construct):
    """An encoder without a map of some size hands on one of no channels."""

    def between(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        return torch.cat([x, torch.empty([n, 0, h, w], dtype=x.dtype)], 1)


class DenseBlock(Construct):
    channels = 12 + 4 + 4

    def layers(self) -> None:
        self.a, self.b = nn.Conv2d(12, 4, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1)

    def between(self, x: Tensor) -> Tensor:
        x = torch.cat([x, F.relu(self.a(x))], 1)
        return torch.cat([x, F.relu(self.b(x))], 1)


class SplitAtMultiples(Construct):
    """One part is a width that is kept, the other one twice as long: channel j of every third goes together."""

    def layers(self) -> None:
        self.width = 4

    def between(self, x: Tensor) -> Tensor:
        left, right = x.split([self.width, 2 * self.width], 1)
        return torch.cat([right, left], 1)


class ConcatenationOfPixels(Construct):
    def layers(self) -> None:
        self.a = nn.Conv2d(12, 12, 1)

    def between(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.a(x)], dim=2)


class Chunks(Construct):
    def layers(self) -> None:
        self.a = nn.Conv2d(6, 6, 3, padding=1)

    def between(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        return torch.cat([left, self.a(right)], 1)


class ChunksOfUnequalSize(Construct):
    """Of 3, 3 and 2 channels: the first two of each go together, what is beyond stays."""

    frozen = ("a",)
    channels = 8

    def layers(self) -> None:
        self.a = nn.Conv2d(12, 8, 1)

    def between(self, x: Tensor) -> Tensor:
        one, two, three = self.a(x).chunk(3, 1)
        return torch.cat([one.sigmoid(), one + two, three], 1)


class ChunksAlongPixels(Construct):
    def between(self, x: Tensor) -> Tensor:
        top, bottom = x.chunk(2, 2)
        return top * bottom


class SplitBySizeInAttribute(Construct):
    def layers(self) -> None:
        self.width = 4
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))

    def between(self, x: Tensor) -> Tensor:
        a, b, c = x.split(self.width, 1)
        b = self.convs[0](b)
        return torch.cat([a, b, self.convs[1](b + c)], 1)


class SplitByHalfOfAttribute(Construct):
    def layers(self) -> None:
        self.expanded = 12
        self.a = nn.Conv2d(6, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 6, 1)

    def between(self, x: Tensor) -> Tensor:
        kept, worked_on = x.split(self.expanded // 2, dim=1)
        return torch.cat([kept, self.b(self.a(worked_on))], 1)


class SplitByListOfSizes(Construct):
    def layers(self) -> None:
        self.sizes = [5, 3, 4]
        self.convs = nn.ModuleList(nn.Conv2d(n, n, k, padding=k // 2, groups=n) for n, k in ((5, 1), (3, 3), (4, 5)))

    def between(self, x: Tensor) -> Tensor:
        pieces = torch.split(x, self.sizes, 1)
        return torch.cat([conv(piece) for conv, piece in zip(self.convs, pieces, strict=True)], 1)


class SplitByAttributeAndTheRest(Construct):
    def layers(self) -> None:
        self.dim, self.partial = 12, 5
        self.a = nn.Conv2d(5, 5, 3, padding=1)

    def between(self, x: Tensor) -> Tensor:
        worked_on, rest = torch.split(x, [self.partial, self.dim - self.partial], dim=1)
        return torch.cat([self.a(worked_on), rest], 1)


class SplitByFixedNumber(Construct):
    """No attribute holds the number."""

    frozen = ("stem.0",)

    def between(self, x: Tensor) -> Tensor:
        left, right = x.split(6, 1)
        return torch.cat([right, left], 1)


class SplitCountedOnWhatIsRead(Construct):
    """As in FocalNet: as many queries and contexts as the layer reads channels, and one gate for each level.

    There are five gates, so that all three numbers have no share in common that could be cut instead.
    """

    def layers(self) -> None:
        self.a, self.project = nn.Conv2d(12, 12 + 12 + 5, 1), nn.Conv2d(12, 12, 1)
        self.levels = nn.ModuleList(nn.Conv2d(12, 12, 3, padding=1, groups=12) for _ in range(4))

    def between(self, x: Tensor) -> Tensor:
        c, count = x.shape[1], len(self.levels)
        query, context, gates = torch.split(self.a(x), (c, c, count + 1), 1)
        made = torch.zeros_like(x)
        for level, conv in enumerate(self.levels):
            context = F.gelu(conv(context))
            made = made + context * gates[:, level : level + 1]
        made = made + context.mean((2, 3), keepdim=True) * gates[:, count:]
        return x + query * self.project(made)


class SlicesByAttribute(Construct):
    def layers(self) -> None:
        self.shared = 5
        self.a = nn.Conv2d(12, 5, 1)

    def between(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, : self.shared] + self.a(x), x[:, self.shared :]], 1)


class SliceFromTheEnd(Construct):
    channels = 5

    def layers(self) -> None:
        self.tail = 5

    def between(self, x: Tensor) -> Tensor:
        return x[:, -self.tail :]


class SlicesOfHalves(Construct):
    """Where the halves meet, the code asks the tensor."""

    def between(self, x: Tensor) -> Tensor:
        half = x.shape[1] // 2
        return torch.cat([x[:, half:], x[:, :half]], 1)


class SlicesOfAQuarter(Construct):
    """In place; a quarter of 12 channels is 3 of them, and one of 9 is 2: rounding must not be taken for counting."""

    def between(self, x: Tensor) -> Tensor:
        quarter = x.shape[1] // 4
        y = torch.zeros_like(x)
        y[:, :quarter] = torch.roll(x[:, :quarter], 1, 2)
        y[:, quarter:] = x[:, quarter:]
        return y


class SomeChannelsConvolved(Construct):
    """As in FasterNet: the slice is assigned to."""

    def layers(self) -> None:
        self.worked_on = 5
        self.a = nn.Conv2d(5, 5, 3, padding=1)

    def between(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[:, : self.worked_on] = self.a(x[:, : self.worked_on])
        return x


class ChannelsShiftedInTime(Construct):
    """As in TSM, with images of a batch as times; a quarter is changed once more, which an older view sees."""

    def between(self, x: Tensor) -> Tensor:
        quarter = x.shape[1] // 4
        y = torch.zeros_like(x)
        first = y[:, :quarter]
        y[:-1, :quarter] = x[1:, :quarter]
        y[1:, quarter : 2 * quarter] = x[:-1, quarter : 2 * quarter]
        y[:, 2 * quarter :] = x[:, 2 * quarter :]
        first[..., 0] += 1
        return y


class SlicesOfWhatAnotherHas(Construct):
    """A piece is as long as another tensor."""

    def layers(self) -> None:
        self.a = nn.Conv2d(12, 5, 1)

    def between(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return torch.cat([x[:, : y.size(1)] + y, x[:, y.size(1) :]], 1)


class SliceOfPixels(Construct):
    def between(self, x: Tensor) -> Tensor:
        return x[:, :, 1:7:2, :-1]


class StackAndMean(Construct):
    channels = 8

    def layers(self) -> None:
        self.a, self.b = nn.Conv2d(12, 8, 1), nn.Conv2d(12, 8, 1)

    def between(self, x: Tensor) -> Tensor:
        return torch.stack([self.a(x), self.b(x)], 0).mean(0)


class ChannelShuffleByViews(Construct):
    def layers(self) -> None:
        self.a, self.b = nn.Conv2d(12, 12, 1, groups=3), nn.Conv2d(12, 12, 1, groups=3)

    def between(self, x: Tensor) -> Tensor:
        x = self.a(x)
        n, c, h, w = x.shape
        return self.b(x.view(n, 3, c // 3, h, w).transpose(1, 2).contiguous().view(n, c, h, w))


class ChannelShuffleAsOneOperator(Construct):
    def layers(self) -> None:
        self.shuffle, self.b = nn.ChannelShuffle(4), nn.Conv2d(12, 12, 1, groups=3)

    def between(self, x: Tensor) -> Tensor:
        return self.b(self.shuffle(x))


class PixelShuffle(Construct):
    channels = 3

    def between(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(x, 2)


class PixelUnshuffle(Construct):
    channels = 48

    def between(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, 2)


class SpaceToDepthByViews(Construct):
    channels = 48

    def between(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4)
        return x.reshape(n, -1, h // 2, w // 2)


class FocusOfPixels(Construct):
    channels = 48

    def between(self, x: Tensor) -> Tensor:
        return torch.cat([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)


class Patches(Construct):
    """The pixels of a patch become channels, and pixels again."""

    def layers(self) -> None:
        self.a = nn.Conv1d(12 * 4, 12 * 4, 1)

    def between(self, x: Tensor) -> Tensor:
        return F.fold(self.a(F.unfold(x, 2, stride=2)), x.shape[-2:], 2, stride=2)


class EachChannelTwice(Construct):
    channels = 24

    def between(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(2, 1)


class RepeatedChannels(Construct):
    channels = 24

    def between(self, x: Tensor) -> Tensor:
        return x.repeat(1, 2, 1, 1)


class ChannelsRepeatedInTurn(Construct):
    channels = 24

    def between(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(2, dim=1).repeat_interleave(2, dim=-1)


class CheapFeatures(Construct):
    """The ghost of a feature map beside it, cut off where the code says."""

    channels = 16

    def layers(self) -> None:
        self.wanted = 16
        self.primary, self.cheap = nn.Conv2d(12, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)

    def between(self, x: Tensor) -> Tensor:
        x = self.primary(x)
        return torch.cat([x, self.cheap(x)], 1)[:, : self.wanted]


class WithoutGradientsOrAutocast(Construct):
    """Both become graphs of their own in the exported program, here one within the other."""

    channels = 22

    def layers(self) -> None:
        self.a, self.b = nn.Conv2d(12, 10, 1), nn.Conv2d(10, 10, 1)

    def between(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.a(x).relu()
            with torch.autocast("cpu", enabled=False):
                y = self.b(y)
        return torch.cat([x, y], 1)


class PiecesOfOneWeight(Construct):
    """Two layers whose weights and biases are one parameter each, as wide as what they read and twice as wide."""

    channels = 24

    def layers(self) -> None:
        self.weight, self.bias = nn.Parameter(torch.randn(36, 12) / 4), nn.Parameter(torch.randn(36))

    def pieces(self, packed: Tensor, width: int) -> tuple[Tensor, ...]:
        return packed.split([width, 2 * width])

    def between(self, x: Tensor) -> Tensor:
        rows, width = x.movedim(1, -1), x.shape[1]
        for weight, bias in zip(self.pieces(self.weight, width), self.pieces(self.bias, width), strict=True):
            rows = F.relu(F.linear(rows, weight, bias))
        return rows.movedim(-1, 1)


class SlicesOfOneWeight(PiecesOfOneWeight):
    def pieces(self, packed: Tensor, width: int) -> tuple[Tensor, ...]:
        return packed[:width], packed[width:]


class OneChannelForTheShape(Construct):
    """The code looks at one channel, and only at its shape."""

    def between(self, x: Tensor) -> Tensor:
        return x + torch.arange(x[:, -1].shape[-1], dtype=x.dtype)


class ShapeOfOneChannel(Construct):
    """Ones for each place, of which only the shape is the image's."""

    def between(self, x: Tensor) -> Tensor:
        return x + 0.5 * torch.ones_like(x[:, 0]).unsqueeze(1)


class ShiftedInTime(Construct):
    """A quarter of the channels is the next image's and one the last one's, as in TSM; as many as images in a row."""

    shape = (6, 3, 8, 8)

    def layers(self) -> None:
        self.images = 3
        self.mix = nn.Conv2d(12, 12, 1)

    def shift(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.view(n // self.images, self.images, c, h, w)
        fold = c // 4
        shifted = torch.zeros_like(x)
        shifted[:, :-1, :fold] = x[:, 1:, :fold]
        shifted[:, 1:, fold : 2 * fold] = x[:, :-1, fold : 2 * fold]
        shifted[:, :, 2 * fold :] = x[:, :, 2 * fold :]
        return shifted.view(n, c, h, w)

    def between(self, x: Tensor) -> Tensor:
        return x + self.mix(self.shift(x))


class EvenAndOdd(Construct):
    """Even and odd channels, told apart by views that join images and channels, as in ShuffleNetV2's own code."""

    def layers(self) -> None:
        self.mix = nn.Conv2d(6, 6, 3, padding=1)

    def between(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        pairs = x.reshape(n * c // 2, 2, h * w).permute(1, 0, 2)
        pairs = pairs.reshape(2, -1, c // 2, h, w)
        return torch.cat([pairs[0], self.mix(pairs[1])], 1)
