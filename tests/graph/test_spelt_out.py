"""What is spelt out in an exported program before it is walked: einsums, cosines, pieces of joined parameters.

Cuts are compared with the program of the uncut network, and that with the network itself.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aap_hw.compile.front.partition import partition
from aap_hw.graph import ChannelGraph
from aap_hw.graph.check.self_check import checked_cut
from aap_hw.graph.program.call import Call
from aap_hw.graph.program.exporting import export


class LinearAttention(nn.Module):
    """An ellipsis, a result without names, and three factors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out, self.head = nn.Linear(3, 12), nn.Linear(6, 12), nn.Linear(12, 4)
        self.q, self.k, self.v = (nn.Linear(12, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        q, k, v = self.q(x).exp(), self.k(x).exp(), self.v(x)
        context = torch.einsum("...nd,...ne->...de", k, v)
        length = torch.einsum("...nd,...d", q, k.sum(1))
        return self.head(x + self.out(torch.einsum("...nd, ...de, ...n -> ...ne", q, context, 1 / length)))


class Letters(nn.Module):
    """Attention in letters: widths of queries, keys and values take turns, and their root is asked of the queries."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.packed, self.head = nn.Linear(3, 8), nn.Linear(8, 36), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.packed(self.stem(x))
        parts = x.reshape(*x.shape[:2], 2, x.shape[2] // 6, 3).permute(4, 0, 2, 1, 3)
        q, k, v = parts.unbind(0)
        scores = torch.einsum("...id,...jd->...ij", q, k) / math.sqrt(q.shape[-1])
        return self.head(torch.einsum("...ij,...jd->...id", scores.softmax(-1), v).transpose(1, 2).flatten(2))


class Converting(nn.Linear):
    """Reads its weights in the type of what it gets, as Whisper's layers do."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias.type_as(x))


class Halves(Letters):
    """Queries and keys have half of the factor each, as in Whisper and in diffusion models."""

    def __init__(self) -> None:
        super().__init__()
        self.packed = Converting(8, 36)

    def forward(self, x: Tensor) -> Tensor:
        x = self.packed(self.stem(x))
        q, k, v = x.reshape(*x.shape[:2], 2, x.shape[2] // 6, 3).permute(4, 0, 2, 1, 3).unbind(0)
        scale = q.shape[-1] ** -0.25
        weights = ((q * scale) @ (k * scale).mT).softmax(-1)
        return self.head((weights @ v).transpose(1, 2).flatten(2))


class Pool(nn.Module):
    """Attention as CLIP pools: PyTorch's function with the weights and joined biases of layers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, 12), nn.Linear(12, 4)
        self.q, self.k, self.v, self.c = (nn.Linear(12, 12) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        attended, _ = F.multi_head_attention_forward(
            x, x, x, x.shape[-1], 3, None, torch.cat([self.q.bias, self.k.bias, self.v.bias]), None, None, False, 0.0,
            self.c.weight, self.c.bias, training=self.training, need_weights=False, use_separate_proj_weight=True,
            q_proj_weight=self.q.weight, k_proj_weight=self.k.weight, v_proj_weight=self.v.weight,
        )  # fmt: skip
        return self.head(attended)


class Cosines(nn.Module):
    """Of features and prototypes, each of which has an axis of the other's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.features, self.prototypes = nn.Linear(3, 12), nn.Linear(12, 8), nn.Parameter(torch.randn(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        return F.cosine_similarity(self.features(self.stem(x).relu())[:, None], self.prototypes[None], dim=-1)


class CrossCovariance(nn.Module):
    """Attention of channels to channels, with a temperature for each head, as XCiT, EdgeNeXt and Restormer have it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv, self.head = nn.Linear(3, 12), nn.Linear(12, 36), nn.Linear(12, 4)
        self.temperature = nn.Parameter(torch.rand(2, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 2, x.shape[2] // 2).permute(2, 0, 3, 4, 1)
        weights = ((F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT) * self.temperature).softmax(-1)
        return self.head(x + (weights @ v).permute(0, 3, 1, 2).flatten(2))


class Peaks(nn.Module):
    """Points found in a map that has lost its channel axis, and means of bins under one vector as weight."""

    bins: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 1, 1)
        self.register_buffer("bins", torch.linspace(0, 7, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x)
        means, heat = F.linear(x.permute(0, 2, 3, 1).softmax(-1), self.bins), self.head(x)[:, 0]
        return means, heat * (heat == F.max_pool2d(heat, 3, 1, 1)), F.avg_pool2d(heat, 2)


def test_what_lacks_an_axis_is_computed_as_what_has_it() -> None:
    torch.manual_seed(0)
    model, x = Peaks().eval(), torch.randn(2, 3, 8, 6)
    program = export(model, (x,))
    assert "linear" not in {Call(node).name for node in program.graph.nodes}
    with torch.no_grad():
        for actual, expected in zip(program.module()(x), model(x), strict=True):
            assert actual.shape == expected.shape
            assert (actual - expected).abs().max() < 1e-5
    assert partition(ChannelGraph.trace(model, (x,))).slow_path == ""


def test_temperatures_leave_attention_one_kernel_whose_widths_follow() -> None:
    torch.manual_seed(0)
    model, x = CrossCovariance().eval(), torch.randn(1, 5, 3)
    with torch.no_grad():
        assert (export(model, (x,)).module()(x) - model(x)).abs().max() < 1e-6
    graph = ChannelGraph.trace(model, (x,))
    network = partition(graph)
    assert [kernel.key.op for kernel in network.kernels if kernel.key.op in ("attention", "matmul")] == ["attention"]
    assert not network.fixed
    assert network.slow_path == ""
    checked_cut(graph, model, {group.name: range(4) for group in graph.groups if group.frozen is None}, x)


def test_cosines_are_of_the_channels_that_stay() -> None:
    torch.manual_seed(0)
    model, x, kept = Cosines().eval(), torch.randn(2, 3), [0, 2, 3, 7]
    graph = ChannelGraph.trace(model, (x,))
    assert {group.name: group.width for group in graph.groups if group.frozen is None} == {"stem": 12, "features": 8}
    smaller = checked_cut(graph, model, {"features": kept}, x)
    with torch.no_grad():
        features = model.features(model.stem(x).relu())[:, kept]
        expected = F.cosine_similarity(features[:, None], model.prototypes[:, kept], dim=-1)
        assert (smaller(x) - expected).abs().max() < 1e-6
    assert partition(graph).slow_path == ""


def test_einsums_of_any_form_are_products_of_two_tensors() -> None:
    torch.manual_seed(0)
    model, x = LinearAttention().eval(), torch.randn(2, 5, 3)
    program = export(model, (x,))
    einsums = [Call(node) for node in program.graph.nodes if Call(node).name == "einsum"]
    assert [len(each["tensors"]) for each in einsums] == [2] * 3  # and elements are multiplied with ``1 / length``
    assert all("->" in each["equation"] and "." not in each["equation"] for each in einsums)
    with torch.no_grad():
        assert (program.module()(x) - model(x)).abs().max() < 1e-5
    graph = ChannelGraph.trace(model, (x,))
    assert {group.name: group.width for group in graph.groups if group.frozen is None} == {"stem": 12, "v": 6}
    checked_cut(graph, model, {"stem": range(7), "v": [1, 4]}, x)
    assert partition(graph).slow_path == ""


@pytest.mark.parametrize("attention", [Letters, Halves])
def test_attention_makes_up_for_the_root_of_its_width(attention: type[Letters]) -> None:
    torch.manual_seed(0)
    model, x = attention().eval(), torch.randn(2, 5, 3)
    graph = ChannelGraph.trace(model, (x,))
    assert {group.name: group.width for group in graph.groups if group.frozen is None} == {"stem": 8, "packed": 6}
    assert graph.has_factors
    checked_cut(graph, model, {"stem": range(5), "packed": [0, 2, 3, 5]}, x)


def test_biases_that_are_joined_and_taken_apart_are_those_of_their_layers() -> None:
    torch.manual_seed(0)
    model, x = Pool().eval(), torch.randn(5, 2, 3)
    graph = ChannelGraph.trace(model, (x,))
    assert {group.name: group.width for group in graph.groups if group.frozen is None} == {"stem": 4}
    checked_cut(graph, model, {"stem": [0, 2, 3]}, x)
