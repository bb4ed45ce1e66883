"""What kind of channels each group holds, told from small networks written by hand."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention, silu

from aap_hw.graph import ChannelGraph
from aap_hw.graph.groups import kinds as module
from aap_hw.graph.groups.kinds import KINDS


def kinds(model: nn.Module, *shape: int) -> Mapping[str, str]:
    return ChannelGraph.trace(model.eval(), (torch.zeros(shape),)).kinds


class Residual(nn.Module):
    """Two blocks of ResNet, the second of which changes the width, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a1, self.a2 = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.b1, self.b2, self.down = (
            nn.Conv2d(8, 12, 3, padding=1),
            nn.Conv2d(12, 10, 3, padding=1),
            nn.Conv2d(8, 10, 1),
        )
        self.head = nn.Linear(10, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).relu()
        x = (x + self.a2(self.a1(x).relu())).relu()
        x = (self.b2(self.b1(x).relu()) + self.down(x)).relu()
        return self.head(x.mean((2, 3)))


def test_what_several_convolutions_add_to_is_a_stream() -> None:
    found = {"stem": "stream", "a1": "inner", "b1": "inner", "b2": "stream", "head": "output"}
    assert kinds(Residual(), 1, 3, 8, 8) == found


class Gated(nn.Module):
    """An inverted bottleneck with a gate, as of MobileNetV3, and an MLP of two linear layers behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.expand, self.depthwise = nn.Conv2d(8, 24, 1), nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.squeeze, self.excite = nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1)
        self.project, self.last = nn.Conv2d(24, 8, 1), nn.Conv2d(8, 16, 1)
        self.hidden, self.classes = nn.Linear(16, 20), nn.Linear(20, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        y = self.depthwise(self.expand(x).relu()).relu()
        y = y + y * self.excite(self.squeeze(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        x = self.last(x + self.project(y)).relu()
        return self.classes(self.hidden(x.mean((2, 3))).relu())


def test_expansion_is_inner_though_a_depthwise_convolution_and_a_gate_make_it_too() -> None:
    found = kinds(Gated(), 1, 3, 8, 8)
    assert found == {
        "stem": "stream",
        "expand": "inner",
        "squeeze": "inner",
        "last": "inner",
        "hidden": "mlp",
        "classes": "output",
    }


class Transformer(nn.Module):
    """One block on patches, with attention that PyTorch computes or the code writes out."""

    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.fused, self.heads, self.query_width, self.value_width = fused, 2, 4, 5
        self.patch, self.place = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 4, 8))
        self.q, self.k, self.v, self.project = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 10), nn.Linear(10, 8)
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch(image).flatten(2).transpose(1, 2) + self.place
        q = self.q(x).reshape(x.shape[0], -1, self.heads, self.query_width).transpose(1, 2)
        k = self.k(x).reshape(x.shape[0], -1, self.heads, self.query_width).transpose(1, 2)
        v = self.v(x).reshape(x.shape[0], -1, self.heads, self.value_width).transpose(1, 2)
        by_hand = ((q * 0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        y = scaled_dot_product_attention(q, k, v) if self.fused else by_hand
        x = x + self.project(y.transpose(1, 2).flatten(2))
        x = x + self.down(gelu(self.up(x)))
        return self.head(x.mean(1))


@pytest.mark.parametrize("fused", [False, True])
def test_a_transformer_has_an_embedding_queries_with_keys_values_and_an_mlp(fused: bool) -> None:
    found = kinds(Transformer(fused=fused), 1, 3, 8, 8)
    assert found == {
        "patch": "embedding",
        "q": "query-key",
        "v": "value",
        "up": "mlp",
        "head": "output",
    }


class ByHand(nn.Module):
    """Attention over pixels by einsum, products with parameters, a gate of two linear layers, x + x ** 3."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 7)
        self.first, self.second = nn.Parameter(torch.randn(7, 10)), nn.Parameter(torch.randn(10, 9))
        self.gate, self.value, self.last = nn.Linear(9, 11), nn.Linear(9, 11), nn.Linear(11, 3)

    def forward(self, rows: Tensor) -> Tensor:
        weights = torch.einsum("blc,bsc->bls", self.q(rows), self.k(rows)).softmax(-1)
        x = torch.einsum("bls,bsd->bld", weights, self.v(rows)) @ self.first
        x = (x + x**3).tanh() @ self.second
        return self.last(silu(self.gate(x)) * self.value(x))


def test_products_by_hand_are_told_from_products_with_parameters() -> None:
    found = kinds(ByHand(), 1, 5, 6)
    assert found == {
        "q": "query-key",
        "v": "value",
        "first": "mlp",
        "second": "mlp",
        "gate": "mlp",
        "last": "output",
    }


class Recurrent(nn.Module):
    """A convolution, two layers of LSTM, a cell of GRU that is run twice, a head of two linear layers and zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.columns, self.lstm = nn.Conv1d(3, 6, 1), nn.LSTM(6, 7, num_layers=2, batch_first=True)
        self.cell, self.middle, self.last = nn.GRUCell(7, 8), nn.Linear(8, 9), nn.Linear(9, 2)

    def forward(self, series: Tensor) -> Tensor:
        states, _ = self.lstm(self.columns(series).transpose(1, 2))
        state = self.cell(states[:, -1], self.cell(states[:, 0]))
        middle = self.middle(state).relu()
        return self.last(middle + middle.new_zeros(1, middle.shape[1]))


def test_states_of_recurrent_layers_and_cells_are_hidden() -> None:
    found = kinds(Recurrent(), 1, 3, 5)
    assert found == {"columns": "inner", "lstm": "hidden", "cell": "hidden", "middle": "mlp", "last": "output"}


def test_every_kind_is_defined_once() -> None:
    lines = str(module.__doc__).splitlines()
    assert [line.strip("`") for line in lines if line.startswith("``")] == list(KINDS)
