"""Proves that a network with in-place operators compiles to what PyTorch computes, or is refused.

``torch.export`` keeps in-place operators, so who reads a tensor before and who after the write must be told apart,
also through its views and aliases.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aap_hw.compile.front.partition import partition
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from tests.compile.running import assert_compiled_equals_pytorch


class InPlace(nn.Module):
    def __init__(self, function: Callable[[InPlace, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.one, self.two = (nn.Conv2d(8 if i else 3, 8, 3, padding=1) for i in range(3))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def read_after_the_write(m: InPlace, x: Tensor) -> Tensor:
    h = m.stem(x)
    h.relu_()
    return h + m.one(h)


def read_before_and_after_the_write(m: InPlace, x: Tensor) -> Tensor:
    h = m.stem(x)
    before = m.one(h)
    h.relu_()
    return F.relu(before) + m.two(h)


def write_through_an_alias(m: InPlace, x: Tensor) -> Tensor:
    h = m.stem(x)
    F.relu_(h.detach())
    return m.one(h)


def alias_read_after_the_write(m: InPlace, x: Tensor) -> Tensor:
    h = m.stem(x)
    alias = h.detach()
    h.relu_()
    return m.one(alias)


def copy_keeps_what_was_there(m: InPlace, x: Tensor) -> Tensor:
    h = m.stem(x)
    copy = h.clone()
    h.relu_()
    return m.one(h) + copy


def residual_is_read_when_it_is_added(m: InPlace, x: Tensor) -> Tensor:
    h = m.stem(x)
    branch = m.one(h)
    h.detach().relu_()
    return branch + h


def sum_into_the_shortcut(m: InPlace, x: Tensor) -> Tensor:
    h = m.stem(x)
    alias = h.detach()
    h += m.one(h)
    return m.two(F.relu(h)) + alias


def sum_into_the_branch(m: InPlace, x: Tensor) -> Tensor:
    h = m.stem(x)
    out = m.one(h)
    out += h
    out.relu_()
    return m.two(out) + h


def product_is_read_also_without_its_activation(m: InPlace, x: Tensor) -> Tensor:
    h = m.stem(x)
    alias = h.detach()
    h *= m.one(h)
    return F.silu(h) + alias


def piece_is_overwritten_alone(m: InPlace, x: Tensor) -> Tensor:
    h = m.stem(x)
    before = m.one(h)
    last = h[:, 4:]
    last.relu_()
    return torch.cat([last, before], 1)


def write_to_the_input(m: InPlace, x: Tensor) -> Tensor:
    x.relu_()
    return m.one(m.stem(x))


def write_to_the_input_that_was_read(m: InPlace, x: Tensor) -> Tensor:
    before = m.stem(x)
    x.relu_()
    return before + m.stem(x)


def written_over(m: InPlace, x: Tensor) -> Tensor:
    h = m.stem(x)
    alias, before = h.detach(), m.one(h)
    h[...] = before
    before.relu_()
    return m.two(alias) + before


def written_over_with_what_is_moved(m: InPlace, x: Tensor) -> Tensor:
    h = m.stem(x)
    alias = h.detach()
    h.copy_(m.one(h).flip(3).transpose(2, 3))
    return alias + h


def some_channels_are_convolved(m: InPlace, x: Tensor) -> Tensor:
    """As in FasterNet."""
    h = torch.cat([m.stem(x), x], 1)
    h[:, :8] = m.one(h[:, :8])
    return F.relu(h)


def channels_are_shifted_in_time(m: InPlace, x: Tensor) -> Tensor:
    """As in TSM, with the rows of an image as times."""
    h = m.stem(x).transpose(1, 2).contiguous().view(1, 4, 2, 8, 8)
    out = torch.zeros_like(h)
    out[:, :-1, :, :3] = h[:, 1:, :, :3]
    out[:, 1:, :, 3:6] = h[:, :-1, :, 3:6]
    out[:, :, :, 6:] = h[:, :, :, 6:]
    return out.view(1, 8, 8, 8)


def boxes_are_decoded(m: InPlace, x: Tensor) -> Tensor:
    """As in YOLO, and its objectness in the ways that code of others has."""
    y = m.stem(x).permute(0, 2, 3, 1).contiguous()
    corners = y[..., 4:8]
    y[..., 0:2] = (y[..., 0:2].sigmoid() * 2 - 0.5) * 8
    y[..., 2:4] *= 4
    y[..., 4] = y[..., 1] + y[..., 5]
    corners[..., 2:].sigmoid_()
    return torch.cat([y, corners], -1)


def costs_of_disparities(m: InPlace, x: Tensor) -> Tensor:
    """As in PSMNet."""
    left, right = m.stem(x), m.stem(x.flip(3))
    cost = left.new_zeros(1, 16, 2, 8, 8)
    for i in range(2):
        cost[:, :8, i, :, i:] = left[..., i:]
        cost[:, 8:, i, :, i:] = right[..., : 8 - i]
    return cost.relu()


CASES = [
    some_channels_are_convolved,
    boxes_are_decoded,
    written_over,
    write_through_an_alias,
    copy_keeps_what_was_there,
    write_to_the_input_that_was_read,
]
# Close to one of those above.
SLOW = [
    residual_is_read_when_it_is_added,
    sum_into_the_shortcut,
    read_after_the_write,
    channels_are_shifted_in_time,
    costs_of_disparities,
    written_over_with_what_is_moved,
    read_before_and_after_the_write,
    alias_read_after_the_write,
    sum_into_the_branch,
    product_is_read_also_without_its_activation,
    piece_is_overwritten_alone,
    write_to_the_input,
]


@pytest.mark.parametrize(
    "function",
    [*CASES, *(pytest.param(each, marks=pytest.mark.slow) for each in SLOW)],
    ids=lambda function: function.__name__,
)
def test_in_place_operators_compute_what_pytorch_computes(
    function: Callable[[InPlace, Tensor], Tensor], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, image = InPlace(function), torch.randn(1, 3, 8, 8)
    assert partition(ChannelGraph.trace(model, (image,))).slow_path == ""
    assert_compiled_equals_pytorch(model, image, tmp_path)


def slice_of_what_is_overwritten(m: InPlace, x: Tensor) -> Tensor:
    h = m.stem(x)
    part = h[:, :, ::2, ::2]
    h.relu_()
    return m.one(part)


def write_into_a_slice(m: InPlace, x: Tensor) -> Tensor:
    h = m.stem(x)
    h[:, :, ::2, ::2].relu_()
    return m.one(h)


def flattened_before_the_write(m: InPlace, x: Tensor) -> Tensor:
    h = m.stem(x)
    flat = h.flatten(1)
    h.relu_()
    return flat


def piece_of_what_is_overwritten(m: InPlace, x: Tensor) -> Tensor:
    h = m.stem(x)
    first = h[:, :4]
    h.relu_()
    return first + h[:, 4:]


@pytest.mark.parametrize(
    "function",
    [piece_of_what_is_overwritten, slice_of_what_is_overwritten, write_into_a_slice, flattened_before_the_write],
    ids=lambda function: function.__name__,
)
def test_write_that_another_view_sees_is_refused(function: Callable[[InPlace, Tensor], Tensor]) -> None:
    with pytest.raises(UserError, match=r"x.relu_ writes into a tensor of which another view"):
        partition(ChannelGraph.trace(InPlace(function), (torch.randn(1, 3, 8, 8),)))


def assigned_behind_a_flat_view(m: InPlace, x: Tensor) -> Tensor:
    h = m.stem(x)
    flat = h.flatten(1)
    h[:, :4] = m.one(h)[:, :4]
    return flat


def part_of_the_input_is_assigned(m: InPlace, x: Tensor) -> Tensor:
    x[:, :1] = x[:, 1:2] * 2
    return m.stem(x)


def assigned_with_a_step(m: InPlace, x: Tensor) -> Tensor:
    h = m.stem(x)
    h[:, ::2] = m.one(h)[:, ::2]
    return m.two(h)


@pytest.mark.parametrize(
    "function",
    [assigned_behind_a_flat_view, assigned_with_a_step, part_of_the_input_is_assigned],
    ids=lambda each: each.__name__,
)
def test_assignment_that_cannot_be_followed_is_refused(function: Callable[[InPlace, Tensor], Tensor]) -> None:
    with pytest.raises(UserError, match=r"indexing x\[...\] writes into a tensor of which another view"):
        partition(ChannelGraph.trace(InPlace(function), (torch.randn(1, 3, 8, 8),)))
