"""A detector of YOLOv8's blocks with a simple loss, so small that ``run.py --quick`` has it trained in seconds.

It needs nothing of ultralytics' and stands for the detector that net.py makes: what it reads and returns is the same.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from detect import prepared
from shapes import NAMES, drawn
from torch import Tensor, nn

CLASSES = len(NAMES)
SIDE = 64
STRIDES = (4, 8)
# A box ends up to BINS - 1 strides away from its place.
BINS = 8


def layer(read: int, made: int, side: int = 3, stride: int = 1) -> nn.Sequential:
    """A convolution with batch norm and SiLU."""
    convolution = nn.Conv2d(read, made, side, stride, side // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(made), nn.SiLU())


class Stage(nn.Module):
    """Half of the channels pass a residual block; the next layer reads them before it and after it."""

    def __init__(self, read: int, made: int) -> None:
        super().__init__()
        half = made // 2
        self.first, self.last = layer(read, made, 1), layer(3 * half, made, 1)
        self.block = nn.Sequential(layer(half, half), layer(half, half))

    def forward(self, x: Tensor) -> Tensor:
        past, taken = self.first(x).chunk(2, 1)
        return self.last(torch.cat([past, taken, taken + self.block(taken)], 1))


class Tiny(nn.Module):
    """Images (N, 3, SIDE, SIDE) of 0 to 1 to boxes and scores (N, 4 + CLASSES, places), the boxes in pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(layer(3, 16, stride=2), layer(16, 32, stride=2), Stage(32, 32))
        self.coarse = layer(32, 64, stride=2)
        self.up = layer(64 + 32, 32)
        self.boxes, self.scores = (
            nn.ModuleList(nn.Conv2d(read, made, 1) for read in (32, 64)) for made in (4 * BINS, CLASSES)
        )
        for head in self.scores:  # few places have a shape
            nn.init.constant_(head.bias, -4.0)
        places, strides = grid()
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("strides", strides, persistent=False)
        self.register_buffer("bins", torch.arange(BINS, dtype=torch.float32), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        coarse = self.coarse(fine)
        maps = [self.up(torch.cat([F.interpolate(coarse, scale_factor=2.0), fine], 1)), coarse]
        scores = torch.cat([head(each).flatten(2) for head, each in zip(self.scores, maps, strict=True)], 2)
        sides = torch.cat([head(each).flatten(2) for head, each in zip(self.boxes, maps, strict=True)], 2)
        # How far left, up, right and down of its place a box ends: the mean of a distribution over the bins.
        shares = sides.unflatten(1, (4, BINS)).softmax(2)
        ends = (shares * self.bins[:, None]).sum(2) * self.strides
        before, after = ends.chunk(2, 1)
        return torch.cat([self.places + (after - before) / 2, before + after, scores.sigmoid()], 1)


def grid() -> tuple[Tensor, Tensor]:
    """The centre of each place in pixels (2, places), and the stride there (places,)."""
    centres = [torch.arange(stride / 2, SIDE, stride) for stride in STRIDES]
    places = [torch.stack(torch.meshgrid(each, each, indexing="xy")).flatten(1) for each in centres]
    strides = [torch.full((each.shape[1],), float(stride)) for each, stride in zip(places, STRIDES, strict=True)]
    return torch.cat(places, 1), torch.cat(strides)


def make() -> nn.Module:
    """The unpruned network."""
    return Tiny()


def made(count: int, seed: int) -> tuple[Tensor, list[Tensor]]:
    """Images (count, 3, SIDE, SIDE) of shapes, and for each its boxes (shapes, 5): class, centre and size in pixels."""
    random = np.random.default_rng(seed)
    images, boxes = [], []
    for _ in range(count):
        image, lines = drawn(random, SIDE)
        images.append(prepared(image, SIDE, SIDE)[0])
        boxes.append(torch.tensor([[float(each) for each in line.split()] for line in lines]))
        boxes[-1][:, 1:] *= SIDE
    return torch.from_numpy(np.stack(images)), boxes


def images() -> Tensor:
    """Some images, as ``--example``: they tell which filters matter."""
    return made(32, 1)[0]


def wanted(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (CLASSES, places) and boxes (4, places) of a picture: places in the middle of a box have it."""
    places, _ = grid()
    scores, of_place = torch.zeros(CLASSES, places.shape[1]), torch.zeros(4, places.shape[1])
    for kind, *box in boxes.tolist():
        centre, size = torch.tensor(box[:2])[:, None], torch.tensor(box[2:])[:, None]
        here = ((places - centre).abs() < size / 4).all(0)
        scores[:, here] = 0.0
        scores[int(kind), here] = 1.0
        of_place[:, here] = torch.tensor(box)[:, None]
    return scores, of_place


def train(model: nn.Module, steps: int) -> nn.Module:
    """Train it by cross-entropy of the scores and the distance between boxes; this stands for the training you have."""
    torch.manual_seed(0)
    pictures, boxes = made(400, 2)
    scores, of_place = (torch.stack(each) for each in zip(*map(wanted, boxes), strict=True))
    optimiser = torch.optim.Adam(model.train().parameters(), 3e-3)
    for _ in range(steps):
        some = torch.randint(len(pictures), (32,))
        found = model(pictures[some])
        here = scores[some].amax(1, keepdim=True)
        off = ((found[:, :4] - of_place[some]).abs() * here).sum() / here.sum()
        missed = F.binary_cross_entropy(found[:, 4:], scores[some], reduction="sum") / here.sum()
        optimiser.zero_grad()
        (off / 4 + missed).backward()
        optimiser.step()
    return model.eval()
