"""Trees of element-wise operators on a CPU: as few loops as the operands' axes allow, the innermost in vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.code.fused import fused_arguments, value_at
from aap_hw.compile.cpu.kernels import KERNELS
from aap_hw.compile.cpu.loops import channel_loop, light_kernel, row_loop, shares
from aap_hw.compile.families.fused import Fused, operand_shape
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import CpuTarget


@dataclass(frozen=True)
class Extent:
    """Neighbouring axes that all operands either have or lack.

    Attributes
    ----------
    length : their length.
    owners : the operands that have these axes; others are broadcast.
    """

    length: int
    owners: frozenset[str]


def _merged(address: Address, operands: dict[str, str]) -> list[Extent]:
    """The axes of a kernel, outermost first, merged where possible."""
    result: list[Extent] = []
    for axis, length in zip(Fused.of(address.key).order, operand_shape(address), strict=True):
        owners = frozenset(name for name, axes in operands.items() if axis in axes)
        if length > 1 and result and result[-1].owners == owners:
            result[-1] = Extent(result[-1].length * length, owners)
        elif length > 1:
            result.append(Extent(length, owners))
    return result or [Extent(1, frozenset())]


@KERNELS.register("elementwise")
def elementwise(address: Address, target: CpuTarget) -> KernelFunction:
    """An expression of broadcast tensors."""

    def body(*buffers: Any) -> None:
        *tensors, output = buffers
        write_loops(address, target, tensors, output, lambda _, value: value, lambda value: value)

    return light_kernel(address.key, fused_arguments(address), operand_shape(address), body)


def write_loops(
    address: Address,
    target: CpuTarget,
    tensors: Sequence[Any],
    output: Any,
    real: Callable[[str, Any], Any],
    made: Callable[[Any], Any],
) -> None:
    """Write the loops of an expression over flat buffers.

    ``real`` is what the expression computes with for an operand's name and value, and ``made`` what is stored for it.
    """
    fused, shape = Fused.of(address.key), operand_shape(address)
    operands, values = fused.operands, math.prod(shape)
    *outer, inner = _merged(address, operands)
    if not outer and shares(target, values):  # so that threads share one long vector row by row
        rows = math.prod(shape[:2])
        outer, inner = [Extent(rows, inner.owners)], Extent(values // rows, inner.owners)
    count = math.prod(extent.length for extent in outer)

    def first_of(name: str, places: list[Any]) -> Any:
        """Place of an operand's first value, given an index along each of the outer axes."""
        index: Any = 0
        for extent, place in zip(outer, places, strict=True):
            if name in extent.owners:
                index = index * extent.length + place
        return index * inner.length if name in inner.owners else index

    with row_loop(count, target, values) as row:
        places, rest = list[Any](), row
        for extent in reversed(outer):
            places.insert(0, rest if extent is outer[0] else rest % extent.length)
            rest = rest // extent.length
        firsts = {name: T.bind(first_of(name, places)) for name in operands}
        with channel_loop(inner.length, target) as i:
            read = {
                name: real(name, tensor[firsts[name] + i if name in inner.owners else firsts[name]])
                for name, tensor in zip(operands, tensors, strict=True)
            }
            T.buffer_store(output, made(value_at(fused.expression, read)), [row * inner.length + i])
