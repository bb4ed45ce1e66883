"""Whole heads of attention are cut, and what is left is the attention of the heads that stay.

The expected result is computed here from the layers' weights, head by head, and never by running the module or its
exported program. Where a model's code does not follow, its heads stay and the widths of heads are cut as they were.
"""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.graph.check.self_check import CutMismatchError, checked_cut
from aap_hw.graph.cut import surgery
from aap_hw.graph.selection import require_whole_heads, select
from tests.graph.attention_forms import FORMS, SHAPE, Form
from tests.graph.attention_nets import DIM, HEADS, VALUES, WIDTH, Embedded, Fused, OfPyTorch, Separate, Shares

STAY = [0, 2]


def of_heads(heads: list[Tensor], rows: nn.Linear, width: int) -> Tensor:
    """What a layer makes of the values of the heads that stay, given those of each, (N, tokens, width)."""
    weight = torch.cat([rows.weight[:, head * width :][:, :width] for head in STAY], 1)
    return F.linear(torch.cat(heads, -1), weight, rows.bias)


def expected(form: Form, net: nn.Module, x: Tensor) -> Tensor:
    q, k, v = form.operands(net, x)
    made = [(q[:, head] @ k[:, head].mT * form.scale).softmax(-1) @ v[:, head] for head in STAY]
    return of_heads(made, net.proj, v.shape[-1])


def traced(net: nn.Module, shape: tuple[int, ...] = SHAPE) -> tuple[nn.Module, ChannelGraph, Tensor]:
    net, x = net.double().eval(), torch.randn(shape, dtype=torch.float64)
    return net, ChannelGraph.trace(net, (x,), heads=True), x


def free(graph: ChannelGraph) -> dict[str, int]:
    return {group.name: group.width for group in graph.groups if group.frozen is None}


@pytest.mark.parametrize("name", [name for name in FORMS if not name.startswith("shared")])
def test_what_is_left_is_the_attention_of_the_heads_that_stay(name: str) -> None:
    torch.manual_seed(1)
    form = FORMS[name]
    net, graph, x = traced(form.kind())
    (group,) = free(graph)
    assert (group, graph.group(group).width, graph.kinds[group]) == (f"{next(iter(form.keep))}:heads", HEADS, "heads")
    smaller = graph.cut(net, {group: STAY})
    with torch.no_grad():
        wanted = expected(form, net, x)
        assert (smaller(x) - wanted).abs().max() <= 1e-12
        assert (net(x) - wanted).abs().max() > 1e-3
        assert torch.equal(pickle.loads(pickle.dumps(smaller))(x), smaller(x))
    assert smaller.num_heads == len(STAY)
    widths = [getattr(net, name, None) for name in ("head_dim", "key_dim", "value_dim")]
    assert [getattr(smaller, name, None) for name in ("head_dim", "key_dim", "value_dim")] == widths
    assert f"proj): Linear(in_features={smaller.proj.weight.shape[1]}" in str(smaller)
    torch.export.export(smaller, (x,))
    checked_cut(graph, net.float(), {group: STAY}, x.float())


@pytest.mark.parametrize("layer", ["q.weight", "k.weight", "v.weight", "q.bias", "v.bias"])
def test_a_wrong_head_is_seen(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    net, graph, x = traced(Separate())
    shorten = surgery._shorten
    width = VALUES if layer.startswith("v") else WIDTH

    def shifted(places: Any, name: str, dim: int, removed: object) -> None:
        size = places[name].shape[dim]
        shorten(places, name, dim, (removed + width) % size if name == layer else removed)  # type: ignore[operator]

    monkeypatch.setattr(surgery, "_shorten", shifted)
    with pytest.raises(CutMismatchError):
        checked_cut(graph, net, {"q:heads": STAY}, x)


class Biased(Separate):
    """A bias for each head and pair of tokens from a table, by the numbers of its rows, as Swin's; a factor by head."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.factor = nn.Parameter(torch.randn(9, HEADS)), nn.Parameter(torch.rand(HEADS, 1, 1))
        places = torch.arange(5)
        self.register_buffer("places", places[:, None] - places[None] + 4)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) * self.factor + bias).softmax(-1) @ v

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.by_head(self.q(x), self.key_dim), self.by_head(self.k(x), self.key_dim)
        bias = self.table[self.places.view(-1)].view(5, 5, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        x = self.attend(q, k, self.by_head(self.v(x), self.value_dim), bias)
        return self.proj(x.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class BiasedByPyTorch(Biased):
    """The bias is the mask of PyTorch's own operator."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q * self.factor, k, v, attn_mask=bias, scale=1.0)


@pytest.mark.parametrize("kind", [Biased, BiasedByPyTorch])
def test_what_a_table_or_a_factor_says_of_each_head_follows(kind: type[Biased]) -> None:
    torch.manual_seed(1)
    net, graph, x = traced(kind())
    assert free(graph) == {"q:heads": HEADS}
    smaller = graph.cut(net, {"q:heads": STAY})
    q, k, v = FORMS["separate"].operands(net, x)
    made = []
    for head in STAY:
        bias = torch.stack([torch.stack([net.table[i - j + 4, head] for j in range(5)]) for i in range(5)])
        made.append((q[:, head] @ k[:, head].mT * net.factor[head] + bias).softmax(-1) @ v[:, head])
    with torch.no_grad():
        assert (smaller(x) - of_heads(made, net.proj, VALUES)).abs().max() <= 1e-12
    assert (smaller.table.shape, smaller.factor.shape) == ((9, 2), (2, 1, 1))
    checked_cut(graph, net, {"q:heads": STAY}, x)


class Rotated(Separate):
    """Rotary positions: neighbouring channels turn together, alike in all heads. Only whole heads can go."""

    def __init__(self) -> None:
        super().__init__()
        angles = torch.outer(torch.arange(5.0), torch.tensor([1.0, 0.3, 0.1, 0.03])).repeat_interleave(2, -1)
        self.register_buffer("cosine", angles.cos())
        self.register_buffer("sine", angles.sin())

    def turned(self, x: Tensor) -> Tensor:
        by_side = torch.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)
        return x * self.cosine + by_side * self.sine

    def forward(self, x: Tensor) -> Tensor:
        q, k = (self.turned(self.by_head(layer(x), self.key_dim)) for layer in (self.q, self.k))
        x = F.scaled_dot_product_attention(q, k, self.by_head(self.v(x), self.value_dim))
        return self.proj(x.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def test_heads_go_where_positions_turn_the_widths() -> None:
    torch.manual_seed(1)
    net, graph, x = traced(Rotated())
    assert free(graph) == {"q:heads": HEADS}
    q, k, v = FORMS["separate"].operands(net, x)
    turns = torch.complex(net.cosine[:, ::2], net.sine[:, ::2])

    def turned(values: Tensor) -> Tensor:
        return torch.view_as_real(torch.view_as_complex(values.unflatten(-1, (-1, 2))) * turns).flatten(-2)

    made = [
        (turned(q[:, head].contiguous()) @ turned(k[:, head].contiguous()).mT * WIDTH**-0.5).softmax(-1) @ v[:, head]
        for head in STAY
    ]
    with torch.no_grad():
        smaller = checked_cut(graph, net, {"q:heads": STAY}, x)
        assert (smaller(x) - of_heads(made, net.proj, VALUES)).abs().max() <= 1e-12


class MixedHeads(Separate):
    """A layer mixes the products of all heads before their softmax: heads before it and behind it are others."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(HEADS, HEADS)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.by_head(self.q(x), self.key_dim), self.by_head(self.k(x), self.key_dim)
        weights = self.mix((q @ k.transpose(-2, -1)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(-1)
        x = weights @ self.by_head(self.v(x), self.value_dim)
        return self.proj(x.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def test_heads_that_a_layer_mixes_equal_their_reference_or_stay() -> None:
    torch.manual_seed(1)
    net, graph, x = traced(MixedHeads())
    keep = {name: list(range(width - 1)) for name, width in free(graph).items()}
    assert keep
    checked_cut(graph, net, keep, x)


@pytest.mark.parametrize("kind", [Shares, pytest.param(OfPyTorch, marks=pytest.mark.slow)])
def test_heads_that_are_shares_of_the_embedding_stay_and_widths_are_cut(kind: type[nn.Module]) -> None:
    torch.manual_seed(1)
    net, graph, x = traced(Embedded(kind), (2, 5, 3))
    plain = ChannelGraph.trace(net, (x,))
    assert free(graph) == free(plain) == {"stem": DIM // HEADS}
    assert graph.heads is not None
    assert len(graph.heads.left) == 2
    assert all("is reshaped to lengths that do not follow" in reason for reason in graph.heads.left.values())
    with pytest.raises(UserError, match=r"net has no whole heads .* the attention 'blocks\.0.* --attention-cuts"):
        require_whole_heads(graph, "net")
    require_whole_heads(plain, "net")
    checked_cut(graph, net, {"stem": [0, 2, 3]}, x)


def test_queries_of_one_head_of_keys_keep_their_heads() -> None:
    """The keys are repeated as often as there are heads: nothing of them is a head that could go."""
    torch.manual_seed(1)
    _, graph, _ = traced(FORMS["shared"].kind())
    assert free(graph) == {"q": WIDTH, "v": VALUES}
    assert graph.heads is not None
    assert "is combined with channels that cannot be cut" in graph.heads.left[""]


class Both(nn.Module):
    """A block whose heads can be cut beside one whose cannot, and a head that is there in training only."""

    def __init__(self, *, auxiliary: bool = False) -> None:
        super().__init__()
        self.stem, self.first, self.head = nn.Linear(3, DIM), Fused(), nn.Linear(DIM, 4)
        self.second = OfPyTorch()
        self.auxiliary = nn.Linear(DIM, 4) if auxiliary else None

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        x = x + self.first(x)
        x = x + self.second(x)
        return (self.head(x), self.auxiliary(x)) if self.training and self.auxiliary is not None else self.head(x)


@pytest.mark.parametrize("auxiliary", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_each_block_is_cut_in_the_way_that_it_can_be(auxiliary: bool) -> None:
    torch.manual_seed(1)
    net, graph, x = traced(Both(auxiliary=auxiliary), (2, 5, 3))
    assert free(graph) == {"stem": DIM // HEADS, "first.qkv:heads": HEADS}
    assert graph.heads is not None
    assert set(graph.heads.left) == {"second.inner"}
    checked_cut(graph, net, {"stem": [0, 2, 3], "first.qkv:heads": STAY}, x)
    only = select(graph, only=["kind:heads"])
    assert set(free(only)) == {"first.qkv:heads"}


def test_a_cut_network_has_the_same_groups_down_to_one_head() -> None:
    torch.manual_seed(1)
    net, graph, x = traced(Both(), (2, 5, 3))
    smaller = graph.cut(net, {"first.qkv:heads": [1]})
    again = ChannelGraph.trace(smaller, (x,), heads=graph.heads)
    assert again.widths == graph.widths | {"first.qkv:heads": 1}
    assert free(again) == {"stem": DIM // HEADS, "first.qkv:heads": 1}
    checked_cut(again, smaller, {"stem": [0, 2, 3]}, x)


def test_deit_cut_by_heads_computes_what_its_remaining_heads_do() -> None:
    torch.manual_seed(1)
    net = timm.create_model("deit_tiny_patch16_224", img_size=32, depth=2, num_classes=5)
    net, graph, x = traced(net, (2, 3, 32, 32))
    names = [f"blocks.{block}.attn.qkv:heads" for block in range(2)]
    assert {name: width for name, width in free(graph).items() if name.endswith(":heads")} == dict.fromkeys(names, 3)
    smaller = checked_cut(graph, net, dict.fromkeys(names, STAY), x)
    assert [block.attn.num_heads for block in smaller.blocks] == [2, 2]

    def block(each: nn.Module, x: Tensor) -> Tensor:
        q, k, v = each.attn.qkv(each.norm1(x)).split(192, -1)
        heads = [slice(64 * head, 64 * (head + 1)) for head in STAY]
        made = [(q[..., s] @ k[..., s].mT / 8).softmax(-1) @ v[..., s] for s in heads]
        x = x + of_heads(made, each.attn.proj, 64)
        return x + each.mlp(each.norm2(x))  # type: ignore[no-any-return]

    with torch.no_grad():
        tokens = net.patch_embed(x)
        tokens = torch.cat([net.cls_token.expand(2, -1, -1), tokens], 1) + net.pos_embed
        for each in net.blocks:
            tokens = block(each, tokens)
        assert (net.head(net.norm(tokens)[:, 0]) - smaller(x)).abs().max() <= 1e-11
