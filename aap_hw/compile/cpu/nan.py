"""Minima and maxima of floats that keep NaN, as PyTorch's do, where that costs no instruction.

LLVM gets "a > b ? a : b" for the larger of two values, which is b if one of them is NaN. On 64-bit Arm an instruction
keeps NaN of either operand. Elsewhere a constant comes first, so that a comparison with NaN leaves the NaN: with those
of clamps, activations and the exponential. Of two values that are computed, as in max pooling and reductions, the
second one's NaN stays there and the first one's does not.
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import tirx

from aap_hw.compile.keys.target import CpuTarget


def keeping_nan(code: tirx.PrimFunc, target: CpuTarget) -> tirx.PrimFunc:
    """The code with other minima and maxima in place of those that lose NaN."""

    def extreme(given: Any) -> Any:
        type_ = str(given.ty.dtype)
        if not type_.startswith("float"):
            return given
        if target.has_extremes_with_nan:
            name = "llvm.maximum" if isinstance(given, tirx.Max) else "llvm.minimum"
            return tirx.call_llvm_pure_intrin(type_, name, given.a, given.b)
        return type(given)(given.b, given.a) if _is_constant(given.b) else given

    return code.with_body(tvm_ffi.structural_map(code.body, ((tirx.Max, extreme), (tirx.Min, extreme))))


def _is_constant(value: Any) -> bool:
    return isinstance(value.value if isinstance(value, tirx.Broadcast) else value, tirx.FloatImm)
