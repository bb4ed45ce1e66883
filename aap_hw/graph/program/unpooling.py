"""Unpooling as what it is made of: values and places enlarged, and each value where its place is the pixel's own.

Covers `nn.MaxUnpool2d` of the places of a max pooling whose windows do not overlap, as in SegNet and ENet: each pixel
is in one window, so that nothing is scattered. Any other unpooling stays as it is.
"""

from __future__ import annotations

import operator

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from aap_hw.graph.program.call import Call, add_call, replace_call, shape_of

_ATEN = torch.ops.aten


def spell_out_unpooling(program: ExportedProgram) -> None:
    """Replace each such unpooling in the program's graph, in place."""
    nodes = program.graph.find_nodes(op="call_function", target=_ATEN.max_unpool2d.default)
    replaced = [node for node in nodes if _is_of_windows_side_by_side(node)]
    for node in replaced:
        values, places, (height, width) = (Call(node)[name] for name in ("self", "indices", "output_size"))
        wide, found = (
            add_call(node, node, _ATEN.upsample_nearest2d.vec, each, [height, width], None)
            for each in (values, add_call(node, node, _ATEN.to.dtype, places, torch.float32))
        )
        numbers = add_call(node, node, _ATEN.arange.default, height * width, dtype=torch.float32)
        own = add_call(node, node, _ATEN.view.default, numbers, [height, width])
        is_there = add_call(node, node, _ATEN.eq.Tensor, found, own)
        unpooled = add_call(node, node, _ATEN.where.ScalarOther, is_there, wide, 0.0)
        replace_call(node, unpooled)
    if replaced:
        program.graph.lint()
        program.graph_module.recompile()


def _is_of_windows_side_by_side(node: Node) -> bool:
    """Whether places are those of a max pooling of which no two windows share a pixel, and its image was as large."""
    places, (height, width) = Call(node)["indices"], Call(node)["output_size"]
    if places.target is not operator.getitem or places.args[1] != 1:
        return False
    pooling, rank = Call(Call(places).first), len(shape_of(places))
    if pooling.name != "max_pool2d_with_indices" or rank != 4 or height * width > 1 << 24:
        return False
    kernel, stride = _two(pooling["kernel_size"]), _two(pooling["stride"] or pooling["kernel_size"])
    is_plain = not any(pooling["padding"]) and set(pooling["dilation"]) == {1}
    axes = zip(shape_of(places)[2:], kernel, stride, (height, width), strict=True)
    return is_plain and all(length <= step and count * step == size for count, length, step, size in axes)


def _two(numbers: list[int]) -> tuple[int, int]:
    return numbers[0], numbers[-1]
