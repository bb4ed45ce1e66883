"""Forms of attention, and how to read queries, keys and values off the weights of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.attention_nets import (
    DIM,
    HEADS,
    VALUES,
    WIDTH,
    AsManyAsFit,
    Einsum,
    Fused,
    Separate,
    SharedByPyTorch,
    SharedKeys,
    WrittenOut,
)

SHAPE = (2, 5, DIM)
READ, MADE = [0, 3, 4, 6, 7], [1, 2]


def by_head(layer: nn.Linear, x: Tensor, first: int, step: int, width: int) -> Tensor:
    """What a layer makes for each head, (N, heads, tokens, width): filters from ``first`` on, heads ``step`` apart."""
    made = F.linear(x, layer.weight, layer.bias)
    return torch.stack([made[..., first + step * head :][..., :width] for head in range(HEADS)], 1)


def of_fused(net: nn.Module, x: Tensor) -> list[Tensor]:
    return [by_head(net.qkv, x, part * HEADS * WIDTH, WIDTH, WIDTH) for part in range(3)]


def of_separate(net: nn.Module, x: Tensor) -> list[Tensor]:
    widths = (net.q, WIDTH), (net.k, WIDTH), (net.v, VALUES)
    return [by_head(layer, x, 0, width, width) for layer, width in widths]


def of_shared(net: nn.Module, x: Tensor) -> list[Tensor]:
    return [by_head(net.q, x, 0, WIDTH, WIDTH), net.k(x)[:, None], net.v(x)[:, None]]


def of_einsum(net: nn.Module, x: Tensor) -> list[Tensor]:
    step = WIDTH + VALUES
    parts = (net.q, 0, WIDTH, WIDTH), (net.kv, 0, step, WIDTH), (net.kv, WIDTH, step, VALUES)
    return [by_head(layer, x, *places) for layer, *places in parts]


@dataclass(frozen=True)
class Form:
    """A module, how to read its queries, keys and values, its scale, and which groups its channels are in."""

    kind: type[nn.Module]
    operands: Callable[[nn.Module, Tensor], list[Tensor]]
    scale: float
    keep: dict[str, list[int]]
    widths: dict[str, int]


FORMS = {
    "fused": Form(Fused, of_fused, WIDTH**-0.5, {"qkv": READ}, {"head_dim": 5, "attn_dim": 15, "num_heads": 3}),
    "separate": Form(Separate, of_separate, WIDTH**-0.5, {"q": READ, "v": MADE}, {"key_dim": 5, "value_dim": 2}),
    "shared": Form(SharedKeys, of_shared, WIDTH**-0.5, {"q": READ, "v": MADE}, {"key_dim": 5}),
    "shared by PyTorch": Form(SharedByPyTorch, of_shared, WIDTH**-0.5, {"q": READ, "v": MADE}, {"key_dim": 5}),
    "written out": Form(WrittenOut, of_separate, 0.3, {"q": READ, "v": MADE}, {"value_dim": 2, "num_heads": 3}),
    "as many as fit": Form(
        AsManyAsFit, of_separate, WIDTH**-0.5, {"q": READ, "v": MADE}, {"key_dim": 5, "value_dim": 2, "num_heads": 3}
    ),
    "einsum": Form(Einsum, of_einsum, WIDTH**-0.5, {"q": READ, "kv": MADE}, {"key_dim": 5, "value_dim": 2}),
}
