"""Reading files on a board through TVM's RPC, which has no function for it that works for ``/proc``.

A library of one function that calls the C library's ``pread``, compiled for the board like any kernel. What the files
mean is ``aap_hw.device.facts``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.keys.target import CpuTarget
from aap_hw.compile.library.linking import link

FUNCTION = "read_file"
# Bytes of one answer, and of a path with the zero at its end: Linux opens no longer one.
BLOCK, LONGEST_PATH = 4096, 4096


def compile_probe(target: CpuTarget, library: Path) -> None:
    """Compile the library whose function ``Reader`` calls."""
    with IRBuilder() as builder, T.prim_func():
        T.func_attr({"global_symbol": FUNCTION})
        path = T.arg("path", T.buffer((LONGEST_PATH,), "uint8"))
        offset = T.arg("offset", T.int64())
        content = T.arg("content", T.buffer((BLOCK,), "uint8"))
        length = T.arg("length", T.buffer((1,), "int64"))
        # Read-only is 0 on every Linux; a file that cannot be opened makes pread return -1.
        file = T.bind(T.call_extern("int32", "open", path.data, 0))
        T.buffer_store(length, T.call_extern("int64", "pread", file, content.data, T.int64(BLOCK), offset), [0])
        T.evaluate(T.call_extern("int32", "close", file))
    link(tvm.compile(tvm.IRModule({FUNCTION: builder.get()}), target=target.tvm), target, library)


class Reader:
    """Reads files where the probe is loaded."""

    def __init__(self, module: object, device: object) -> None:
        self._function, self._device = module[FUNCTION], device  # type: ignore[index]

    def read(self, path: str) -> bytes | None:
        """A file's content, or None if it cannot be read."""
        content = b""
        while block := self._block(path, len(content)):
            content += block
        return None if block is None else content

    def holds(self, path: str, size: int) -> bool:
        """Whether a file has exactly so many bytes."""
        last = self._block(path, size - 1)
        return last is not None and len(last) == 1

    def _block(self, path: str, offset: int) -> bytes | None:
        name = path.encode()
        if len(name) >= LONGEST_PATH:
            return None
        text = np.zeros(LONGEST_PATH, "uint8")
        text[: len(name)] = np.frombuffer(name, "uint8")
        block = tvm.runtime.tensor(np.zeros(BLOCK, "uint8"), self._device)
        length = tvm.runtime.tensor(np.zeros(1, "int64"), self._device)
        self._function(tvm.runtime.tensor(text, self._device), offset, block, length)
        count = int(length.numpy()[0])
        return None if count < 0 else block.numpy()[:count].tobytes()
