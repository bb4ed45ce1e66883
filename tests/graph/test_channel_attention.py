"""Attention between channels: a softmax over channels is taken over those that stay, its columns go with the values.

The reference is the formula (XCiT, arXiv 2106.09681, equation 2) on the selected rows of the layers, written once more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aap_hw.graph import ChannelGraph
from aap_hw.graph.check import silenced
from aap_hw.graph.check.self_check import CutMismatchError, checked_cut
from aap_hw.graph.walk.labels import Labels
from aap_hw.graph.walk.views_of_heads import heads_axes
from tests.graph.ground_truth import output

HEADS = 2
IMAGES = (2, 3, 4, 4)


class Channels(nn.Module):
    """Attention between the channels of each head, with queries, keys and values of layers of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.linspace(0.5, 2, HEADS).reshape(HEADS, 1, 1))
        self.q, self.k, self.v = nn.Linear(6, 8), nn.Linear(6, 12), nn.Linear(6, 12)
        self.proj = nn.Linear(8, 6)

    def weights(self, matrix: Tensor) -> Tensor:
        return (matrix * self.temperature).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (f(x).reshape(b, n, HEADS, -1).permute(0, 2, 3, 1) for f in (self.q, self.k, self.v))
        x = self.weights(F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)) @ v
        return self.proj(x.permute(0, 3, 1, 2).flatten(2))  # type: ignore[no-any-return]


class WithoutSoftmax(Channels):
    def weights(self, matrix: Tensor) -> Tensor:
        return (matrix * self.temperature).sigmoid()


class Turned(Channels):
    """The softmax is over rows, and the values are of the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.k = nn.Linear(6, 8)
        self.v = nn.Linear(6, 8)

    def weights(self, matrix: Tensor) -> Tensor:
        return (matrix * self.temperature).softmax(-1).transpose(-1, -2)


class Crossed(nn.Module):
    """As EdgeNeXt and XCiT write it: one layer makes all three, and the embedding is divided among the heads."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.linspace(0.5, 2, HEADS).reshape(HEADS, 1, 1))
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, -1).permute(2, 0, 3, 4, 1).unbind(0)
        matrix = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)) * self.temperature
        x = matrix.softmax(dim=-1) @ v
        return self.proj(x.permute(0, 3, 1, 2).reshape(b, n, c))  # type: ignore[no-any-return]


class Net(nn.Module):
    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.stem, self.layer, self.last = nn.Conv2d(3, width, 1), layer, nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).mT
        return self.last(tokens + self.layer(tokens))  # type: ignore[no-any-return]


def ready(make: Callable[[], nn.Module], width: int = 6) -> tuple[Any, ChannelGraph, Tensor]:
    torch.manual_seed(0)
    net, images = Net(make(), width).double().eval(), torch.randn(IMAGES, dtype=torch.float64)
    return net, ChannelGraph.trace(net, (images,)), images


def of_heads(kept: list[int], each: int) -> list[int]:
    return [head * each + channel for head in range(HEADS) for channel in kept]


def attended(layer: Any, x: Tensor, rows: tuple[list[int], ...], weights: Callable[[Tensor], Tensor]) -> Tensor:
    """What a layer makes of tokens (N, L, C) with some rows of the layers that make queries, keys and values."""
    made = [
        F.linear(x, weight[own], bias[own]).unflatten(2, (HEADS, -1))
        for own, (weight, bias) in zip(rows, layer, strict=True)
    ]
    q, k, v = (each.permute(0, 2, 3, 1) for each in made)
    q, k = (each / each.square().sum(-1, keepdim=True).sqrt() for each in (q, k))
    mixed = torch.einsum("bhij,bhjn->bnhi", weights(torch.einsum("bhin,bhjn->bhij", q, k)), v)
    return mixed.flatten(2)


@pytest.mark.parametrize("kind", [Channels, WithoutSoftmax])
def test_columns_go_with_values_and_rows_alone(kind: type[Channels]) -> None:
    net, graph, images = ready(kind)
    assert graph.widths == {"stem": 6, "layer.q": 4, "layer.k": 6, "last": 4}
    assert [group.name for group in graph.groups if group.frozen] == ["last"]
    assert (graph.group("layer.k").renormalised is not None) == (kind is Channels)
    keep = {"layer.q": [0, 3], "layer.k": [0, 1, 4]}
    layer = net.layer
    parts = [(each.weight, each.bias) for each in (layer.q, layer.k, layer.v)]
    rows, columns = of_heads([0, 3], 4), of_heads([0, 1, 4], 6)
    with torch.no_grad():
        x = net.stem(images).flatten(2).transpose(1, 2)
        y = attended(parts, x, (rows, columns, columns), layer.weights)
        wanted = net.last(x + F.linear(y, layer.proj.weight[:, rows], layer.proj.bias))
    (masked,) = silenced.Silenced(graph, net, keep)(images)
    assert (masked - wanted).abs().max() < 1e-12
    smaller = checked_cut(graph, net, keep, images)
    assert (output(smaller, images) - wanted).abs().max() < 1e-9


def test_embedding_is_cut_with_its_shares_of_heads() -> None:
    net, graph, images = ready(Crossed, 12)
    assert graph.widths == {"stem": 6, "last": 4}
    assert graph.group("stem").frozen is None
    layer, kept = net.layer, of_heads([0, 2, 5], 6)
    parts = [
        (layer.qkv.weight[first : first + 12][:, kept], layer.qkv.bias[first : first + 12]) for first in (0, 12, 24)
    ]
    with torch.no_grad():
        x = net.stem(images)[:, kept].flatten(2).transpose(1, 2)
        y = attended(parts, x, (kept, kept, kept), lambda matrix: (matrix * layer.temperature).softmax(-1))
        y = x + F.linear(y, layer.proj.weight[kept][:, kept], layer.proj.bias[kept])
        wanted = F.linear(y, net.last.weight[:, kept], net.last.bias)
    smaller = checked_cut(graph, net, {"stem": [0, 2, 5]}, images)
    assert (output(smaller, images) - wanted).abs().max() < 1e-9


def test_other_ways_through_a_matrix_of_channels_freeze_them() -> None:
    _, graph, _ = ready(Turned)
    assert all(graph.group(name).frozen for name in ("layer.q", "layer.k"))


def test_softmax_over_all_channels_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    net, graph, images = ready(Channels)
    monkeypatch.setattr(silenced, "_NORMS", {})
    with pytest.raises(CutMismatchError, match=r"cutting the channel group 'layer.k'"):
        checked_cut(graph, net, {"layer.k": [0, 1, 4]}, images)


def test_looking_for_heads_leaves_the_labels_as_they_were() -> None:
    _, graph, _ = ready(Crossed, 12)
    labelling = graph._labelling
    before = {node: labels.ids.tolist() for node, labels in labelling.across.items() if isinstance(labels, Labels)}
    assert before
    heads_axes(labelling)
    after = {node: labels.ids.tolist() for node, labels in labelling.across.items() if isinstance(labels, Labels)}
    assert after == before
