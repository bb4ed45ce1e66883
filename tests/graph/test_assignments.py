"""Assignments to parts of a tensor are spelled out: the program computes the same, and knows what its values are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from aap_hw.graph.program.exporting import export

Function = Callable[[Tensor], Tensor]


class Assigning(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x + 1)


def older_views_are_read_and_written(x: Tensor) -> Tensor:
    part = x[:, 2:6]
    row = part[:, 1:, 3]
    x[:, 3:-1] = x[:, :4] * 2
    row += 3
    part[:, -1].copy_(row[:, 0, None])
    return torch.cat([x.flatten(1), part.flatten(1), row.flatten(1)], 1)


def written_once_more_as_a_whole(x: Tensor) -> Tensor:
    x[..., -2] = x[..., 0]
    x *= 2
    left, right = x.chunk(2, 1)
    right.relu_()
    x[0, 1:3] -= left[1, :2]
    return x


def what_is_written_is_read(x: Tensor) -> Tensor:
    part = x[:, 4:]
    return part.relu_() + part + x[:, :4]


def overwritten_with_one_row(x: Tensor) -> Tensor:
    x[:, 1:3, :, 2:] = x[0, 0, 0, 2:]
    return x


def raised_to_a_power(x: Tensor) -> Tensor:
    x = x.abs()
    x[..., 2:4] **= 2
    x[:, :3] **= x[:, 3:6].sigmoid()
    return x


def what_is_written_is_copied_and_changed(x: Tensor) -> Tensor:
    part = x[:, 4:]
    copy = part.relu_().contiguous()
    copy.flatten(1)[:, ::2].add_(1)
    return part * copy


def loses_an_axis_in_place(x: Tensor) -> Tensor:
    x[:, :2] = x[:, 2:4] * 2
    first = x[:, :1]
    return first.squeeze_(1) + x[:, 1]


def in_another_order(x: Tensor) -> Tensor:
    y = x.permute(0, 2, 3, 1).exp()
    y[..., :2] = y[..., 2:4]
    return y.permute(0, 3, 1, 2).view(2, -1)


def parts_are_filled(x: Tensor) -> Tensor:
    x[..., 4] = 0
    x[:, 2:4] = 1.5
    x[:, :2, 0].zero_()
    x[:, :, -1].fill_(2)
    x[0, 3].fill_(x[0, 0, 0, 0])
    return x


def rows_in_the_same_memory(x: Tensor) -> Tensor:
    x = x[0, 0].expand(3, 8, 8)
    x[1:2] *= 2
    return x + 0


SPELT_OUT = [
    older_views_are_read_and_written,
    what_is_written_is_read,
    overwritten_with_one_row,
    raised_to_a_power,
    parts_are_filled,
]
AS_THEY_ARE = [
    written_once_more_as_a_whole,
    in_another_order,
    rows_in_the_same_memory,
    what_is_written_is_copied_and_changed,
    loses_an_axis_in_place,
]


class _Checked(fx.Interpreter):
    def run_node(self, n: fx.Node) -> object:
        made = super().run_node(n)
        if isinstance(made, Tensor) and n.op == "call_function":
            fake = n.meta["val"]
            assert (fake.shape, fake.dtype, fake.stride()) == (made.shape, made.dtype, made.stride()), n
        return made


@pytest.mark.parametrize("function", [*SPELT_OUT, *AS_THEY_ARE], ids=lambda each: each.__name__)
def test_program_computes_the_same(function: Function) -> None:
    model, images = Assigning(function), torch.randn(2, 8, 8, 8)
    program = export(model, [images])
    (made,) = _Checked(program.graph_module).run(*program.constants.values(), images)
    torch.testing.assert_close(made, model(images))
    torch.testing.assert_close(program.module()(images), model(images))
    writing = [node for node in program.graph.nodes if getattr(node.target, "_opname", "").endswith("_")]
    assert bool(writing) == (function in AS_THEY_ARE)


def test_names_of_values_do_not_depend_on_the_batch() -> None:
    def assigned_and_read(x: Tensor) -> Tensor:
        part = x[:, :4]
        part.copy_(x[:, 4:] * 2)
        return part + x[:, :4]

    one, two = (export(Assigning(assigned_and_read), [torch.randn(batch, 8, 8, 8)]) for batch in (1, 2))
    assert [node.name for node in one.graph.nodes] == [node.name for node in two.graph.nodes]
