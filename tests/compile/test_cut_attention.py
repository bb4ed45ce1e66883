"""Attention whose queries, keys and values, or whose heads, were cut compiles to what PyTorch computes.

Its kernels are those that the uncut network foretold, at the widths of the cut.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import tvm
from torch import Tensor, nn

from aap_hw.compile.front.partition import partition
from aap_hw.compile.library.build import build_kernel
from aap_hw.graph import ChannelGraph
from tests.compile.running import assert_compiled_equals_pytorch, target
from tests.graph.attention_nets import DIM, Fused, Separate, WrittenOut


class Transformer(nn.Module):
    """Blocks that write attention in different ways."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, DIM, 2, 2), nn.Linear(DIM, 4)
        self.blocks = nn.ModuleList([Fused(), Separate(), WrittenOut()])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean(1))  # type: ignore[no-any-return]


def test_attention_of_odd_widths_equals_pytorch_and_has_the_kernels_that_the_uncut_network_foretold(
    tmp_path: Path,
) -> None:
    image, model = torch.randn(2, 3, 10, 14), Transformer().eval()
    graph = ChannelGraph.trace(model, (image,))
    network = partition(graph)
    assert not network.fixed
    assert [kernel.key.op for kernel in network.kernels].count("attention") == 3
    keep = {group.name: list(range(group.width - 1)) for group in graph.groups if group.frozen is None}
    keep["blocks.0.qkv"] = [0, 2, 3, 6, 7]
    assert len(keep) == 6
    widths = network.dense | {group: len(kept) for group, kept in keep.items()}
    smaller = graph.cut(model, keep)
    again = partition(ChannelGraph.trace(smaller, (image,)))
    assert [kernel.at(widths) for kernel in network.kernels] == [kernel.at(again.dense) for kernel in again.kernels]
    assert_compiled_equals_pytorch(smaller, image, tmp_path)


@pytest.mark.slow  # in tests/graph, networks with fewer heads compute the same without being compiled
def test_attention_with_fewer_heads_equals_pytorch_and_has_the_kernels_that_the_uncut_network_foretold(
    tmp_path: Path,
) -> None:
    image, model = torch.randn(2, 3, 10, 14), Transformer().eval()
    graph = ChannelGraph.trace(model, (image,), heads=True)
    network = partition(graph)
    assert not network.fixed
    assert not network.slow_path
    heads = [f"blocks.{block}.{layer}:heads" for block, layer in enumerate(("qkv", "q", "q"))]
    keep = {group.name: list(range(group.width - 1)) for group in graph.groups if group.frozen is None}
    assert set(keep) == {"stem", *heads}
    keep |= {heads[0]: [0, 2], heads[1]: [1, 2], heads[2]: [0, 1]}
    widths = network.dense | {group: len(kept) for group, kept in keep.items()}
    smaller = graph.cut(model, keep)
    again = partition(ChannelGraph.trace(smaller, (image,), heads=graph.heads))
    assert [kernel.at(widths) for kernel in network.kernels] == [kernel.at(again.dense) for kernel in again.kernels]
    # A network is compiled without knowing how it was cut: its kernels have other keys and the same code. Only heads
    # that lie among the images are images there.
    plain = partition(ChannelGraph.trace(smaller, (image,)))
    pairs = list(zip(network.kernels, plain.kernels, strict=True))
    alike = [(one.at(widths), other.at(plain.dense)) for one, other in pairs if one.key.batch == other.key.batch]
    assert len(alike) == len(pairs) - 1
    renamed = [(one, other) for one, other in alike if one != other]
    assert {one.key.op for one, _ in renamed} == {"attention", "strided_copy"}
    for one, other in renamed:
        tvm.ir.assert_structural_equal(build_kernel(one, target()).code, build_kernel(other, target()).code)
    assert_compiled_equals_pytorch(smaller, image, tmp_path)
