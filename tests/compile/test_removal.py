"""A removed branch leaves no kernel behind: what is compiled then is what the table was asked for, less the branch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from aap_hw.compile.front.partition import partition
from aap_hw.compile.front.removal import removable
from aap_hw.compile.keys.precision import FP32, HALF, NetworkPrecision
from aap_hw.graph import ChannelGraph
from aap_hw.models import zoo
from tests.compile.running import assert_compiled_equals_pytorch
from tests.graph.blocks import REMOVABLE, Residual, conv, net
from tests.graph.branches import BODIES, Behind, Mlp, Net, OnTokens


@pytest.mark.parametrize(
    ("name", "side", "precision"),
    [
        pytest.param("resnet18", 64, FP32, marks=pytest.mark.slow),
        pytest.param("resnet20", 32, HALF, marks=pytest.mark.slow),
        pytest.param("mobilenetv2", 64, FP32, marks=pytest.mark.slow),
        *((kind, 6, FP32) for kind in BODIES),
    ],
)
def test_kernels_without_some_blocks_are_the_others_of_the_unpruned_network(
    name: str, side: int, precision: NetworkPrecision
) -> None:
    model = Net(BODIES[name][0]()).eval() if name in BODIES else zoo.build(name).module
    example = (torch.zeros(1, 3, side, side),)
    graph = ChannelGraph.trace(model, example)
    network, blocks = removable(partition(graph, precision), graph, graph, precision)
    assert blocks == graph.blocks != ()
    for some in (blocks, blocks[::2], blocks[-1:]):
        keep: dict[str, list[int]] = {group: [] for block in some for group in block.groups}
        without = partition(ChannelGraph.trace(graph.cut(model, keep), example), precision)
        widths = {**network.dense, **dict.fromkeys(keep, 0)}
        left = [kernel for kernel in network.kernels if not kernel.is_removed(widths)]
        assert [kernel.at(widths) for kernel in left] == [kernel.at(without.dense) for kernel in without.kernels]
        assert sum(kernel.parameters(widths) for kernel in network.kernels) == sum(
            kernel.parameters(without.dense) for kernel in without.kernels
        )


def of_modules() -> nn.Module:
    return Net(nn.Sequential(*(BODIES[kind][0]() for kind in ("ConvNeXt", "C2f", "C3k2")))).eval()


@pytest.mark.parametrize(
    "made",
    [lambda: net(*REMOVABLE.values()), pytest.param(of_modules, marks=pytest.mark.slow)],
    ids=["blocks", "modules"],
)
def test_network_without_branches_computes_what_pytorch_computes(made: Callable[[], nn.Module], tmp_path: Path) -> None:
    example, model = torch.randn(1, 3, 12, 12), made()
    graph = ChannelGraph.trace(model, (example,))
    assert graph.blocks
    keep: dict[str, list[int]] = {group: [] for block in graph.blocks[::2] for group in block.groups}
    assert_compiled_equals_pytorch(graph.cut(model, keep), example, tmp_path)


def test_block_that_leaves_an_activation_behind_is_not_offered() -> None:
    linear = Residual(conv(8, 16), nn.ReLU(), conv(16, 8), relu=False)
    rectified = Residual(conv(8, 16), nn.ReLU(), conv(16, 8))
    graph = ChannelGraph.trace(model := net(linear, rectified), (torch.zeros(1, 3, 12, 12),))
    network = partition(graph)
    assert len(graph.blocks) == 2
    # Behind the first block there are negative values, so that the second one's activation has something to do.
    assert removable(network, graph, graph)[1] == graph.blocks[:1]
    without = partition(ChannelGraph.trace(graph.cut(model, {graph.blocks[1].name: []}), (torch.zeros(1, 3, 12, 12),)))
    assert "relu" in [kernel.key.op for kernel in without.kernels]
    assert all(a.name != b.name for a, b in pairwise(without.kernels))


@pytest.mark.parametrize(
    ("pieces", "offered"),
    [
        ("block depthwise", []),
        ("block conv", [0]),
        ("depthwise block block conv", [1]),
        ("conv block block depthwise", [0]),
        ("conv block block conv", [0, 1]),
    ],
)
def test_no_shortcut_becomes_pitched_when_blocks_are_removed(pieces: str, offered: list[int]) -> None:
    made = {
        "block": lambda: Residual(conv(8, 16), nn.ReLU(), conv(16, 8), relu=False),
        "depthwise": lambda: conv(8, 8, groups=8),
        "conv": lambda: conv(8, 8),
    }
    model, example = net(*[made[piece]() for piece in pieces.split()]), (torch.zeros(1, 3, 12, 12),)
    graph = ChannelGraph.trace(model, example)
    network = partition(graph)
    network, found = removable(network, graph, graph)
    assert found == tuple(graph.blocks[i] for i in offered)
    for some in [found[i:j] for j in range(len(found) + 1) for i in range(j)]:
        keep: dict[str, list[int]] = {group: [] for block in some for group in block.groups}
        without = partition(ChannelGraph.trace(graph.cut(model, keep), example))
        widths = {**network.dense, **dict.fromkeys(keep, 0)}
        left = [kernel for kernel in network.kernels if not kernel.is_removed(widths)]
        assert [kernel.key for kernel in left] == [kernel.key for kernel in without.kernels]


class Mixing(nn.Module):
    """An MLP over tokens: its sum lies in the order of tokens, whatever the shortcut lies in."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(12), nn.Sequential(nn.Linear(36, 20), nn.GELU(), nn.Linear(20, 36))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(self.norm(x).transpose(1, 2)).transpose(1, 2)


def test_kernels_around_an_mlp_over_tokens_are_foretold_without_any_branch() -> None:
    body = OnTokens(Behind(Mlp()), Behind(Mlp()), Mixing(), Behind(Mlp()))
    graph = ChannelGraph.trace(Net(body).eval(), (torch.zeros(1, 3, 6, 6),))
    network, found = removable(partition(graph), graph, graph)
    assert [block.branch for block in found] == ["linear_1", "linear_3", "linear_7"]  # what mixes tokens has no width
    for block in found:
        without = partition(graph, without=[block])
        left = [kernel for kernel in network.kernels if kernel.name in {each.name for each in without.kernels}]
        assert [kernel.at(network.dense) for kernel in left] == [k.at(network.dense) for k in without.kernels]
