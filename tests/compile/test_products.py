"""Proves that products of computed values and attention equal PyTorch's, however their operands lie in memory.

Operands are PyTorch's own views of one row of random numbers, and the texts of the keys say where these begin and how
far apart they are.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import tvm
from torch import Tensor, nn

from aap_hw.compile.families import multiply_accumulates
from aap_hw.compile.front.partition import partition
from aap_hw.compile.gpu.series import in_series
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.target import device_target
from aap_hw.compile.library.build import build_kernel
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from tests.compile.running import assert_compiled_equals_pytorch, called, target

GPU = device_target({"kind": "cuda", "arch": "sm_80"}, 1)
View = Callable[[Tensor], Tensor]


def in_order(*shape: int) -> View:
    return lambda row: row.view(shape)


def three_parts(part: int) -> View:
    """Queries, keys or values of 7 rows of 2 heads of 5 channels, as one linear layer makes them."""
    return lambda row: row.view(2, 7, 3, 2, 5).permute(2, 0, 3, 1, 4)[part]


def texts(views: dict[str, View], size: int) -> dict[str, str]:
    """How PyTorch's views lie, as the attributes of a key say it."""
    found = {}
    for name, view in views.items():
        tensor = view(torch.empty(size))
        found[name] = f"{size};{','.join(map(str, tensor.stride()))};{tensor.storage_offset()}"
    return found


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, **options: Any) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, mask, **options).transpose(1, 2)


PACKED = {"query": three_parts(0), "key": three_parts(1), "value": three_parts(2)}
# Operator, attributes, how large the row is that each operand is a view of, the views, and PyTorch's function of these.
CASES: list[tuple[str, dict[str, Any], int, dict[str, View], Callable[..., Tensor]]] = [
    ("matmul", {"shape": "3,5,7,9"}, 0, {"left": in_order(2, 3, 5, 7), "right": in_order(2, 3, 7, 9)}, torch.matmul),
    (
        "matmul", {"shape": "o,20,16,17", "epilogue": ("relu",)}, 680,
        {
            "left": lambda row: row[:640].view(2, 1, 16, 20).mT,
            "right": lambda row: row[3:547].view(2, 1, 17, 16).mT.expand(2, 1, 16, 17),
        },
        lambda a, b: (a @ b).relu(),
    ),
    (
        "matmul", {"shape": "2,33,40,o"}, 2600,
        {
            "left": lambda row: row.view(65, 40)[:33].expand(2, 2, 33, 40),
            "right": lambda row: row[:40].view(1, 1, 40, 1).expand(2, 2, 40, 1),
        },
        torch.matmul,
    ),
    ("attention", {"shape": "2,7,7,5,5"}, 420, PACKED, attend),
    (
        "attention", {"shape": "2,7,7,5,5", "made": "heads", "scale": "0.3", "causal": "1"}, 420, PACKED,
        lambda *a: attend(*a, is_causal=True, scale=0.3).transpose(1, 2),
    ),
    (
        "attention", {"shape": "3,70,33,16,20"}, 0,
        {"query": in_order(2, 3, 70, 16), "key": in_order(2, 3, 33, 16), "value": in_order(2, 3, 33, 20)}, attend,
    ),
    (
        "attention", {"shape": "4,9,65,8,31"}, 4030,
        {
            "query": lambda row: row[:576].view(2, 4, 8, 9).mT,
            "key": lambda row: row[:1040].view(2, 1, 65, 8).expand(2, 4, 65, 8),
            "value": lambda row: row[:4030].view(2, 1, 65, 31).expand(2, 4, 65, 31),
            "mask": lambda row: row[:585].view(9, 65).expand(2, 4, 9, 65),  # some of which is made -inf
        },
        attend,
    ),
    (
        "attention", {"shape": "2,7,7,5,5", "masked": "unseen", "masked_by": "constant"}, 420,
        PACKED | {"mask": lambda row: row[:49].view(7, 7).expand(2, 2, 7, 7)},
        lambda q, k, v, mask: attend(q, k, v, mask > 0),
    ),
    (
        "attention", {"shape": "2,7,7,5,5", "constant": "query"}, 420,
        {"key": three_parts(1), "value": three_parts(2), "query": three_parts(0)}, lambda k, v, q: attend(q, k, v),
    ),
    (
        "attention", {"shape": "2,7,7,5,5", "constant": "key+value", "masked_by": "constant+value"}, 420,
        {
            "query": three_parts(0),
            "mask_2": lambda row: row[:49].view(7, 7).expand(2, 2, 7, 7),
            "key": three_parts(1), "value": three_parts(2),
            "mask": lambda row: row[:196].view(2, 2, 7, 7),
        },
        lambda q, added, k, v, mask: attend(q, k, v, mask + added),
    ),
]  # fmt: skip


@pytest.mark.parametrize("device", ["cpu", pytest.param("gpu", marks=pytest.mark.slow)])
def test_products_equal_pytorch_of_operands_as_they_lie(device: str) -> None:
    functions, addresses = [], []
    for op, attributes, size, views, _ in CASES:
        ways = texts(views, size) if size else {}
        addresses.append(Address(KernelKey.make(op, (), 2, **attributes, **ways), (1, 1)))
        functions.append(build_kernel(addresses[-1], target() if device == "cpu" else GPU))
    module = {f"k{i}": in_series(f.code).with_attr("global_symbol", f"k{i}") for i, f in enumerate(functions)}
    library = tvm.compile(tvm.IRModule(module), target=target().tvm).jit()
    random = torch.Generator().manual_seed(4)
    for i, ((_, attributes, _, views, operator), function) in enumerate(zip(CASES, functions, strict=True)):
        rows = [torch.randn(argument.shape, generator=random) for argument in function.arguments]
        if "9,65" in attributes["shape"]:
            rows[3][:200] = -torch.inf
        actual = torch.from_numpy(called(library[f"k{i}"], function, rows))
        operands = [view(row) for view, row in zip(views.values(), rows, strict=True)]
        expected = operator(*[each.double() for each in operands])
        assert actual.shape == expected.shape
        assert (actual - expected).abs().max() <= 1e-5 * (1 + expected.abs().max()), addresses[i]


def test_multiply_accumulates_are_those_of_the_products() -> None:
    matmul = KernelKey.make("matmul", (), 2, shape="o,5,7,i+1")
    attention = KernelKey.make("attention", (), 2, shape="3,5,7,i,o")
    assert multiply_accumulates(Address(matmul, (8, 3))) == 2 * 3 * 5 * 7 * 9
    assert multiply_accumulates(Address(attention, (4, 6))) == 2 * 3 * 5 * 7 * (4 + 6)


@pytest.mark.parametrize("text", ["shape=2,3", "shape=2,3,4,x", "left=24;12,4 shape=2,3,4,5", "left=24 shape=2,3,4,5"])
def test_a_text_that_no_product_has_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is not a kernel of this version"):
        build_kernel(Address(KernelKey.parse(f"matmul - {text} float32 batch=1"), (1, 1)), target())


class Attending(nn.Module):
    """Attention as an operator and written out, its heads split and joined in the ways that networks do it."""

    def __init__(self, function: Callable[[Attending, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.rows, self.bias = nn.Linear(10, 30), nn.Parameter(torch.randn(2, 12, 12))
        self.image, self.square = nn.Conv2d(10, 34, 1), nn.Parameter(torch.randn(30, 30))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)

    def packed(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values (2, 2, 12, 5)."""
        made: Tensor = self.rows(x.flatten(2).transpose(1, 2))
        return made.reshape(2, 12, 3, 2, 5).permute(2, 0, 3, 1, 4).unbind(0)


def as_an_operator(m: Attending, x: Tensor) -> Tensor:
    q, k, v = m.packed(x)
    masked = F.scaled_dot_product_attention(q, k[:, :1, :5], v[:, :1, :5], m.bias[:, :, :5] > 0)
    biased = F.scaled_dot_product_attention(q, k, v, m.bias)
    return biased.transpose(1, 2).reshape(2, 12, 10) + masked.transpose(1, 2).reshape(2, 12, 10)


def with_learned_queries(m: Attending, x: Tensor) -> Tensor:
    _, k, v = m.packed(x)
    queries, mask = m.bias[None, :, :7, :5], x.flatten(2)[:, :1, None]
    one = F.scaled_dot_product_attention(queries, k, v, m.bias[:, :7])
    other = F.scaled_dot_product_attention(queries, k, v, mask)
    scores = queries.expand(2, 2, 7, 5) @ k.mT + mask + m.bias[:, 3:10]
    return one.transpose(1, 2) + other.transpose(1, 2) + (scores.softmax(-1) @ v).transpose(1, 2)


def with_learned_keys_and_values(m: Attending, x: Tensor) -> Tensor:
    q, k, v = m.packed(x)
    keys, values = m.bias[None, :, :, :5], m.bias[None, :, :, 5:10].expand(2, 2, 12, 5)
    operators = (F.scaled_dot_product_attention(*each) for each in ((q, keys, v), (q, k, values), (keys, keys, v)))
    written = (q @ keys.expand(2, 2, 12, 5).mT).softmax(-1) @ values
    return sum((each.transpose(1, 2) for each in operators), written.transpose(1, 2))


def written_out(m: Attending, x: Tensor) -> Tensor:
    q, k, v = m.packed(x)
    scores = (q @ k.transpose(-2, -1)) * 0.7 + m.bias
    return (F.dropout(scores.softmax(-1), training=False) @ v).transpose(1, 2).reshape(2, 12, 10)


def on_images(m: Attending, x: Tensor) -> Tensor:
    q, k, v = m.image(x).view(2, 2, 17, 12).split([4, 4, 9], 2)
    shares = ((q.transpose(-2, -1) @ k) * 0.5).softmax(-1)
    return (v @ shares.transpose(-2, -1)).view(2, 18, 3, 4)


def linear_attention(m: Attending, x: Tensor) -> Tensor:
    q, k, v = m.image(x)[:, :24].reshape(2, 2, 12, 12).transpose(-1, -2).chunk(3, -1)
    return (q.relu() @ (k.relu().transpose(-1, -2) @ v)).transpose(-1, -2).reshape(2, 8, 3, 4)


def with_another_reader(m: Attending, x: Tensor) -> Tensor:
    q, k, v = m.packed(x)
    shares = (q @ k.transpose(-2, -1)).softmax(-1)
    return torch.cat([shares @ v, torch.bmm(shares[0], v[1])[None]], 0)


def by_letters(m: Attending, x: Tensor) -> Tensor:
    rows = m.rows(x.flatten(2).transpose(1, 2)).reshape(2, 3, 4, 3, 2, 5)
    q, k, v = rows.permute(3, 0, 1, 4, 2, 5).unbind(0)  # three windows of four rows
    scores = torch.einsum("B W H I D, B W H J D -> B W H I J", q, k) + m.bias[:, :4, :4]
    attended = torch.einsum("bwhij,bwhjd->bwhid", scores.softmax(-1), v)
    return attended.permute(0, 1, 3, 2, 4).reshape(2, 12, 10) + torch.einsum("bwhid,bwhjd->bijwh", q, v).sum(1).mean()


def in_windows(m: Attending, x: Tensor) -> Tensor:
    """Windows of one image, of which some are masked, as shifted ones are."""
    q, k, v = m.rows(x[:1].flatten(2).transpose(1, 2)).reshape(3, 4, 3, 2, 5).permute(2, 0, 3, 1, 4).unbind(0)
    mask = m.bias.new_zeros((3, 4, 4))
    mask[1, :, 2:] = -100
    scores = q @ k.transpose(-2, -1) + m.bias[:, :4, :4].unsqueeze(0)
    scores = (scores.view(1, 3, 2, 4, 4) + mask.unsqueeze(1).unsqueeze(0)).view(-1, 2, 4, 4)
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(3, 4, 10)


def written_between(m: Attending, x: Tensor) -> Tensor:
    q, k, v = (each.clone() for each in m.packed(x))
    scores = q @ k.transpose(-2, -1)
    q.add_(1.0)
    return (scores.softmax(-1) @ v + q).transpose(1, 2).reshape(2, 12, 10)


def with_constants(m: Attending, x: Tensor) -> Tensor:
    rows = m.rows(x.flatten(2).transpose(1, 2))
    others = torch.tensordot(rows, m.square, 1) + torch.inner(m.square, rows).movedim(0, 2)
    return torch.cat([m.bias @ rows, rows @ m.image.weight[:30, :, 0, 0] @ m.bias[0, :10], others], 2)


def with_axes_apart(m: Attending, x: Tensor) -> Tensor:
    rows = m.rows(x.flatten(2).transpose(1, 2))
    graph = torch.einsum("nkctv,kvw->nctw", rows.view(2, 3, 4, 3, 10), m.square[:, :10].view(3, 10, 10))
    graph = graph + torch.einsum("nacb,nbda->ncd", *[rows.view(2, 3, 40, 3)[:, :, :4]] * 2)[..., :3, None]
    experts = torch.einsum("bnd,edh->benh", rows, m.square.view(3, 5, 2, 30).permute(1, 3, 0, 2).flatten(2))
    return graph.flatten(1) + experts.mean((1, 2, 3)).unsqueeze(1)


def with_computed_filters(m: Attending, x: Tensor) -> Tensor:
    rows, image = m.rows(x.flatten(2).transpose(1, 2)), m.image(x)
    dense = F.conv2d(image[:, :10], rows[0].reshape(4, 10, 3, 3), stride=2, padding=1)
    padded = F.conv2d(image[:1, 3:13], rows[1, :3].reshape(3, 10, 3, 1), padding=(1, 0)).expand(2, -1, -1, -1)
    of_lines = F.conv1d(image.flatten(2)[:, :12], rows[1, 8:].reshape(6, 4, 5), rows[0, 0, :6], groups=3)
    return torch.cat([each.flatten(1) for each in (dense, padded, of_lines)], 1)


def with_vectors(m: Attending, x: Tensor) -> Tensor:
    rows = m.rows(x.flatten(2).transpose(1, 2))
    row, column = rows[0, 0], rows.mean(2, keepdim=True)
    sums = rows @ m.square[0] + row @ rows.mT + torch.mv(rows[0], row) + torch.dot(row, m.square[1])
    sums = sums + F.linear(rows, m.square[2])
    return sums.unsqueeze(2) + (rows.mT @ column).mT


def with_sums(m: Attending, x: Tensor) -> Tensor:
    rows = m.rows(x.flatten(2).transpose(1, 2))
    scores = torch.baddbmm(m.bias, rows, rows.mT, beta=0.5, alpha=0.1)
    first = torch.addmm(scores[0, :1], rows[0].T, scores[1], alpha=2).T
    whole = rows[0] * 2
    same = whole.detach()
    layers = whole.addmm_(rows[1], m.square).relu() + same
    return torch.addmm(rows[1], m.bias[0], first, beta=0).relu() + scores.mean() + layers


def relative(m: Attending, x: Tensor) -> Tensor:
    """What queries and learned rows and columns of an image have in common, as multi-scale attention adds it."""
    q = m.packed(x)[0].reshape(2, 2, 3, 4, 5)
    down, across = m.image.weight.flatten()[:300].split([105, 195])
    rows = torch.einsum("byhwc,hkc->byhwk", q, down.view(3, 7, 5))
    return rows.sum((1, 2)) + torch.einsum("byhwc,wkc->byhwk", q, across[:140].view(4, 7, 5)).sum((1, 2))


@pytest.mark.parametrize(
    ("function", "kernels"),
    [
        pytest.param(relative, ["matmul", "matmul"], marks=pytest.mark.slow),
        (as_an_operator, ["attention", "attention"]),
        (written_out, ["attention"]),
        (on_images, ["attention"]),
        (linear_attention, ["matmul", "matmul"]),
        pytest.param(with_another_reader, ["matmul", "matmul", "matmul"], marks=pytest.mark.slow),
        (by_letters, ["attention", "matmul"]),
        (written_between, ["matmul", "matmul"]),
        pytest.param(with_constants, ["matmul"] * 5, marks=pytest.mark.slow),
        pytest.param(with_axes_apart, ["matmul", "matmul", "matmul"], marks=pytest.mark.slow),
        pytest.param(with_computed_filters, ["matmul", "matmul", "matmul"], marks=pytest.mark.slow),
        pytest.param(with_sums, ["matmul", "matmul", "matmul", "matmul"], marks=pytest.mark.slow),
        pytest.param(with_vectors, ["matmul"] * 6, marks=pytest.mark.slow),
        pytest.param(with_learned_queries, ["attention", "attention", "attention"], marks=pytest.mark.slow),
        pytest.param(with_learned_keys_and_values, ["attention"] * 4, marks=pytest.mark.slow),
        (in_windows, ["attention"]),
    ],
)
def test_products_in_networks_read_their_operands_where_they_lie(
    function: Callable[[Attending, Tensor], Tensor], kernels: list[str], tmp_path: Path
) -> None:
    torch.manual_seed(3)
    model, image = Attending(function).eval(), torch.randn(2, 10, 3, 4)
    network = partition(ChannelGraph.trace(model, (image,)))
    assert network.slow_path == ""
    assert [kernel.key.op for kernel in network.kernels if kernel.key.op in ("matmul", "attention")] == kernels
    copies = [kernel for kernel in network.kernels if kernel.key.op == "strided_copy"]
    joining = (
        with_another_reader,
        linear_attention,
        with_constants,
        with_axes_apart,
        with_computed_filters,
        with_sums,
        with_vectors,
        in_windows,
        written_between,
        relative,
    )  # or taking a part of the input
    assert not copies or function in joining
    shapes = {parameter.shape: parameter.numel() for parameter in model.parameters()}
    taken = [kernel for kernel in network.kernels if kernel.learned and kernel.key.op in ("matmul", "attention")]
    assert {kernel.parameters(network.dense) for kernel in taken} <= set(shapes.values())
    with torch.inference_mode():  # as those who only run networks do
        assert_compiled_equals_pytorch(model, image, tmp_path)


def test_rounded_scores_are_no_attention() -> None:
    def floored(m: Attending, x: Tensor) -> Tensor:
        q, k, v = m.packed(x)
        return torch.div(q @ k.transpose(-2, -1), 2, rounding_mode="floor").softmax(-1) @ v

    network = partition(ChannelGraph.trace(Attending(floored).eval(), (torch.randn(2, 10, 3, 4),)))
    assert [kernel.key.op for kernel in network.kernels if kernel.key.op in ("matmul", "attention")] == ["matmul"] * 2


def test_heads_may_share_keys_and_values(tmp_path: Path) -> None:
    def shared(m: Attending, x: Tensor) -> Tensor:
        q, k, v = m.packed(x)
        return F.scaled_dot_product_attention(torch.cat([q, q + 1], 1), k, v, enable_gqa=True).flatten(1)

    network = partition(ChannelGraph.trace(Attending(shared).eval(), (torch.randn(2, 10, 3, 4),)))
    assert not network.slow_path
    assert_compiled_equals_pytorch(Attending(shared).eval(), torch.randn(2, 10, 3, 4), tmp_path)
