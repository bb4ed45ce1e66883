"""Images of shapes that are drawn here, with what a detector and a segmentation network should say of them.

Each image has one to three squares, discs and crosses of one colour each, on noise. Networks for both tasks are small
enough to be trained in a minute on one core.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE, STRIDE, SHAPES = 48, 4, 3
GRID = SIDE // STRIDE
# A detector sees a shape where its heat is above this; it is the right one if the boxes overlap by this much.
SEEN, OVERLAP = 0.3, 0.5


@dataclass(frozen=True)
class Drawn:
    """Images (N, 3, SIDE, SIDE) of shapes.

    Attributes
    ----------
    classes : (N, SIDE, SIDE), 0 where there is no shape, else 1 to SHAPES.
    heat : (N, SHAPES, GRID, GRID), 1 in the cell in which a shape's centre is.
    boxes : (N, 4, GRID, GRID), distances in cells from such a cell's centre to the shape's left, top, right, bottom.
    """

    images: Tensor
    classes: Tensor
    heat: Tensor
    boxes: Tensor

    def part(self, chosen: Tensor) -> Drawn:
        """Some of them."""
        return Drawn(self.images[chosen], self.classes[chosen], self.heat[chosen], self.boxes[chosen])


def drawn(count: int, seed: int) -> Drawn:
    """So many images; the same ones for the same seed."""
    random = torch.Generator().manual_seed(seed)
    made = Drawn(
        0.3 * torch.randn(count, 3, SIDE, SIDE, generator=random),
        torch.zeros(count, SIDE, SIDE, dtype=torch.int64),
        torch.zeros(count, SHAPES, GRID, GRID),
        torch.zeros(count, 4, GRID, GRID),
    )
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    for number in range(count):
        for _ in range(int(torch.randint(1, 4, (), generator=random))):
            kind = int(torch.randint(SHAPES, (), generator=random))
            half = int(torch.randint(4, 10, (), generator=random))
            y, x = (int(each) for each in torch.randint(half, SIDE - half, (2,), generator=random))
            across, down = (columns - x).abs(), (rows - y).abs()
            inside = (across <= half) & (down <= half)
            if kind == 1:
                inside = across**2 + down**2 <= half**2
            elif kind == 2:
                inside &= (across <= half // 3) | (down <= half // 3)
            made.images[number][:, inside] += torch.rand(3, 1, generator=random) * 1.5 - 0.25
            made.classes[number][inside] = kind + 1
            cell = y // STRIDE, x // STRIDE
            made.heat[number, kind, cell[0], cell[1]] = 1
            centre_y, centre_x = ((each + 0.5) * STRIDE for each in cell)
            ends = centre_x - x + half, centre_y - y + half, x + half - centre_x, y + half - centre_y
            made.boxes[number, :, cell[0], cell[1]] = torch.tensor(ends) / STRIDE
    return made


def _layer(read: int, made: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(read, made, 3, stride, 1, bias=False), nn.BatchNorm2d(made), nn.ReLU())


class Segmenter(nn.Module):
    """A U-Net of three levels; returns scores (N, 1 + SHAPES, SIDE, SIDE)."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([_layer(3, 16), _layer(16, 32, 2), _layer(32, 64, 2)])
        self.deep = _layer(64, 64)
        self.up = nn.ModuleList([_layer(64 + 32, 32), _layer(32 + 16, 16)])
        self.head = nn.Conv2d(16, 1 + SHAPES, 1)

    def forward(self, images: Tensor) -> Tensor:
        seen = [images]
        for layer in self.down:
            seen.append(layer(seen[-1]))
        found = self.deep(seen[-1])
        for layer, beside in zip(self.up, (seen[2], seen[1]), strict=True):
            found = layer(torch.cat([F.interpolate(found, scale_factor=2.0), beside], 1))
        return self.head(found)  # type: ignore[no-any-return]

    def loss(self, batch: Drawn) -> Tensor:
        """Cross-entropy of all pixels."""
        return F.cross_entropy(self(batch.images), batch.classes)


class Detector(nn.Module):
    """One cell for every STRIDE x STRIDE pixels; returns heat (N, SHAPES, GRID, GRID) and boxes (N, 4, GRID, GRID)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_layer(3, 16, 2), _layer(16, 32, 2))
        self.blocks = nn.ModuleList(nn.Sequential(_layer(32, 48), _layer(48, 32)) for _ in range(3))
        self.of_heat, self.of_boxes = _layer(32, 32), _layer(32, 32)
        self.heat, self.boxes = nn.Conv2d(32, SHAPES, 1), nn.Conv2d(32, 4, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = self.stem(images)
        for block in self.blocks:
            found = found + block(found)
        return self.heat(self.of_heat(found)), self.boxes(self.of_boxes(found))

    def loss(self, batch: Drawn) -> Tensor:
        """Binary cross-entropy of the heat, and the absolute error of the boxes where shapes are."""
        heat, boxes = self(batch.images)
        here = batch.heat.amax(1, keepdim=True)
        off = ((boxes - batch.boxes).abs() * here).sum() / here.sum()
        return 10 * F.binary_cross_entropy_with_logits(heat, batch.heat, pos_weight=torch.tensor(5.0)) + off


@torch.no_grad()
def mean_overlap(network: nn.Module, test: Drawn) -> float:
    """Mean over the classes of intersection over union, in percent."""
    found = network.eval()(test.images).argmax(1)
    shares = []
    for kind in range(1 + SHAPES):
        here, there = found == kind, test.classes == kind
        shares.append(float((here & there).sum() / (here | there).sum()))
    return 100 * sum(shares) / len(shares)


@torch.no_grad()
def f1(network: nn.Module, test: Drawn) -> float:
    """Harmonic mean of precision and recall of the shapes found, in percent: right kind, boxes that overlap by half."""
    heat, boxes = network.eval()(test.images)
    heat = heat.sigmoid()
    peaks = (heat > SEEN) & (heat == F.max_pool2d(heat, 3, 1, 1))
    found, right = 0, set[tuple[int, ...]]()
    for number, kind, row, column in peaks.nonzero().tolist():
        found += 1
        near = test.heat[number, kind, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
        for y, x in near.nonzero().tolist():
            true = max(0, row - 1) + y, max(0, column - 1) + x
            one = _box(boxes[number, :, row, column], row, column)
            other = _box(test.boxes[number, :, true[0], true[1]], *true)
            if _overlap(one, other) >= OVERLAP and (number, kind, *true) not in right:
                right.add((number, kind, *true))  # a second box of the same shape is wrong
                break
    return 200 * len(right) / max(1, found + int(test.heat.sum()))


def _box(sides: Tensor, row: int, column: int) -> tuple[float, float, float, float]:
    left, top, right, bottom = sides.tolist()
    return column - left, row - top, column + right, row + bottom


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = [max(0.0, each[2] - each[0]) * max(0.0, each[3] - each[1]) for each in (one, other)]
    return shared / max(sum(areas) - shared, 1e-9)
