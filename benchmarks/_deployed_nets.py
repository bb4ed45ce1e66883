"""Small networks of kinds that run on edge devices and that no package has: sound, poses, super-resolution, text lines.

Written from the papers that each names. Weights are random; shapes without the batch axis are in `_deployed_set`.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def block(read: int, made: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """A convolution of images, its batch norm and a ReLU."""
    convolution = nn.Conv2d(read, made, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(made), nn.ReLU())


def espcn(scale: int = 3) -> nn.Module:
    """Super-resolution by a pixel shuffle (Shi et al., CVPR 2016)."""
    return nn.Sequential(
        nn.Conv2d(1, 64, 5, padding=2),
        nn.Tanh(),
        nn.Conv2d(64, 32, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(32, scale**2, 3, padding=1),
        nn.PixelShuffle(scale),
    )


def fsrcnn(wide: int = 56, narrow: int = 12, depth: int = 4, scale: int = 2) -> nn.Module:
    """Super-resolution by one transposed convolution (Dong et al., ECCV 2016)."""

    def layer(read: int, made: int, kernel: int) -> list[nn.Module]:
        return [nn.Conv2d(read, made, kernel, padding=kernel // 2), nn.PReLU(made)]

    mapping = [each for _ in range(depth) for each in layer(narrow, narrow, 3)]
    grown = nn.ConvTranspose2d(wide, 1, 9, scale, 4, output_padding=scale - 1)
    return nn.Sequential(*layer(1, wide, 5), *layer(wide, narrow, 1), *mapping, *layer(narrow, wide, 1), grown)


def m5(classes: int = 35, width: int = 32) -> nn.Module:
    """Words from raw sound (Dai et al., ICASSP 2017)."""
    layers: list[nn.Module] = []
    for read, made, kernel, stride in [
        (1, width, 80, 16),
        (width, width, 3, 1),
        (width, 2 * width, 3, 1),
        (2 * width, 2 * width, 3, 1),
    ]:
        layers += [nn.Conv1d(read, made, kernel, stride), nn.BatchNorm1d(made), nn.ReLU(), nn.MaxPool1d(4)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2 * width, classes))


class _TimeBlock(nn.Module):
    def __init__(self, read: int, made: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv1d(read, made, 9, 2, 4, bias=False),
            nn.BatchNorm1d(made),
            nn.ReLU(),
            nn.Conv1d(made, made, 9, 1, 4, bias=False),
            nn.BatchNorm1d(made),
        )
        self.shortcut = nn.Sequential(nn.Conv1d(read, made, 1, 2, bias=False), nn.BatchNorm1d(made), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.main(x) + self.shortcut(x))


def tc_resnet8(classes: int = 12) -> nn.Module:
    """Keywords from cepstral coefficients, which are channels over time (Choi et al., Interspeech 2019)."""
    widths = (16, 24, 32, 48)
    blocks = [_TimeBlock(*pair) for pair in pairwise(widths)]
    head = (nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(widths[-1], classes))
    return nn.Sequential(nn.Conv1d(40, widths[0], 3, padding=1, bias=False), *blocks, *head)


class CausalTcn(nn.Module):
    """Dilated convolutions that see the past only, under weight normalisation (Bai et al., 2018)."""

    def __init__(self, read: int = 16, width: int = 48, levels: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.shortcut, self.head = nn.Conv1d(read, width, 1), nn.Linear(width, classes)
        self.levels = nn.ModuleList(
            nn.utils.parametrizations.weight_norm(nn.Conv1d(width if i else read, width, 3, dilation=2**i))
            for i in range(levels)
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x)
        for level, convolution in enumerate(self.levels):
            x = F.relu(convolution(F.pad(x, (2 << level, 0))))
        return self.head((x + shortcut)[..., -1])


class SimpleBaseline(nn.Module):
    """Heat maps of joints: a ResNet and three transposed convolutions (Xiao et al., ECCV 2018)."""

    def __init__(self, joints: int = 17, width: int = 256) -> None:
        super().__init__()
        from torchvision.models import resnet18

        self.backbone = nn.Sequential(*list(resnet18(weights=None).children())[:-2])
        layers: list[nn.Module] = []
        for read in (512, width, width):
            layers += [nn.ConvTranspose2d(read, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.head = nn.Sequential(*layers, nn.Conv2d(width, joints, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


class DenoisingUNet(nn.Module):
    """What a U-Net (Ronneberger et al., 2015) takes for noise is subtracted."""

    def __init__(self, width: int = 16, depth: int = 4) -> None:
        super().__init__()
        widths = [width << level for level in range(depth)]
        self.down = nn.ModuleList(
            nn.Sequential(block(read, made), block(made, made))
            for read, made in zip([3, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * each, each, 2, 2) for each in widths[:-1])
        self.mix = nn.ModuleList(nn.Sequential(block(2 * each, each), block(each, each)) for each in widths[:-1])
        self.head = nn.Conv2d(width, 3, 1)

    def forward(self, noisy: Tensor) -> Tensor:
        levels = [self.down[0](noisy)]
        for down in list(self.down)[1:]:
            levels.append(down(F.max_pool2d(levels[-1], 2)))
        x = levels.pop()
        for up, mix in reversed(list(zip(self.up, self.mix, strict=True))):
            x = mix(torch.cat([levels.pop(), up(x)], 1))
        return noisy - self.head(x)


class Siamese(nn.Module):
    """How alike two images are."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            block(3, 32, 3, 2), block(32, 64, 3, 2), block(64, 96, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.embed, self.judge = nn.Linear(96, 128), nn.Linear(128, 1)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        apart = self.embed(self.trunk(left)) - self.embed(self.trunk(right))
        return self.judge(apart.abs()).sigmoid()


class _ClipBlock(nn.Module):
    def __init__(self, read: int, made: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv3d(read, made, 3, 2, 1, bias=False),
            nn.BatchNorm3d(made),
            nn.ReLU(),
            nn.Conv3d(made, made, 3, 1, 1, bias=False),
            nn.BatchNorm3d(made),
        )
        self.shortcut = nn.Sequential(nn.Conv3d(read, made, 1, 2, bias=False), nn.BatchNorm3d(made))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.main(x) + self.shortcut(x))


def r3d_small(classes: int = 20, width: int = 16) -> nn.Module:
    """Actions in short clips by 3-D residual blocks (Tran et al., CVPR 2018)."""
    stem = (nn.Conv3d(3, width, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False), nn.BatchNorm3d(width), nn.ReLU())
    blocks = (_ClipBlock(width, 2 * width), _ClipBlock(2 * width, 4 * width))
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4 * width, classes))


class Crnn(nn.Module):
    """Lines of text: columns of a convolutional network as a sequence for two LSTMs (Shi et al., 2015)."""

    def __init__(self, classes: int = 37, hidden: int = 96) -> None:
        super().__init__()
        self.columns = nn.Sequential(
            *(block(1, 32), nn.MaxPool2d(2), block(32, 64), nn.MaxPool2d(2)),
            *(block(64, 128), nn.MaxPool2d((2, 1)), block(128, 128), nn.MaxPool2d((2, 1))),
            *(nn.Conv2d(128, 128, 2), nn.ReLU()),
        )
        self.sequence = nn.LSTM(128, hidden, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, line: Tensor) -> Tensor:
        columns = self.columns(line)[:, :, 0].transpose(1, 2)
        return self.head(self.sequence(columns)[0]).log_softmax(2)


class GruWakeWord(nn.Module):
    """Whether a spectrogram holds a word: the last state of a GRU tells."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.columns = nn.Sequential(block(1, 32, 5, 2), block(32, 32))
        self.sequence, self.head = nn.GRU(32 * 40, 64, batch_first=True), nn.Linear(64, classes)

    def forward(self, mel: Tensor) -> Tensor:
        steps = self.columns(mel).permute(0, 3, 1, 2).flatten(2)
        return self.head(self.sequence(steps)[0][:, -1])
