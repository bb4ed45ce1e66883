"""Widths of queries, keys and values are cut per head, and what is left is the attention of what is left.

The expected result is computed here from the layers' weights, with masks over channels and a fixed scale, once as
PyTorch defines attention and never by running the module or its exported program.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aap_hw.graph import ChannelGraph
from aap_hw.graph.check.self_check import CutMismatchError, checked_cut
from aap_hw.graph.cut import surgery
from tests.graph.attention_forms import FORMS, MADE, READ, SHAPE, Form
from tests.graph.attention_nets import (
    DIM,
    HEADS,
    VALUES,
    WIDTH,
    Beside,
    DividedBefore,
    DividedBehind,
    DividedByMore,
    DividedByMoreInTensor,
    Embedded,
    FittingHeads,
    FixedWidth,
    GatedByLargest,
    GatedByPlaceOfLargest,
    Gpt2,
    Gpt2Block,
    Gpt2WrittenOut,
    OfPixels,
    OfPyTorch,
    OneHead,
    OneHeadByConstant,
    OneHeadByTensor,
    OneHeadInViews,
    RelativePlaces,
    Separate,
    Shares,
)


def masked(width: int, kept: list[int]) -> Tensor:
    return torch.zeros(width, dtype=torch.float64).index_fill_(0, torch.tensor(kept), 1.0)


def expected(form: Form, net: nn.Module, x: Tensor) -> Tensor:
    """Attention of the whole network in which channels are masked."""
    q, k, v = form.operands(net, x)
    values = form.keep[list(form.keep)[-1]]
    q, k, v = q * masked(WIDTH, READ), k * masked(WIDTH, READ), v * masked(v.shape[-1], values)
    weights = (torch.einsum("nhqd,nhkd->nhqk", q, k) * form.scale).softmax(-1)
    made = torch.einsum("nhqk,nhkv->nqhv", weights, v)
    return F.linear(made.flatten(2), net.proj.weight, net.proj.bias)


@pytest.fixture(params=list(FORMS))
def form(request: pytest.FixtureRequest) -> Form:
    return FORMS[request.param]


def traced(form: Form) -> tuple[nn.Module, ChannelGraph, Tensor]:
    torch.manual_seed(1)
    net, x = form.kind().double().eval(), torch.randn(SHAPE, dtype=torch.float64)
    return net, ChannelGraph.trace(net, (x,)), x


def test_what_is_left_is_the_attention_of_what_is_left(form: Form) -> None:
    net, graph, x = traced(form)
    assert {group.name for group in graph.groups if group.frozen is None} == set(form.keep)
    smaller = graph.cut(net, form.keep)
    with torch.no_grad():
        wanted = expected(form, net, x)
        assert (smaller(x) - wanted).abs().max() <= 1e-12
        assert (net(x) - wanted).abs().max() > 1e-3
    assert {name: getattr(smaller, name) for name in form.widths} == form.widths
    checked_cut(graph, net.float(), form.keep, x.float())


def test_codes_that_queries_are_multiplied_with_go_with_them() -> None:
    torch.manual_seed(1)
    net, x = RelativePlaces().double().eval(), torch.randn(SHAPE, dtype=torch.float64)
    graph = ChannelGraph.trace(net, (x,))
    assert {group.name for group in graph.groups if group.frozen is None} == {"q", "v"}
    q, k, v = FORMS["separate"].operands(net, x)
    q, v = q * masked(WIDTH, READ), v * masked(VALUES, MADE)
    codes = torch.stack([net.table[place : place + 5].flip(0) for place in range(5)])
    weights = torch.einsum("nhqd,nhkd->nhqk", q, k) * WIDTH**-0.5 + torch.einsum("nhqd,qkd->nhqk", q, codes)
    smaller = checked_cut(graph, net, {"q": READ, "v": MADE}, x)
    with torch.no_grad():
        wanted = net.proj((weights.softmax(-1) @ v).transpose(1, 2).flatten(2))
        assert (smaller(x) - wanted).abs().max() <= 1e-12


@pytest.mark.parametrize("layer", ["q.weight", "k.weight", "v.weight", "q.bias"])
def test_a_wrong_index_is_seen(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, graph, x = traced(FORMS["separate"])
    shorten = surgery._shorten

    def shifted(places: Any, name: str, dim: int, removed: object) -> None:
        size = places[name].shape[dim]
        shorten(places, name, dim, (removed + 1) % size if (name, dim) == (layer, 0) else removed)  # type: ignore

    monkeypatch.setattr(surgery, "_shorten", shifted)
    with pytest.raises(CutMismatchError):
        checked_cut(graph, net, FORMS["separate"].keep, x)


def test_the_kept_scale_follows_where_pytorch_divides_by_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    net, graph, x = traced(FORMS["fused"])
    assert graph.cut(net, {"qkv": READ}).scale == 5**-0.5
    monkeypatch.setattr("aap_hw.graph.cut.scaling.Rescaling.apply", lambda *_: None)
    with pytest.raises(CutMismatchError):
        checked_cut(graph, net, {"qkv": READ}, x)


def test_rounding_of_a_factor_in_the_networks_own_precision_is_no_fault_of_a_cut() -> None:
    net, graph, x = traced(FORMS["separate"])
    net = net.float()
    with torch.no_grad():
        net.q.weight.mul_(20.0)
    assert isinstance(checked_cut(graph, net, FORMS["separate"].keep, x.float()), nn.Module)


@pytest.mark.parametrize("kind", [OneHead, OneHeadByTensor, OneHeadInViews])
def test_root_behind_products_of_one_head_is_made_up_for(kind: type[OneHead]) -> None:
    torch.manual_seed(1)
    net, x = kind().double().eval(), torch.randn(SHAPE, dtype=torch.float64)
    graph = ChannelGraph.trace(net, (x,))
    assert {group.name for group in graph.groups if group.frozen is None} == {"q", "v"}
    with torch.no_grad():
        products = (net.q(x) * masked(WIDTH, READ)) @ net.k(x).mT / WIDTH**0.5
        wanted = net.proj(products.softmax(-1) @ (net.v(x) * masked(VALUES, MADE)))
        keep = {"q": READ, "v": MADE}
        assert (graph.cut(net, keep)(x) - wanted).abs().max() <= 1e-12
    checked_cut(graph, net.float(), keep, x.float())


def test_root_behind_the_largest_products_is_made_up_for() -> None:
    torch.manual_seed(1)
    net, x = GatedByLargest().double().eval(), torch.randn(SHAPE, dtype=torch.float64)
    graph = ChannelGraph.trace(net, (x,))
    keep = {"q": READ, "v": MADE}
    assert {group.name for group in graph.groups if group.frozen is None} == keep.keys()
    with torch.no_grad():
        q, k, v = FORMS["separate"].operands(net, x)
        gates = (((q * masked(WIDTH, READ)) @ k.mT).amax(-1) / WIDTH**0.5).sigmoid()
        wanted = net.proj((v * masked(VALUES, MADE) * gates[..., None]).transpose(1, 2).flatten(2))
        assert (graph.cut(net, keep)(x) - wanted).abs().max() <= 1e-12
    checked_cut(graph, net.float(), keep, x.float())


def test_queries_keys_and_values_that_are_reshaped_to_one_number_are_cut_together() -> None:
    torch.manual_seed(1)
    net, x = OfPixels().double().eval(), torch.randn((2, DIM, 3, 2), dtype=torch.float64)
    graph = ChannelGraph.trace(net, (x,))
    assert {group.name: group.width for group in graph.groups if group.frozen is None} == {"q": WIDTH}
    with torch.no_grad():
        q, k, v = (layer(x).flatten(2) * masked(WIDTH, READ)[:, None] for layer in (net.q, net.k, net.v))
        weights = (q.mT @ k * WIDTH**-0.5).softmax(2)
        wanted = x + net.project((v @ weights.mT).unflatten(2, (3, 2)))
        assert (graph.cut(net, {"q": READ})(x) - wanted).abs().max() <= 1e-12
        assert (net(x) - wanted).abs().max() > 1e-3
    checked_cut(graph, net.float(), {"q": READ}, x.float())


def test_root_of_one_heads_width_is_made_up_for_beside_a_block_whose_heads_go() -> None:
    torch.manual_seed(1)
    net, x = nn.Sequential(FittingHeads(1), FittingHeads(HEADS)).eval(), torch.randn(SHAPE)
    graph = ChannelGraph.trace(net, (x,))
    free = {group.name: group.width for group in graph.groups if group.frozen is None}
    assert free == {"0.q": DIM, "0.proj": DIM, "1.q": HEADS}
    smaller = checked_cut(graph, net, {"0.q": READ, "1.q": [0, 2]}, x)
    assert [block.width for block in smaller] == [len(READ), DIM // HEADS]


@pytest.mark.parametrize("kind", [Gpt2, pytest.param(Gpt2WrittenOut, marks=pytest.mark.slow)])
def test_blocks_of_gpt2_are_cut_in_each_of_their_widths(kind: type[Gpt2]) -> None:
    torch.manual_seed(1)
    net, x = Gpt2Block(kind).double().eval(), torch.randn((2, 5, 3), dtype=torch.float64)
    graph = ChannelGraph.trace(net, (x,))
    widths = {group.name: group.width for group in graph.groups if group.frozen is None}
    assert widths == {"stem": DIM, "attn.c_attn": DIM // HEADS, "c_fc": 4 * DIM}
    keep = {"attn.c_attn": [0, 2, 3], "c_fc": list(range(0, 4 * DIM, 3))}
    whole = copy.deepcopy(net)
    made, channels = masked(DIM // HEADS, keep["attn.c_attn"]).repeat(3 * HEADS), masked(4 * DIM, keep["c_fc"])
    with torch.no_grad():
        whole.attn.c_attn.weight *= made
        whole.attn.c_attn.bias *= made
        whole.c_proj.weight *= channels[:, None]
        wanted = whole(x)
        smaller = graph.cut(net, keep)
        assert (smaller(x) - wanted).abs().max() <= 1e-12
        assert (net(x) - wanted).abs().max() > 1e-3
    assert (smaller.attn.head_dim, smaller.attn.split_size, smaller.attn.c_attn.nf) == (3, 9, 27)
    checked_cut(graph, net.float(), keep | {"stem": [0, 1, 4, 5, 8, 10]}, x.float())


def test_only_a_number_whose_name_says_so_is_taken_for_the_scale() -> None:
    scales = ("scale", "scaling", "qk_scale", "softmax_scale", "norm_factor", "inv_sqrt", "temperature", "_scale")
    others = ("dropout", "attn_drop", "p", "drop_scale", "slope", "mlp_ratio", "alpha")
    net, _, x = traced(FORMS["fused"])
    for name in (*scales, *others):
        setattr(net, name, WIDTH**-0.5)
    smaller = ChannelGraph.trace(net, (x,)).cut(net, {"qkv": READ})
    assert {getattr(smaller, name) for name in scales} == {5**-0.5}
    assert {getattr(smaller, name) for name in others} == {WIDTH**-0.5}


class Mixed(Separate):
    """Queries that a sigmoid changes: no weight before it can make up for another width's root."""

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.by_head(self.q(x).sigmoid(), self.key_dim), self.by_head(self.k(x).sigmoid(), self.key_dim)
        x = F.scaled_dot_product_attention(q, k, self.by_head(self.v(x), self.value_dim))
        return self.proj(x.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Rounded(Separate):
    """Queries and keys are rounded to steps: half as large ones are not half of them."""

    def forward(self, x: Tensor) -> Tensor:
        q, k = (
            torch.div(self.by_head(layer(x), self.key_dim), 0.1, rounding_mode="floor") for layer in (self.q, self.k)
        )
        x = F.scaled_dot_product_attention(q, k, self.by_head(self.v(x), self.value_dim))
        return self.proj(x.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class RoundedBehind(OneHead):
    """The products are divided by the root of the width, and rounded."""

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x)
        weights = torch.div(q @ self.k(x).mT, q.shape[-1] ** 0.5, rounding_mode="trunc")
        return self.proj(weights.softmax(-1) @ self.v(x))  # type: ignore[no-any-return]


class Shared(Separate):
    """The layer that makes queries makes the keys as well: it cannot be scaled for one of them."""

    def forward(self, x: Tensor) -> Tensor:
        q = self.by_head(self.q(x), self.key_dim)
        x = F.scaled_dot_product_attention(q, q, self.by_head(self.v(x), self.value_dim))
        return self.proj(x.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class OverChannels(Separate):
    """The products are over tokens, and their softmax mixes the channels of keys."""

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.by_head(self.q(x), self.key_dim), self.by_head(self.k(x), self.key_dim)
        weights = (q.transpose(-2, -1) @ k).softmax(-1)
        x = self.by_head(self.v(x), self.value_dim) @ weights[..., : self.value_dim, : self.value_dim]
        return self.proj(x.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class KeysOfTheInput(Separate):
    """The keys are the network's input, of which no channel can go."""

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.by_head(self.q(x), self.key_dim) @ x[:, None, :, :WIDTH].mT).softmax(-1)
        x = weights @ self.by_head(self.v(x), self.value_dim)
        return self.proj(x.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (GatedByPlaceOfLargest, "computes something else once it is cut ('/'"),
        (KeysOfTheInput, "is summed over with other channels"),
        (OneHeadByConstant, "is counted where the model computes something else once it is cut (torch.tensor"),
        (Mixed, "is divided by the root of its width"),
        (Rounded, "is divided by the root of its width"),
        (RoundedBehind, "computes something else once it is cut"),
        (Shared, "is divided by the root of its width"),
        (OverChannels, "is multiplied with channels that run along another axis"),
    ],
)
def test_what_cannot_be_made_up_for_is_frozen(kind: type[nn.Module], sentence: str) -> None:
    torch.manual_seed(1)
    net = kind().eval()
    graph = ChannelGraph.trace(net, (torch.randn(SHAPE),))
    frozen = {group.name: str(group.frozen) for group in graph.groups}
    assert sentence in frozen["q"], frozen


def layers_of(block: nn.Module) -> tuple[Tensor, Tensor, nn.Linear]:
    """Weight and bias of a block's three parts, and what follows."""
    if isinstance(block, Shares):
        return block.qkv.weight, block.qkv.bias, block.proj
    inner = block.inner
    return inner.in_proj_weight, inner.in_proj_bias, inner.out_proj


@pytest.mark.parametrize(
    ("kind", "scale"),
    [
        (Shares, 0.4),
        (DividedBehind, 0.5),
        *(pytest.param(kind, 0.5, marks=pytest.mark.slow) for kind in (DividedBefore, OfPyTorch, Beside)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_heads_that_are_shares_of_the_embedding_are_cut_with_it(kind: type[nn.Module], scale: float) -> None:
    torch.manual_seed(1)
    whole = kind() if kind is Beside else Embedded(kind)
    net, x = whole.double().eval(), torch.randn((2, 5, 3), dtype=torch.float64)
    graph = ChannelGraph.trace(net, (x,))
    assert [(group.name, group.width) for group in graph.groups if group.frozen is None] == [("stem", DIM // HEADS)]
    keep = {"stem": [0, 2, 3]}
    mask = masked(DIM // HEADS, keep["stem"]).repeat(HEADS)
    with torch.no_grad():
        y = net.stem(x) * mask
        for block in [net] if kind is Beside else net.blocks:
            weight, bias, last = layers_of(block)
            q, k, v = (
                (part * mask).unflatten(-1, (HEADS, -1)).transpose(1, 2)
                for part in F.linear(y, weight, bias).split(DIM, -1)
            )
            made = (torch.einsum("nhqd,nhkd->nhqk", q, k) * scale).softmax(-1) @ v
            y = y + F.linear(made.transpose(1, 2).flatten(2), last.weight, last.bias) * mask
        wanted = net.head(y)
        smaller = graph.cut(net, keep)
        assert (smaller(x) - wanted).abs().max() <= 1e-12
        assert (net(x) - wanted).abs().max() > 1e-3
    for layer in (each for each in smaller.modules() if isinstance(each, nn.MultiheadAttention)):
        assert (layer.embed_dim, layer.kdim, layer.vdim, layer.head_dim) == (9, 9, 9, 3)
    checked_cut(graph, net.float(), keep, x.float())


@pytest.mark.parametrize(
    "kind", [DividedByMore, pytest.param(DividedByMoreInTensor, marks=pytest.mark.slow), FixedWidth]
)
def test_shares_that_do_not_follow_are_frozen(kind: type[nn.Module]) -> None:
    torch.manual_seed(1)
    net = Embedded(kind).eval()
    graph = ChannelGraph.trace(net, (torch.randn(2, 5, 3),))
    assert graph.groups
    assert all(group.frozen for group in graph.groups), graph.groups
