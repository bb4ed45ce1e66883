"""Half precision in memory for code that computes with float32: what it loads is widened, what it stores is rounded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm_ffi
from tvm import ir, tirx
from tvm.sym import Analyzer

from aap_hw.compile.code.approximations import let
from aap_hw.compile.keys.precision import FLOAT16, FLOAT32

VECTORS = (4, 8, 16, 32)
# TVM has no bfloat16 for CPUs. LLVM has, and knows the instruction that rounds to it.
ROUNDING = "\n".join(
    f"""
    define linkonce_odr <{n} x i16> @rounded_to_bfloat16_{n}(<{n} x float> %value) alwaysinline {{
        %rounded = fptrunc <{n} x float> %value to <{n} x bfloat>
        %bits = bitcast <{n} x bfloat> %rounded to <{n} x i16>
        ret <{n} x i16> %bits
    }}
    """
    for n in VECTORS
)


def with_rounded(code: tirx.PrimFunc, rounded: Sequence[tuple[Any, Any]]) -> tirx.PrimFunc:
    """The code with the second of each two buffers, in half precision, in place of the first one, in float32.

    bfloat16 lies in buffers of uint16.
    """

    def stored(buffer: Any) -> Any:
        return next((half for seen, half in rounded if seen.same_as(buffer)), None)

    def load(given: Any) -> Any:
        half = stored(given.source)
        return given if half is None else widened(half[tuple(given.indices)])

    def store(given: Any) -> Any:
        half = stored(given.buffer)
        return given if half is None else tirx.BufferStore(half, narrowed(given.value, half.dtype), given.indices)

    def loop(given: Any) -> Any:
        is_of_lanes = given.kind == tirx.ForKind.VECTORIZED and isinstance(given.body, tirx.BufferStore)
        return _by_vector(given) if is_of_lanes and stored(given.body.buffer) is not None else given

    body = tvm_ffi.structural_map(code.body, ((tirx.For, loop),))
    body = tvm_ffi.structural_map(body, ((ir.TensorLoad, load), (tirx.BufferStore, store)))
    return code.with_body(tirx.AttrStmt(tirx.const(0), "pragma_import_llvm", ir.StringImm(ROUNDING), body))


def _by_vector(loop: tirx.For) -> tirx.Stmt:
    """A loop over lanes that stores one value each, as one that fills a register, which is then stored."""
    lanes, (index,) = int(loop.extent), loop.body.indices
    first, second = (_with(loop.loop_var, tirx.const(lane, "int32"), index) for lane in (0, 1))
    if lanes not in VECTORS or not Analyzer().can_prove_equal(second - first, 1):
        return loop
    register = tirx.decl_buffer((lanes,), FLOAT32)  # small enough for the stack, which LLVM turns into registers
    each = tirx.BufferStore(register, loop.body.value, [loop.loop_var])
    filling = tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, each)
    made = register[tirx.Ramp(tirx.const(0, "int32"), tirx.const(1, "int32"), lanes)]
    storing = tirx.BufferStore(loop.body.buffer, made, [tirx.Ramp(first, tirx.const(1, "int32"), lanes)])
    return tirx.SeqStmt([tirx.AllocBuffer(register), filling, storing])


def _with(name: tirx.Var, value: Any, expression: Any) -> Any:
    return tvm_ffi.structural_map(expression, ((tirx.Var, lambda var: value if var.same_as(name) else var),))


def widened(value: Any) -> Any:
    """A number in half precision, or a vector of them, as float32."""
    type_, lanes = _split(value)
    if type_ == FLOAT16:
        return tirx.Cast(_typed(FLOAT32, lanes), value)
    bits = tirx.Cast(_typed("uint32", lanes), value)
    return tirx.reinterpret(_typed(FLOAT32, lanes), bits << _filled(16, lanes))


def narrowed(value: Any, type_: str) -> Any:
    """A number in float32, or a vector of them, in half precision: the nearest, of two the even one."""
    _, lanes = _split(value)
    if type_ == FLOAT16:
        return tirx.Cast(_typed(FLOAT16, lanes), value)
    if lanes > VECTORS[-1] and lanes % VECTORS[-1] == 0:
        parts = [list(range(first, first + VECTORS[-1])) for first in range(0, lanes, VECTORS[-1])]
        return tirx.Shuffle([narrowed(tirx.Shuffle([value], part), type_) for part in parts], list(range(lanes)))
    if lanes in VECTORS:
        return tirx.call_pure_extern(_typed("uint16", lanes), f"rounded_to_bfloat16_{lanes}", value)

    def upper_half(bits: Any) -> Any:
        is_odd = (bits >> _filled(16, lanes)) & _filled(1, lanes)
        return tirx.Cast(_typed("uint16", lanes), (bits + _filled(0x7FFF, lanes) + is_odd) >> _filled(16, lanes))

    return let(tirx.reinterpret(_typed("uint32", lanes), value), upper_half)


def _filled(value: int, lanes: int) -> Any:
    number = tirx.const(value, "uint32")
    return tirx.Broadcast(number, lanes) if lanes > 1 else number


def _split(value: Any) -> tuple[str, int]:
    """Type of a number, and lanes of a vector of them."""
    type_, _, lanes = str(value.ty.dtype).partition("x")
    return type_, int(lanes or 1)


def _typed(type_: str, lanes: int) -> str:
    return f"{type_}x{lanes}" if lanes > 1 else type_
