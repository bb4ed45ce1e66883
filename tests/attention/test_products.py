"""Queries are read by keys, and keys by queries: the variance that a channel adds to the products, by hand."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from aap_hw import ChannelGraph
from aap_hw.attention import observed, read_attention
from tests.graph.attention_nets import DIM, HEADS, WIDTH, Fused, Separate, WrittenOut


class Divided(Separate):
    """The products are divided by a number."""

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.by_head(self.q(x), self.key_dim), self.by_head(self.k(x), self.key_dim)
        x = (q @ k.mT / 0.4).softmax(-1) @ self.by_head(self.v(x), self.value_dim)
        return self.proj(x.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def test_queries_and_keys_count_by_the_variance_that_they_add_to_their_products() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 5, DIM)
    for kind, scale in ((Separate, WIDTH**-0.5), (WrittenOut, 0.3), (Divided, 2.5)):
        net = kind().eval()
        with torch.no_grad():
            net.q.weight.view(HEADS, WIDTH, DIM)[:, 2] = net.q.bias.view(HEADS, WIDTH)[:, 2] = 0
            q, k = (layer(x).unflatten(-1, (HEADS, WIDTH)).flatten(0, 2).double().numpy() for layer in (net.q, net.k))
        graph = ChannelGraph.trace(net, (x[:2],))
        seen = observed(net, [x], graph=graph)
        scores = read_attention(net, graph, seen.variances(), seen.products())
        by_hand = HEADS * scale**2 * (q.var(0) * (k**2).mean(0) + k.var(0) * (q**2).mean(0))
        np.testing.assert_allclose(scores["q"], by_hand, rtol=1e-4, atol=1e-9)
        assert scores["q"][2] == 0 < np.delete(scores["q"], 2).min()
        assert set(seen.products()) == {"q"}


def test_what_a_layer_and_a_product_read_of_one_channel_adds_up() -> None:
    torch.manual_seed(0)
    net, x = Fused().eval(), torch.randn(6, 5, DIM)
    graph = ChannelGraph.trace(net, (x[:2],))
    seen = observed(net, [x], graph=graph)
    with torch.no_grad():
        made = (
            F.linear(x, net.qkv.weight, net.qkv.bias).unflatten(-1, (3 * HEADS, WIDTH)).flatten(0, 1).double().numpy()
        )
    squares = net.proj.weight.detach().square().sum(0).view(HEADS, WIDTH).sum(0).double().numpy()
    scores = read_attention(net, graph, seen.variances(), seen.products())["qkv"]
    np.testing.assert_allclose(scores, made.var(0).mean(0) * squares + seen.products()["qkv"], rtol=1e-4)


def test_heads_count_by_what_they_made_where_the_projection_reads_it() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 5, DIM)
    for kind in (Fused, Separate):
        net = kind().eval()
        seen: list[torch.Tensor] = []
        net.proj.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        with torch.no_grad():
            net(x)
        made = seen[0].unflatten(-1, (HEADS, -1)).flatten(0, 1).double().numpy()
        squares = net.proj.weight.detach().square().sum(0).view(HEADS, -1).sum(1).double().numpy()
        graph = ChannelGraph.trace(net, (x[:2],), heads=True)
        (group,) = (each.name for each in graph.groups if each.frozen is None)
        observer = observed(net, [x], graph=graph)
        scores = read_attention(net, graph, observer.variances(), observer.products())[group]
        np.testing.assert_allclose(scores, made.var(0).mean(1) * squares, rtol=1e-4)
        np.testing.assert_allclose(observer.scores()[group], np.abs(made).mean((0, 2)), rtol=1e-4)
        traced_anew = observed(net, [x], heads=graph.heads)
        np.testing.assert_allclose(traced_anew.scores()[group], observer.scores()[group], rtol=1e-4)
