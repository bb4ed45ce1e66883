"""Explicit loop nests for CPU kernels: loops, buffers, and vectors that cover any channel count.

Thin helpers around TVM's IR builder. A kernel written with them decides where every value lives, which TVM's schedule
primitives would have to prove. What a kernel computes is in the module of its operator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.expressions import number
from aap_hw.compile.code.function import OPAQUE
from aap_hw.compile.cpu.rounding import with_rounded
from aap_hw.compile.keys.precision import BFLOAT16, FLOAT32, HALVES
from aap_hw.compile.keys.target import CpuTarget

AVX512_BYTES = 64


@dataclass(frozen=True)
class Tensor:
    """A parameter of a kernel; extents may be variables.

    What lies in memory in half precision is float32 to the kernel's code, unless it ``is_raw``. TVM has no bfloat16 for
    CPUs; raw, it is uint16.
    """

    name: str
    shape: tuple[Any, ...]
    type: str
    is_raw: bool = False

    @property
    def is_rounded(self) -> bool:
        """Whether memory has another type than the kernel's code sees."""
        return self.type in HALVES and not self.is_raw


def kernel_code(tensors: Sequence[Tensor], body: Callable[..., None]) -> tirx.PrimFunc:
    """A PrimFunc over flat buffers, the last one its output.

    ``body`` is called with the buffers and writes the loops. Their declared shapes are what callers see; indices are
    flat. The buffers must not overlap.
    """
    rounded = list[tuple[Any, Any]]()
    with IRBuilder() as builder, T.prim_func():
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True, "op_pattern": OPAQUE})
        buffers = [T.arg(tensor.name, T.buffer(tensor.shape, tensor.type)) for tensor in tensors]
        types = ["uint16" if tensor.type == BFLOAT16 else tensor.type for tensor in tensors]
        flat = [
            T.decl_buffer((math.prod(b.shape),), type_, data=b.data) for b, type_ in zip(buffers, types, strict=True)
        ]
        for i, tensor in enumerate(tensors):
            if tensor.is_rounded:
                seen = T.decl_buffer(flat[i].shape, FLOAT32, data=buffers[i].data)
                rounded.append((seen, flat[i]))
                flat[i] = seen
        body(*flat)
    return with_rounded(builder.get(), rounded) if rounded else builder.get()


def scratch(elements: int, type_: str) -> Any:
    """A buffer in memory for intermediate values."""
    return T.alloc_buffer((elements,), type_)


def registers(elements: int, type_: str) -> Any:
    """A buffer for intermediate values that is small enough for registers."""
    return T.alloc_buffer((elements,), type_, scope="local")


def loop(extent: int, target: CpuTarget | None = None) -> Any:
    """A loop from 0; over the target's threads if there are several."""
    return T.parallel(0, extent) if target is not None and target.threads > 1 else T.serial(0, extent)


def vector(buffer: Any, index: Any, lanes: int) -> Any:
    """``lanes`` neighbouring values of a flat buffer."""
    return buffer[T.ramp(index, 1, lanes)] if lanes > 1 else buffer[index]


def store(buffer: Any, value: Any, index: Any, lanes: int) -> None:
    """Write ``lanes`` neighbouring values."""
    T.buffer_store(buffer, value, [T.ramp(index, 1, lanes) if lanes > 1 else index])


def lane_loop(lanes: int) -> Any:
    """A loop over the lanes of one vector, for expressions of single values."""
    return T.vectorized(0, lanes) if lanes > 1 else T.unroll(0, 1)


def constant(value: float, lanes: int, type_: str) -> Any:
    """A vector of one value."""
    return spread(number(value, type_), lanes)


def spread(value: Any, lanes: int) -> Any:
    """A scalar as a vector."""
    return T.broadcast(value, lanes) if lanes > 1 else value


@dataclass(frozen=True)
class Steps:
    """Steps of ``length`` that cover ``extent``; the last one is moved back to end with it, so that no tail is left.

    What the last two steps share is computed twice, with the same result.
    """

    extent: int
    length: int

    @property
    def count(self) -> int:
        """How many steps there are."""
        return math.ceil(self.extent / self.length)

    def start(self, index: Any) -> Any:
        """Where a step begins; ``index`` may be an expression."""
        if isinstance(index, int):
            return min(index * self.length, self.extent - self.length)
        return (
            T.min(index * self.length, self.extent - self.length) if self.extent % self.length else index * self.length
        )


def lanes_for(channels: int, target: CpuTarget, type_: str = FLOAT32) -> int:
    """Vector length for a channel count: the longest that fits.

    Or half a register where that has no tail, on a CPU that computes half of one in half the time.
    """
    lanes = target.lanes_of(type_)
    half = lanes // 2
    if target.unit_bytes < target.vector_bytes and channels % lanes and channels % half == 0:
        return half
    return min(lanes, 1 << (channels.bit_length() - 1))
