"""GPU code made to run on a CPU: its blocks and threads one after the other, its shared memory as plain memory.

That is what scheduled code means before TVM turns its loops into a launch: loops that are bound to blocks and threads
are loops, and what threads fetch together is complete before it is read.
"""

from __future__ import annotations

import tvm_ffi
from tvm import tirx


def in_series(code: tirx.PrimFunc) -> tirx.PrimFunc:
    """The same code with plain loops."""

    def unbound(loop: tirx.For) -> tirx.For:
        # What dlight asks of a GPU's compiler in annotations, LLVM would only warn of.
        if loop.kind != tirx.ForKind.THREAD_BINDING and not any(map(_is_pragma, loop.annotations)):
            return loop
        kind = tirx.ForKind.SERIAL if loop.kind == tirx.ForKind.THREAD_BINDING else loop.kind
        return tirx.For(loop.loop_var, loop.min, loop.extent, kind, loop.body)

    return code.with_body(tvm_ffi.structural_map(code.body, (tirx.For, unbound)))


def _is_pragma(name: object) -> bool:
    return str(name).startswith("pragma_")
