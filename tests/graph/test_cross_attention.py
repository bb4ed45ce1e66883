"""Queries of one stream and keys and values of others: PyTorch's layer keeps the weights of all three in one parameter.

Its pieces are read by different layers and share their columns, so that streams of equal width are cut together. The
expected attention is computed here from the layer's weights, with masks over channels and a fixed scale; whole networks
with norms are compared with the exported program of the uncut one.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aap_hw.graph import ChannelGraph
from aap_hw.graph.check.self_check import checked_cut

DIM, HEADS, TOKENS = 12, 3, 5
SCALE = (DIM // HEADS) ** -0.5


def hiding() -> Tensor:
    """A mask that hides later tokens."""
    return torch.triu(torch.full((TOKENS, TOKENS), -1e4), 1)


class Streams(nn.Module):
    """Attention between what three layers make."""

    def __init__(self, operands: str, needs_weights: bool = False, **options: Any) -> None:
        super().__init__()
        self.operands, self.needs_weights = operands, needs_weights
        self.a, self.b = nn.Linear(3, DIM), nn.Linear(3, options.get("kdim", DIM))
        self.c, self.head = nn.Linear(3, options.get("vdim", DIM)), nn.Linear(DIM, 4)
        self.inner = nn.MultiheadAttention(DIM, HEADS, batch_first=True, **options)
        for bias in (self.inner.in_proj_bias, self.inner.out_proj.bias):
            if bias is not None:
                nn.init.normal_(bias)

    def of(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values."""
        if self.operands == "places":  # as in DETR: queries and keys know where they are, values do not
            a = a + b
            return a, a, c
        return {"abb": (a, b, b), "abc": (a, b, c)}[self.operands]

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        q, k, v = self.of(a, self.b(x), self.c(x))
        made, _ = self.inner(q, k, v, need_weights=self.needs_weights, attn_mask=hiding().to(x.dtype))
        return self.head(a + made)  # type: ignore[no-any-return]


def expected(net: Streams, x: Tensor, masks: dict[str, Tensor]) -> Tensor:
    """Attention of the whole network in which channels are masked; what has no mask of its own has that of ``a``."""
    inner, mask = net.inner, masks["a"]
    a, b, c = (layer(x) * masks.get(name, mask) for name, layer in (("a", net.a), ("b", net.b), ("c", net.c)))
    weights: list[Any] = [inner.q_proj_weight, inner.k_proj_weight, inner.v_proj_weight]
    biases: list[Tensor | None] = [None] * 3
    if inner.in_proj_weight is not None:
        weights = list(inner.in_proj_weight.split(DIM))
    if inner.in_proj_bias is not None:
        biases = list(inner.in_proj_bias.split(DIM))
    q, k, v = (
        (F.linear(each, weight, bias) * mask).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for each, weight, bias in zip(net.of(a, b, c), weights, biases, strict=True)
    )
    shares = (torch.einsum("nhqd,nhkd->nhqk", q, k) * SCALE + hiding()).softmax(-1)
    made = (shares @ v).transpose(1, 2).flatten(2)
    return net.head(a + F.linear(made, inner.out_proj.weight, inner.out_proj.bias) * mask)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("options", "widths"),
    [
        ({"operands": "abb"}, {"a": 4, "c": 12}),
        ({"operands": "abb", "bias": False, "needs_weights": True}, {"a": 4, "c": 12}),
        ({"operands": "abc"}, {"a": 4}),
        ({"operands": "places"}, {"a": 4}),
        ({"operands": "abc", "kdim": 9, "vdim": 6}, {"a": 4, "b": 9, "c": 6}),
    ],
    ids=lambda value: "-".join(map(str, value.values())),
)
def test_streams_that_meet_in_one_parameter_are_cut_together(options: dict[str, Any], widths: dict[str, int]) -> None:
    torch.manual_seed(1)
    net, x = Streams(**options).double().eval(), torch.randn((2, TOKENS, 3), dtype=torch.float64)
    graph = ChannelGraph.trace(net, (x,))
    assert {group.name: group.width for group in graph.groups if group.frozen is None} == widths
    keep = {"a": [0, 2, 3], "b": [0, 2, 3, 7], "c": [1, 4, 5]}
    keep = {name: kept for name, kept in keep.items() if name in widths}
    masks = {
        name: torch.zeros(widths[name], dtype=torch.float64).index_fill_(0, torch.tensor(kept), 1.0)
        for name, kept in keep.items()
    }
    masks["a"] = masks["a"].repeat(HEADS)
    with torch.no_grad():
        smaller, wanted = graph.cut(net, keep), expected(net, x, masks)
        assert (smaller(x) - wanted).abs().max() <= 1e-12
        assert (net(x) - wanted).abs().max() > 1e-3
    read = [len(keep.get(name, [])) if name in ("b", "c") and "kdim" in options else 9 for name in "abc"]
    inner = smaller.get_submodule("inner")
    assert [inner.embed_dim, inner.kdim, inner.vdim, inner.head_dim] == [*read, 3]


class Detector(nn.Module):
    """As DETR: places are added to an image's features, and a decoder's own queries look for objects in them."""

    shape = (2, 3, 8, 8)
    free = ("backbone.0", "encoder.layers.0.linear1", "decoder.layers.0.linear1", "box.0")

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.features = nn.Conv2d(8, DIM, 1)
        self.places, self.queries = nn.Parameter(torch.rand(16, 1, DIM)), nn.Embedding(TOKENS, DIM)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(DIM, HEADS, 16), 1, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(DIM, HEADS, 16), 1)
        self.classes, self.box = nn.Linear(DIM, 3), nn.Sequential(nn.Linear(DIM, 10), nn.ReLU(), nn.Linear(10, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        memory = self.encoder(self.features(self.backbone(x)).flatten(2).permute(2, 0, 1) + self.places)
        found = self.decoder(self.queries.weight.unsqueeze(1).repeat(1, x.shape[0], 1), memory).transpose(0, 1)
        return self.classes(found), self.box(found).sigmoid()


class Translator(nn.Module):
    """PyTorch's whole transformer, with norms before its layers and a mask."""

    shape = (2, TOKENS, 3)
    free = ("inner.encoder.layers.0.linear1", "inner.decoder.layers.0.linear1")

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target, self.head = nn.Linear(3, DIM), nn.Linear(3, DIM), nn.Linear(DIM, 4)
        self.inner = nn.Transformer(DIM, HEADS, 1, 1, 16, batch_first=True, norm_first=True)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(TOKENS)
        made = self.inner(self.source(x), self.target(x), tgt_mask=mask, tgt_is_causal=False)
        return self.head(made)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("kind", "stream"), [pytest.param(Detector, "features", marks=pytest.mark.slow), (Translator, "source")]
)
def test_encoder_and_decoder_are_cut_as_one_stream(kind: type[Detector | Translator], stream: str) -> None:
    torch.manual_seed(1)
    net, x = kind().eval(), torch.randn(kind.shape)
    for parameter in net.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 1.0, 0.3)
    graph = ChannelGraph.trace(net, (x,))
    free = {group.name: group for group in graph.groups if group.frozen is None}
    assert free.keys() == {stream, *kind.free}
    assert free[stream].width == DIM // HEADS
    assert all("reaches the network's output" in str(group.frozen) for group in graph.groups if group.frozen)
    keep = {name: list(range(0, group.width, 2)) for name, group in free.items()}
    smaller = checked_cut(graph, net, keep, x)
    assert sum(each.numel() for each in smaller.parameters()) < 0.4 * sum(each.numel() for each in net.parameters())


class DividedWithItsMask(nn.Module):
    """The root divides the sum of products and a mask, which no weight can make up for."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.q(x), self.k(x)
        mask = torch.linspace(-1, 1, TOKENS).expand(x.shape[0], TOKENS, TOKENS)
        shares = torch.baddbmm(mask, q, k.mT) / q.shape[-1] ** 0.5
        return shares.softmax(-1) @ self.v(x)  # type: ignore[no-any-return]


def test_mask_that_is_divided_with_the_products_freezes_their_width() -> None:
    torch.manual_seed(1)
    graph = ChannelGraph.trace(DividedWithItsMask().eval(), (torch.randn(2, TOKENS, 3),))
    assert "computes something else once it is cut" in str(graph.group("q").frozen)


def test_masks_of_pytorchs_transformer_need_no_hint() -> None:
    class Translator(nn.Module):
        """PyTorch looks whether a mask is causal unless ``tgt_is_causal`` tells, and a program has no values yet."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(3, DIM), nn.Linear(3, DIM), nn.Linear(DIM, 4)
            self.inner = nn.Transformer(DIM, HEADS, 1, 1, 16, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            hidden = nn.Transformer.generate_square_subsequent_mask(TOKENS)
            return self.head(self.inner(self.a(x), self.b(x), src_mask=hidden, tgt_mask=hidden))

    torch.manual_seed(0)
    model, x = Translator().eval(), torch.randn(2, TOKENS, 3)
    graph = ChannelGraph.trace(model, (x,))
    free = {group.name: group.width for group in graph.groups if group.frozen is None}
    assert free == {"a": 4, "inner.encoder.layers.0.linear1": 16, "inner.decoder.layers.0.linear1": 16}
    checked_cut(graph, model, {"a": [0, 2], "inner.decoder.layers.0.linear1": range(5)}, x)
