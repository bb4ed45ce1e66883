"""Values that are opaque to LLVM, so that it leaves the loops around them as they are written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm.script.ir_builder import tirx as T

ANCHORED = "anchored_run"
# What a short reduction reads does not change from one slice of weights to the next. LLVM would bring each lane of it
# into a register of its own before the loop over these and, as there are not as many, onto the stack.
ANCHOR = f"""
    define linkonce_odr <4 x i32> @{ANCHORED}(<4 x i32> %value) alwaysinline {{
        %same = call <4 x i32> asm sideeffect "", "=w,0"(<4 x i32> %value)
        ret <4 x i32> %same
    }}
"""
UNKNOWN = "unknown_count"
# LLVM would unroll a loop of few turns that is kept apart from others for the sake of registers.
UNKNOWN_COUNT = f"""
    define linkonce_odr i32 @{UNKNOWN}(i32 %value) alwaysinline {{
        %same = call i32 asm sideeffect "", "=r,0"(i32 %value)
        ret i32 %same
    }}
"""


def anchored(values: Any) -> Any:
    """A run of activations as it is, of which LLVM computes nothing outside of the loops where this stands."""
    return T.call_pure_extern("int32x4", ANCHORED, values)


def unknown(value: Any) -> Any:
    """A number as it is, which LLVM does not know; within an import of ``UNKNOWN_COUNT``."""
    return T.call_pure_extern("int32", UNKNOWN, value)


@contextmanager
def not_unrolled(turns: int) -> Iterator[Any]:
    """A loop of so many turns that LLVM leaves a loop."""
    count = T.bind(unknown(T.int32(turns)))
    with T.attr(T.int32(0), "pragma_import_llvm", UNKNOWN_COUNT), T.serial(0, count) as turn:
        yield turn
