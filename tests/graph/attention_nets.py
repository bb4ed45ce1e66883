"""Attention as networks write it: one layer or several, products or PyTorch's own operator."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS, WIDTH, VALUES, DIM = 3, 8, 4, 12


class Fused(nn.Module):
    """One layer for all three, in timm's way; PyTorch's own scale."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim, self.scale = HEADS, WIDTH, HEADS * WIDTH, WIDTH**-0.5
        self.qkv, self.proj = nn.Linear(DIM, 3 * self.attn_dim), nn.Linear(self.attn_dim, DIM)

    def forward(module, x: Tensor) -> Tensor:  # noqa: N805 - some call it so
        b, n, _ = x.shape
        q, k, v = module.qkv(x).reshape(b, n, 3, module.num_heads, module.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return module.proj(x.transpose(1, 2).reshape(b, n, module.attn_dim))  # type: ignore[no-any-return]


class Separate(nn.Module):
    """A layer each, values of their own width, PyTorch's own scale, views in a method."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.key_dim, self.value_dim = HEADS, WIDTH, VALUES
        self.q, self.k = nn.Linear(DIM, HEADS * WIDTH), nn.Linear(DIM, HEADS * WIDTH, bias=False)
        self.v, self.proj = nn.Linear(DIM, HEADS * VALUES), nn.Linear(HEADS * VALUES, DIM)

    def by_head(self, x: Tensor, width: int) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.num_heads, width).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.by_head(self.q(x), self.key_dim), self.by_head(self.k(x), self.key_dim)
        x = F.scaled_dot_product_attention(q, k, self.by_head(self.v(x), self.value_dim))
        return self.proj(x.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class SharedKeys(Separate):
    """One head of keys and values for all queries."""

    def __init__(self) -> None:
        super().__init__()
        self.k, self.v = nn.Linear(DIM, WIDTH), nn.Linear(DIM, VALUES)

    def forward(self, x: Tensor) -> Tensor:
        q = self.by_head(self.q(x), self.key_dim)
        k, v = (layer(x)[:, None].repeat_interleave(self.num_heads, dim=1) for layer in (self.k, self.v))
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class SharedByPyTorch(SharedKeys):
    """The same without copies of keys and values."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.by_head(self.q(x), self.key_dim), self.k(x)[:, None], self.v(x)[:, None]
        x = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.proj(x.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class WrittenOut(Separate):
    """The two products with a scale that is kept, heads joined with those of the images."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 0.3

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.num_heads, -1).transpose(1, 2).flatten(0, 1)
        k = self.k(x).view(b, n, self.num_heads, -1).permute(0, 2, 3, 1).flatten(0, 1)
        v = self.v(x).view(b, n, self.num_heads, -1).transpose(1, 2).flatten(0, 1)
        x = torch.bmm((torch.bmm(q, k) * self.scale).softmax(-1), v)
        x = x.view(b, self.num_heads, n, -1).transpose(1, 2)
        joined = (*x.size()[:-2], self.num_heads * self.value_dim)
        return self.proj(x.reshape(*joined))  # type: ignore[no-any-return]


class AsManyAsFit(Separate):
    """Queries are as many heads as fit, keys and values as many as the code says, as in Whisper."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.q(x).view(b, n, -1, self.key_dim).transpose(1, 2)
        k = self.k(x).view(b, -1, self.num_heads, self.key_dim).transpose(1, 2)
        v = self.v(x).view(b, -1, self.num_heads, self.value_dim).transpose(1, 2)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, n, -1))  # type: ignore[no-any-return]


class RelativePlaces(Separate):
    """Queries meet codes of relative positions as well as keys, as in SAM: only the keys can make up for the root."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])
        codes = self.table[places[:, None] - places + x.shape[1] - 1]
        q, k = self.by_head(self.q(x), self.key_dim), self.by_head(self.k(x), self.key_dim)
        bias = torch.einsum("nhqd,qkd->nhqk", q, codes)
        x = F.scaled_dot_product_attention(q, k, self.by_head(self.v(x), self.value_dim), attn_mask=bias)
        return self.proj(x.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Einsum(Separate):
    """Letters, with a split of one layer for keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.kv, self.scale = nn.Linear(DIM, HEADS * (WIDTH + VALUES)), WIDTH**-0.5
        del self.k, self.v

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.q(x).reshape(b, n, self.num_heads, self.key_dim) * self.scale
        k, v = self.kv(x).reshape(b, n, self.num_heads, -1).split([self.key_dim, self.value_dim], dim=-1)
        weights = torch.einsum("nqhd,nkhd->nhqk", q, k).softmax(-1)
        x = torch.einsum("nhqk,nkhv->nqhv", weights, v)
        return self.proj(x.reshape(b, n, -1))  # type: ignore[no-any-return]


class Conv1D(nn.Module):
    """A layer as GPT-2 writes it."""

    def __init__(self, filters: int, channels: int) -> None:
        super().__init__()
        self.nf = filters
        self.weight, self.bias = nn.Parameter(torch.randn(channels, filters) / 3), nn.Parameter(torch.randn(filters))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.size()[:-1], self.nf)


class Gpt2(nn.Module):
    """One layer for all three, whose heads are as wide as the embedding together; PyTorch's own scale."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.split_size = HEADS, DIM // HEADS, DIM
        self.c_attn, self.c_proj = Conv1D(3 * DIM, DIM), Conv1D(DIM, DIM)

    def by_head(self, x: Tensor) -> Tensor:
        return x.view(*x.size()[:-1], self.num_heads, self.head_dim).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = map(self.by_head, self.c_attn(x).split(self.split_size, dim=2))
        x = self.attend(q, k, v).transpose(1, 2).contiguous()
        return self.c_proj(x.view(*x.size()[:-2], self.num_heads * self.head_dim))  # type: ignore[no-any-return]


class Gpt2WrittenOut(Gpt2):
    """The root that the products are divided by is in a tensor."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = q @ k.transpose(-1, -2)
        weights = weights / torch.full([], v.size(-1) ** 0.5, dtype=weights.dtype)
        later = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool).triu(1)
        return weights.masked_fill(later, -torch.inf).softmax(-1) @ v


class Gpt2Block(nn.Module):
    """A whole block on an embedding, with its MLP."""

    def __init__(self, kind: type[Gpt2]) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, DIM), nn.Linear(DIM, 4)
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(DIM), kind(), nn.LayerNorm(DIM)
        self.c_fc, self.c_proj = Conv1D(4 * DIM, DIM), Conv1D(DIM, 4 * DIM)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.attn(self.ln_1(x))
        x = x + self.c_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))
        return self.head(x)  # type: ignore[no-any-return]


class Shares(nn.Module):
    """Heads are shares of the embedding, which the code divides: neither can be cut without the other."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.scale = HEADS, 0.4
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, width: int) -> Tensor:
        return (q * self.scale @ k.transpose(-2, -1)).softmax(-1) @ v

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        width = c // self.num_heads
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, width).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(self.attend(q, k, v, width).transpose(1, 2).reshape(b, n, c))  # type: ignore[no-any-return]


class DividedBehind(Shares):
    """The products are divided by the root of a width that the code computes."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, width: int) -> Tensor:
        return (q @ k.transpose(-2, -1) / width**0.5).softmax(-1) @ v


class DividedBefore(Shares):
    """The queries are."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, width: int) -> Tensor:
        return (q * width**-0.5 @ k.transpose(-2, -1)).softmax(-1) @ v


class OneHead(nn.Module):
    """No views; the products are divided by the root of a width that the code asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(DIM, WIDTH), nn.Linear(DIM, WIDTH)
        self.v, self.proj = nn.Linear(DIM, VALUES), nn.Linear(VALUES, DIM)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x)
        weights = q @ self.k(x).transpose(1, 2) / self.root(q.shape[-1])
        return self.proj(weights.softmax(-1) @ self.v(x))  # type: ignore[no-any-return]

    def root(self, width: int) -> float | Tensor:
        return math.sqrt(width)


class OneHeadInViews(OneHead):
    """As many heads as fit, which is one, as in the first stage of SegFormer."""

    def __init__(self) -> None:
        super().__init__()
        self.key_dim, self.value_dim = WIDTH, VALUES

    def forward(self, x: Tensor) -> Tensor:
        q, k = (layer(x).view(*x.shape[:-1], -1, self.key_dim).transpose(1, 2) for layer in (self.q, self.k))
        v = self.v(x).view(*x.shape[:-1], -1, self.value_dim).transpose(1, 2)
        made = (q @ k.mT / self.root(q.shape[-1])).softmax(-1) @ v
        return self.proj(made.transpose(1, 2).reshape(*x.shape[:-1], -1))  # type: ignore[no-any-return]


class FittingHeads(nn.Module):
    """As many heads of a kept width as fit; the products are divided by its root."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.width = DIM // heads
        self.q, self.k, self.v, self.proj = (nn.Linear(DIM, DIM) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(*x.shape[:-1], -1, self.width).transpose(1, 2) for layer in (self.q, self.k, self.v))
        made = (q @ k.mT / math.sqrt(self.width)).softmax(-1) @ v
        return self.proj(made.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class OneHeadByTensor(OneHead):
    """The root is in a tensor, as GPT-2's is; no other number of the code is in doubt."""

    def root(self, width: int) -> float | Tensor:
        return torch.full([], width**0.5, dtype=self.q.weight.dtype)


class OneHeadByConstant(OneHead):
    """The width is in a tensor that export takes for a constant, and the root is of that."""

    def root(self, width: int) -> float | Tensor:
        return torch.sqrt(torch.tensor(width, dtype=torch.float32))


class GatedByLargest(Separate):
    """As YOLO-World writes it: the largest product opens a gate, and is divided by the root of a kept width."""

    def largest(self, products: Tensor) -> Tensor:
        return products.max(dim=-1)[0].view(products.shape[:-1])

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.by_head(self.q(x), self.key_dim), self.by_head(self.k(x), self.key_dim)
        gates = (self.largest(q @ k.mT) / self.key_dim**0.5).sigmoid()
        made = self.by_head(self.v(x), self.value_dim) * gates[..., None]
        return self.proj(made.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class GatedByPlaceOfLargest(GatedByLargest):
    """The gate is where the largest product is, which no weight can make smaller."""

    def largest(self, products: Tensor) -> Tensor:
        return products.max(dim=-1)[1]


class OfPixels(nn.Module):
    """As diffusion models write it: the queries say how many channels all three are reshaped to, and their root."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Conv2d(DIM, WIDTH, 1) for _ in range(3))
        self.project = nn.Conv2d(WIDTH, DIM, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        b, c, h, w = q.shape
        q = q.reshape(b, c, h * w).permute(0, 2, 1)
        k = k.reshape(b, c, h * w)
        weights = (torch.bmm(q, k) * int(c) ** (-0.5)).softmax(2)
        v = v.reshape(b, c, h * w)
        y = torch.bmm(v, weights.permute(0, 2, 1))
        return x + self.project(y.reshape(b, c, h, w))  # type: ignore[no-any-return]


class DividedByMore(Shares):
    """The products are divided by something else that changes with the width."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, width: int) -> Tensor:
        return (q @ k.transpose(-2, -1) / width).softmax(-1) @ v


class DividedByMoreInTensor(Shares):
    """The same number in a tensor."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, width: int) -> Tensor:
        return (q @ k.transpose(-2, -1) / torch.full([], float(width))).softmax(-1) @ v


class FixedWidth(Shares):
    """The width of a head is a number in the code."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, width: int) -> Tensor:
        return super().attend(q.reshape(*q.shape[:-1], 2, 2).flatten(-2), k, v, width)


class Beside(nn.Module):
    """PyTorch's own layer beside those of the embedding, in no module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, DIM), nn.Linear(DIM, 4)
        self.inner = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
        nn.init.normal_(self.inner.in_proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.inner(x, x, x)[0])  # type: ignore[no-any-return]


class OfPyTorch(nn.Module):
    """PyTorch's own layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
        nn.init.normal_(self.inner.in_proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]  # type: ignore[no-any-return]


class Embedded(nn.Module):
    """Two blocks on one embedding."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = nn.Linear(3, DIM), nn.ModuleList([kind(), kind()]), nn.Linear(DIM, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)  # type: ignore[no-any-return]
