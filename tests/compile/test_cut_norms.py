"""Kernels of norms follow when the channels that they are taken over are cut, each norm in one network."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aap_hw.compile.families.slow import SlowCall, is_slow
from aap_hw.compile.front.partition import partition
from aap_hw.graph import ChannelGraph
from tests.compile.running import assert_compiled_equals_pytorch


class GlobalResponse(nn.Module):
    """The norm of ConvNeXt V2, over rows (N, H, W, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(channels)), nn.Parameter(torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        response = x.norm(p=2, dim=(1, 2), keepdim=True)
        return x + self.bias + self.weight * (x * (response / (response.mean(dim=-1, keepdim=True) + 1e-6)))


class EachNorm(nn.Module):
    """Layer norm of images, written out and not, of one group, of rows, root mean square, lengths, responses."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.group_norm = nn.Conv2d(3, 20, 3, stride=2, padding=1), nn.GroupNorm(1, 20)
        self.second, self.gain = nn.Conv2d(20, 24, 1), nn.Parameter(torch.rand(24) + 0.5)
        self.layer_norm, self.expand, self.response = nn.LayerNorm(24), nn.Linear(24, 28), GlobalResponse(28)
        self.project, self.root_mean_square = nn.Linear(28, 24), nn.RMSNorm(24)
        self.positions, self.head = nn.Parameter(torch.randn(1, 25, 24)), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.group_norm(self.stem(x)).relu())
        centred = x - x.mean(1, keepdim=True)
        x = centred / (centred.pow(2).mean(1, keepdim=True) + 1e-6).sqrt() * self.gain[:, None, None]
        rows = self.layer_norm(x.permute(0, 2, 3, 1))
        rows = x.permute(0, 2, 3, 1) + self.project(self.response(F.gelu(self.expand(rows))))
        tokens = rows.flatten(1, 2)
        tokens = F.normalize(tokens, dim=-1, eps=1e-6) + self.positions.expand(len(x), -1, -1)
        return self.head(self.root_mean_square(tokens).mean(1))  # type: ignore[no-any-return]


def test_kernels_of_norms_over_channels_follow_cuts_to_odd_widths(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, image = EachNorm().eval(), torch.randn(2, 3, 10, 10)
    graph = ChannelGraph.trace(net, (image,))
    whole = partition(graph)
    assert not whole.fixed
    assert not whole.slow_path
    assert {group.name: group.renormalised is not None for group in graph.groups if not group.frozen} == {
        "stem": True, "second": True, "expand": True,
    }  # fmt: skip
    keep = {"stem": [*range(0, 20, 2), 3], "second": [*range(3, 22)], "expand": [*range(0, 26, 2), 1, 27]}
    assert_kernels_follow(net, graph, keep, image, tmp_path)


def test_a_norm_over_channels_and_pixels_follows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 20, 3, stride=5), nn.LayerNorm([20, 2, 2]), nn.ReLU(), nn.Conv2d(20, 5, 2)).eval()
    nn.init.normal_(net[1].weight)
    image = torch.randn(2, 3, 10, 10)
    graph = ChannelGraph.trace(net, (image,))
    assert not partition(graph).slow_path
    assert graph.group("0").renormalised
    assert_kernels_follow(net, graph, {"0": [*range(0, 20, 2), 3]}, image, tmp_path)


def assert_kernels_follow(
    net: nn.Module, graph: ChannelGraph, keep: dict[str, list[int]], image: Tensor, folder: Path
) -> None:
    """A cut network has the kernels that the whole one foretold, and they compute what PyTorch does."""
    whole, smaller = partition(graph), graph.cut(net, keep)
    widths = whole.dense | {name: len(kept) for name, kept in keep.items()}
    cut = partition(ChannelGraph.trace(smaller, (image,)))
    for one, other in zip(whole.kernels, cut.kernels, strict=True):
        foretold, found = one.at(widths), other.at(cut.dense)
        assert SlowCall.of(foretold) == SlowCall.of(found) if is_slow(one.key) else foretold == found
    assert_compiled_equals_pytorch(smaller, image, folder)
