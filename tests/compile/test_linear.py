"""Proves that linear layers which are written as products with matrices of parameters compile as all others do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aap_hw.compile.front.partition import partition
from aap_hw.compile.keys.address import Address
from aap_hw.graph import ChannelGraph
from tests.compile.running import assert_compiled_equals_pytorch
from tests.graph.constructs.layers import MatrixAndBias


class ByHand(nn.Module):
    """A linear layer without `nn.Linear`."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.first = function, nn.Linear(6, 8)
        self.weight, self.bias = nn.Parameter(torch.randn(8, 10)), nn.Parameter(torch.randn(10))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.first(x), self.weight, self.bias)


def test_linear_layers_that_are_written_by_hand_have_the_kernels_of_others() -> None:
    def made(function: Callable[[Tensor, Tensor, Tensor], Tensor], *shape: int) -> list[Address]:
        network = partition(ChannelGraph.trace(ByHand(function).eval(), (torch.randn(shape),)))
        return [kernel.at(network.dense) for kernel in network.kernels]

    linear = made(lambda x, w, b: F.linear(x, w.T, b).relu(), 5, 6)
    assert [address.key.epilogue for address in linear] == [("bias",), ("bias", "relu")]
    assert made(lambda x, w, b: torch.addmm(b, x, w).relu(), 5, 6) == linear
    assert made(lambda x, w, b: (b + x @ w).relu(), 5, 6) == linear
    rows = made(lambda x, w, b: F.linear(x, w.T, b).relu(), 2, 5, 6)
    assert made(lambda x, w, b: (x @ w + b).relu(), 2, 5, 6) == rows
    assert "add" in made(lambda x, w, b: torch.addmm(x.repeat(1, 2)[:, :10], x, w), 5, 6)[-1].key.epilogue
    # In int8, a weight has scales along one of its axes.
    assert [address.key.op for address in made(lambda x, w, b: F.linear(x @ w, w), 5, 6)][1:] == ["matmul", "linear"]


class Mlp(nn.Module):
    """That of GPT-2, whose layers have weights (C_in, C_out) and view images and places as one axis."""

    def __init__(self, dim: int = 12) -> None:
        super().__init__()
        self.norm, self.fc, self.proj = nn.LayerNorm(dim), MatrixAndBias(4 * dim, dim), MatrixAndBias(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj(F.gelu(self.fc(self.norm(x)), approximate="tanh"))


class SelfAttention(nn.Module):
    """That of GPT-2."""

    def __init__(self, dim: int = 12) -> None:
        super().__init__()
        self.norm, self.attn, self.proj = nn.LayerNorm(dim), MatrixAndBias(3 * dim, dim), MatrixAndBias(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each.view(2, 5, 2, 6).transpose(1, 2) for each in self.attn(self.norm(x)).split(12, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        return x + self.proj(y.reshape(2, 5, 12))


def test_a_block_of_gpt2_equals_pytorch_with_all_its_layers_fused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, tokens = nn.Sequential(nn.Linear(6, 12), SelfAttention(), Mlp(), nn.Linear(12, 3)), torch.randn(2, 5, 6)
    network = partition(ChannelGraph.trace(model.eval(), (tokens,)))
    assert not network.slow_path
    kinds = ["conv2d", "layer_norm", "linear", "attention", "linear", "layer_norm", "linear", "linear", "conv2d"]
    assert [kernel.key.op for kernel in network.kernels] == kinds
    steps = [kernel.key.epilogue for kernel in network.kernels if kernel.is_turned]
    assert steps == [("bias",), ("bias", "add"), ("bias", "gelu_tanh"), ("bias", "add")]
    learned = sum(kernel.parameters(network.dense) for kernel in network.kernels)
    assert learned == sum(parameter.numel() for parameter in model.parameters())
    assert_compiled_equals_pytorch(model, tokens, tmp_path)


def test_layers_of_gpt2_have_the_kernels_that_the_uncut_network_foretold() -> None:
    model, tokens = nn.Sequential(nn.Linear(6, 12), Mlp(), Mlp(), nn.Linear(12, 3)).eval(), torch.randn(2, 5, 6)
    graph = ChannelGraph.trace(model, (tokens,))
    network = partition(graph)
    keep = {group.name: list(range(group.width - 1)) for group in graph.groups if group.frozen is None}
    assert set(keep) == {"0", "1.fc", "2.fc"}
    widths = network.dense | {name: len(kept) for name, kept in keep.items()}
    again = partition(ChannelGraph.trace(graph.cut(model, keep), (tokens,)))
    assert [kernel.at(widths) for kernel in network.kernels] == [kernel.at(again.dense) for kernel in again.kernels]


class Mixer(nn.Module):
    """Layers that mix tokens of as many channels as are left, by both kinds of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rows, self.columns = nn.Linear(6, 10), nn.Linear(9, 7), nn.Conv1d(9, 7, 1)
        self.plain, self.head = nn.Conv1d(7, 9, 1, bias=False), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(x + self.plain(self.rows(x.mT).relu().mT + self.columns(x).sigmoid()))


def test_layers_that_mix_tokens_are_products_of_any_number_of_channels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Mixer().eval(), torch.randn(2, 9, 6)
    graph = ChannelGraph.trace(model, (x,))
    network = partition(graph)
    assert [kernel.key.op for kernel in network.kernels if kernel.learned].count("matmul") == 3
    assert not network.slow_path
    smaller = graph.cut(model, {"first": [0, 2, 3, 4, 6, 8, 9]})
    foretold = [kernel.at({**network.dense, "first": 7}) for kernel in network.kernels]
    cut = partition(ChannelGraph.trace(smaller, (x,)))
    assert [kernel.at(cut.dense) for kernel in cut.kernels] == foretold
    assert_compiled_equals_pytorch(smaller, x, tmp_path)
