"""Proves that operators that only move values equal PyTorch's, together one copy at most, and follow the widths.

All of them are outputs of one network, so that they are compiled at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from tvm import tirx

from aap_hw.compile.cpu import loops
from aap_hw.compile.families import multiply_accumulates, output_pixels
from aap_hw.compile.families.strided import Part, StridedCopy, Wrap
from aap_hw.compile.front.network import Network
from aap_hw.compile.front.partition import partition
from aap_hw.compile.front.views import NoView, View
from aap_hw.compile.gpu.series import in_series
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.target import device_target
from aap_hw.compile.library.lowering import compile_network, lower_network, state_of
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph, WidthExpr
from tests.compile.movements import moved_at_random
from tests.compile.running import assert_compiled_equals_pytorch, device, target
from tests.graph.ground_truth import random_keep

GPU = device_target({"kind": "cuda", "arch": "sm_80"}, 1)
Move = Callable[["Moving", Tensor], Tensor]


def heads(_: Moving, x: Tensor) -> Tensor:
    q, k, v = x.permute(0, 2, 3, 1).reshape(2, 8 * 12, 3, 2, 2).permute(2, 0, 3, 1, 4).unbind(0)
    return torch.cat([k, q, v], -1)


def shifted_windows(_: Moving, x: Tensor) -> Tensor:
    x = torch.roll(x.permute(0, 2, 3, 1), (-1, -2), (1, 2))
    return x.view(2, 2, 4, 3, 4, 12).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, 12)


def unfolded(_: Moving, x: Tensor) -> Tensor:
    x = x.reshape(2 * 12 * 4, 2, 6, 2).transpose(1, 2).reshape(2, 12, 24, 4)
    return x.transpose(1, 3).reshape(8, 24, 12)


# Operators, and how many copies they take, among them the one to PyTorch's order of what lies as an image.
MOVES: list[tuple[Move, int]] = [
    (heads, 1),
    (shifted_windows, 1),
    (unfolded, 1),
    (lambda _, x: x[:, :, 1:-1, 3:5], 1),
    (lambda _, x: x[:, 2:9:3, :, ::2], 1),
    (lambda _, x: x[:, :, -1].flip(2), 1),
    (lambda _, x: x.flip(1).select(2, -2), 1),
    (lambda _, x: x.flatten(2)[..., -1], 1),
    (lambda _, x: F.pixel_shuffle(x, 2), 1),
    (lambda _, x: F.pixel_unshuffle(x, 4), 1),
    (lambda _, x: x.mean((2, 3), keepdim=True).expand(-1, -1, 3, 2), 1),
    (lambda _, x: x.repeat(2, 1, 2, 3), 1),
    (lambda _, x: x.repeat_interleave(3, dim=2), 1),
    (lambda _, x: x.unfold(2, 3, 2).unfold(3, 2, 1), 1),
    (lambda _, x: F.unfold(x, (3, 2), stride=2), 1),
    (lambda _, x: F.unfold(x, 3, padding=(0, 2), stride=2), 2),
    (lambda _, x: F.fold(F.unfold(x, (4, 3), stride=(4, 3)), (8, 12), (4, 3), stride=(4, 3)).flip(1), 1),
    (lambda _, x: torch.broadcast_tensors(x, x.mean((2, 3), keepdim=True))[1], 1),
    (lambda _, x: x.movedim(1, 3).flatten(1, 2), 0),
    (lambda _, x: x.narrow(3, 1, 3).swapaxes(1, 2), 1),
    (lambda _, x: torch.cat([x, x[:, :, :2], x.flip(2)], 2), 2),
    (lambda _, x: torch.cat([x[:, :, 0::2, 0::2], x[:, :, 1::2, 0::2], x[:, :, 0::2, 1::2]], 1), 3),
    (lambda _, x: torch.stack([x, x.flip(1)], 1), 1),
    (lambda m, x: torch.cat([m.token.expand(2, -1, -1), x.flatten(2).transpose(1, 2)], 1), 1),
    (lambda _, x: torch.cat(x.permute(0, 2, 3, 1).split([5, 7], -1)[::-1], -1), 1),
    (lambda _, x: x.permute(0, 3, 1, 2).reshape(2, -1, 8).transpose(1, 2), 0),
    (lambda _, x: torch.roll(torch.roll(x, 3, 2), 2, 2).chunk(2, 3)[1], 2),
    (lambda _, x: torch.roll(x.flip(2, 3), (3, 5), (2, 3))[:, :, 1:], 1),
]


class Moving(nn.Module):
    def __init__(self, moves: list[Move]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.token, self.moves = nn.Conv2d(3, 12, 3, padding=1), nn.Parameter(torch.randn(1, 5, 12)), moves

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.conv(x)
        return [move(self, x) for move in self.moves]


def partitioned(model: nn.Module, image: Tensor) -> Network:
    return partition(ChannelGraph.trace(model, (image,)))


# A third of them is enough for every day.
@pytest.mark.parametrize("some", [MOVES[::3], pytest.param(MOVES[1::3] + MOVES[2::3], marks=pytest.mark.slow)])
def test_moved_values_equal_pytorch(
    some: list[tuple[Move, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "WORTH_SHARING", 1)  # as one thread copies is seen beside the definitions
    model, image = Moving([move for move, _ in some]).eval(), torch.randn(2, 3, 8, 12)
    network = compile_network(model, image, target(2), tmp_path / "moved.so")
    assert not network.slow_path
    loaded = device(2).load(tmp_path / "moved.so")
    loaded.set_inputs("main", [image.numpy()])
    with torch.no_grad():
        for i, (actual, expected) in enumerate(zip(loaded.run("main"), model(image), strict=True)):
            assert actual.shape == expected.shape, i
            assert np.abs(actual - expected.numpy()).max() < 1e-5, i


def test_what_dlight_makes_of_them_equals_pytorch_too() -> None:
    model, image = Moving([move for move, _ in MOVES]).eval(), torch.randn(2, 3, 8, 12)
    graph = ChannelGraph.trace(model, (image,))
    network = partition(graph)
    module = lower_network(network, network.dense, state_of(graph.program), GPU)
    for name, function in module.functions_items():
        if isinstance(function, tirx.PrimFunc):
            module.update_func(name, in_series(function))
    machine = tvm.relax.VirtualMachine(tvm.compile(module, target=target().tvm), tvm.cpu())
    with torch.no_grad():
        for i, (actual, expected) in enumerate(
            zip(machine["main"](tvm.runtime.tensor(image.numpy())), model(image), strict=True)
        ):
            assert np.abs(actual.numpy() - expected.numpy()).max() < 1e-5, i


@pytest.mark.parametrize(("move", "copies"), MOVES)
def test_a_chain_of_movements_is_as_few_copies_as_can_be(move: Move, copies: int) -> None:
    network = partitioned(Moving([move]).eval(), torch.zeros(2, 3, 8, 12))
    moving = [kernel for kernel in network.kernels if kernel.key.op not in ("conv2d", "global_avg_pool2d")]
    assert len(moving) == copies, moving


def walked(part: Part) -> np.ndarray:
    """The values of a tensor that holds 0, 1, 2 ... in the order of a walk."""
    sums: dict[Wrap | None, np.ndarray] = {None: np.array(part.offset)}
    for number, loop in enumerate(part.loops):
        steps = (np.arange(loop.length) * loop.stride).reshape(-1, *[1] * (len(part.loops) - number - 1))
        sums[loop.wrap] = sums.get(loop.wrap, np.array(0)) + steps
    around = [(total + wrap.shift) % wrap.modulus for wrap, total in sums.items() if wrap is not None]
    shape = tuple(loop.length for loop in part.loops)
    return np.broadcast_to(sum(around, start=sums[None]), shape).ravel()


@settings(max_examples=100, derandomize=True, database=None)
@given(data=st.data())
def test_random_chains_of_movements_are_walked_through_as_pytorch_moves_them(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    order = data.draw(st.permutations(range(len(shape))))
    lying = torch.arange(math.prod(shape)).reshape([shape[axis] for axis in order])
    values = lying.permute([order.index(axis) for axis in range(len(shape))])
    view = View.of("x", [WidthExpr(size) for size in shape], shape, order, "x")
    for _ in range(data.draw(st.integers(0, 6))):
        try:
            moved = moved_at_random(data.draw, view, values)
        except NoView:
            continue
        if moved[1].numel() < 2000:
            view, values = moved
    text = view.text(range(values.dim()), WidthExpr(1), WidthExpr(1), {})
    copy = StridedCopy.of(Address(KernelKey.make("strided_copy", (), 1, parts=text), (1, 1)))
    assert walked(copy.parts[0]).tolist() == values.flatten().tolist()
    assert view.is_everything(range(values.dim())) == (values.flatten().tolist() == list(range(math.prod(shape))))


class Cuttable(nn.Module):
    """Copies between layers whose widths can be cut, at other widths behind than before."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Conv2d(3, 10, 1), nn.Conv2d(40, 6, 1), nn.Conv2d(6, 4, 1)
        self.gate = nn.Conv2d(6, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)[:, :, 1:-1].flip(2)
        x = F.normalize(F.relu(self.second(F.pixel_unshuffle(x, 2))))
        first = x[:, :, :1]
        return self.last(torch.cat([x, self.gate(first).expand_as(first)], 2))


def test_a_cut_network_has_the_copies_that_the_uncut_one_foretold() -> None:
    image, model = torch.randn(1, 3, 8, 6), Cuttable().eval()
    graph = ChannelGraph.trace(model, (image,))
    network = partition(graph)
    assert not network.fixed
    keep = random_keep(graph, seed=1) | {"second": [0, 2, 3, 5]}
    widths = network.dense | {group: len(kept) for group, kept in keep.items()}
    again = partition(ChannelGraph.trace(graph.cut(model, keep), (image,)))
    assert [kernel.at(widths) for kernel in network.kernels] == [kernel.at(again.dense) for kernel in again.kernels]
    assert sum(kernel.key.op == "strided_copy" for kernel in network.kernels) == 3
    assert not network.slow_path


def test_learned_tokens_are_counted_as_parameters() -> None:
    network = partitioned(Moving([MOVES[20][0]]).eval(), torch.zeros(2, 3, 8, 12))
    assert sum(kernel.parameters(network.dense) for kernel in network.kernels) == 3 * 12 * 9 + 12


def test_the_text_of_a_copy_is_read_at_its_widths() -> None:
    key = KernelKey.parse("strided_copy - parts=x[9*i;3:i%2*i%3*i,o:1;i-o]c[6*o;3:2*o,o:2] rows=3 float32 batch=1")
    copy = StridedCopy.of(Address(key, (5, 4)))
    assert [(part.size, part.offset, part.values) for part in copy.parts] == [(45, 1, 12), (24, 0, 12)]
    assert copy.parts[0].loops[0].wrap == Wrap(10, 15)
    assert copy.shape == (3, 8)
    assert output_pixels(key) * 4 == 24
    assert multiply_accumulates(Address(key, (5, 4))) == 0


@pytest.mark.parametrize(
    "parts", ["", "y[3;3:1]", "x[3]", "x[3;3:1:2]", "x[3;open:1]", "x[3;3]", "x[6;3:1", "x[i;4:1]"]
)
def test_a_text_that_is_no_copy_is_refused(parts: str) -> None:
    with pytest.raises(UserError, match="is not a kernel of this version"):
        StridedCopy.of(Address(KernelKey.make("strided_copy", (), 1, parts=parts, rows="3"), (1, 1)))


def test_what_is_added_to_rows_stays_rows_where_the_sum_is_turned_to_an_image(tmp_path: Path) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.norm, self.linear, self.last = nn.LayerNorm(6), nn.Linear(6, 6), nn.Conv2d(6, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            rows = self.norm(x.flatten(2).transpose(1, 2))
            rows = rows + self.linear(rows)
            return self.last(rows.transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]

    image = torch.randn(1, 6, 5, 7)
    assert [kernel.key.op for kernel in partitioned(Residual(), image).kernels][-4:] == [
        "layer_norm", "conv2d", "conv2d", "to_nchw"
    ]  # fmt: skip
    assert_compiled_equals_pytorch(Residual(), image, tmp_path)


def test_an_input_that_the_code_turns_itself_is_read_in_the_order_of_the_code(tmp_path: Path) -> None:
    """As many rows, columns and channels, so that no shape tells the two orders apart."""

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.turned, self.line = nn.Conv2d(6, 4, 3), nn.Conv2d(6, 4, 3), nn.Conv2d(1, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = x.permute(0, 2, 3, 1)
            padded, both = F.pad(y, (0, 0, 0, 0, 2, 2)), torch.cat([y, y], 1)
            of_layers = self.first(x), self.turned(y), self.line(y.flatten(2).unsqueeze(1))
            return torch.cat([each.flatten(1) for each in (*of_layers, padded, both)], 1)

    assert_compiled_equals_pytorch(Turned(), torch.randn(1, 6, 6, 6), tmp_path)
