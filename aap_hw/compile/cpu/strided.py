"""Strided copies: whole vectors where both sides are contiguous, and blocks transposed in registers elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.code.strided import arguments_of, place_of
from aap_hw.compile.cpu.emit import Steps, lane_loop, lanes_for, store, vector
from aap_hw.compile.cpu.kernels import KERNELS
from aap_hw.compile.cpu.loops import light_kernel, shares
from aap_hw.compile.families.strided import Loop, Part, StridedCopy
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import CpuTarget

# Smaller blocks are not worth transposing in registers.
SMALLEST_BLOCK = 4
# Loops as short as this are unrolled.
UNROLLED = 4


@dataclass(frozen=True)
class Walk:
    """One loop of a copy, with its stride in the source and in the output."""

    read: Loop
    made: int

    @property
    def length(self) -> int:
        """How many steps it has."""
        return self.read.length

    @property
    def is_plain(self) -> bool:
        """Whether it is not cyclic."""
        return self.read.wrap is None


@KERNELS.register("strided_copy")
def strided_copy(address: Address, target: CpuTarget) -> KernelFunction:
    """Copies the parts one after the other."""
    copy = StridedCopy.of(address)

    def body(*buffers: Any) -> None:
        *sources, output = buffers
        column = 0
        for part, source in zip(copy.parts, sources, strict=True):
            _copy(part, walks_of(part, copy), column, source, output, target)
            column += part.values // copy.rows

    return light_kernel(address.key, arguments_of(address, copy.parts), copy.shape, body)


def walks_of(part: Part, copy: StridedCopy) -> list[Walk]:
    """The loops over a part, outermost first, merged where possible."""
    width = part.values // copy.rows
    walks, done = list[Walk](), 1
    for loop in reversed(part.loops):
        within = min(loop.length, max(width // done, 1))
        for length, stride in ((within, loop.stride), (loop.length // within, loop.stride * within)):
            made = done if done < width else done // width * copy.row
            if length > 1:
                walks.insert(0, Walk(replace(loop, length=length, stride=stride), made))
            done *= length
    merged = list[Walk]()
    for walk in walks:
        outer = merged[-1] if merged else None
        if (
            outer is not None
            and outer.read.wrap == walk.read.wrap
            and outer.read.stride == walk.length * walk.read.stride
            and outer.made == walk.length * walk.made
        ):
            merged[-1] = Walk(replace(walk.read, length=outer.length * walk.length), walk.made)
        else:
            merged.append(walk)
    return merged


def _copy(part: Part, walks: Sequence[Walk], first: int, source: Any, output: Any, target: CpuTarget) -> None:
    """The loops of one part, with the loop over vectors innermost."""
    plain = [walk for walk in walks if walk.is_plain]
    made = next((walk for walk in plain if walk.made == 1), None)
    read = next((walk for walk in plain if walk.read.stride == 1), None)
    block = 0
    if made is not None and read is not None and made is not read:
        shortest = min(made.length, read.length, target.lanes)
        block = 1 << (shortest.bit_length() - 1)
    if made is not None and made is read:
        with _outer(part, [walk for walk in walks if walk is not made], first, target) as (taken, placed):
            _vectors(made, source, output, taken, placed, target)
    elif made is not None and read is not None and block >= SMALLEST_BLOCK:
        with _outer(part, [walk for walk in walks if walk not in (made, read)], first, target) as (taken, placed):
            _blocks(made, read, block, source, output, taken, placed)
    else:
        inner = max((walk for walk in walks if walk in (made, read)), key=lambda walk: walk.length, default=None)
        short = [walk for walk in walks if walk is not inner and walk.length <= UNROLLED and walk in (made, read)]
        last = [*([inner] if inner else []), *short]
        with _outer(part, [*(walk for walk in walks if walk not in last), *last], first, target) as (taken, placed):
            T.buffer_store(output, source[taken], [placed])


class _outer:  # noqa: N801 - reads as the loops that it is
    """The outer loops of a copy, which yield the places to read from and to write to."""

    def __init__(self, part: Part, walks: Sequence[Walk], first: int, target: CpuTarget) -> None:
        self._part, self._walks, self._first = part, list(walks), first
        self._is_shared = shares(target, part.values)
        self._stack = ExitStack()

    def __enter__(self) -> tuple[Any, Any]:
        walks = self._walks
        if self._is_shared and walks:
            longest = max(walks, key=lambda walk: walk.length)
            walks = [longest, *(walk for walk in walks if walk is not longest)]
        steps = []
        for i, walk in enumerate(walks):
            kind = T.parallel if self._is_shared and not i else T.unroll if walk.length <= UNROLLED and i else T.serial
            steps.append(self._stack.enter_context(kind(0, walk.length)))
        taken = place_of([walk.read for walk in walks], steps, self._part.offset)
        placed = sum(
            (step * walk.made for walk, step in zip(walks, steps, strict=True)), tirx.const(self._first, "int32")
        )
        return T.bind(tirx.const(0, "int32") + taken), T.bind(placed)

    def __exit__(self, *problem: Any) -> None:
        self._stack.__exit__(*problem)


def _vectors(walk: Walk, source: Any, output: Any, taken: Any, placed: Any, target: CpuTarget) -> None:
    steps = Steps(walk.length, lanes_for(walk.length, target))
    with T.serial(0, steps.count) as step:
        first = T.bind(steps.start(step))
        with lane_loop(steps.length) as lane:
            T.buffer_store(output, source[taken + first + lane], [placed + first + lane])


def _blocks(made: Walk, read: Walk, size: int, source: Any, output: Any, taken: Any, placed: Any) -> None:
    """Square blocks that are transposed on the way, ``size`` rows of ``size`` values each."""
    rows, columns = Steps(made.length, size), Steps(read.length, size)
    with T.serial(0, columns.count) as across, T.serial(0, rows.count) as down:
        column, row = T.bind(columns.start(across)), T.bind(rows.start(down))
        first = T.bind(taken + row * made.read.stride + column)
        vectors = [T.bind(vector(source, first + i * made.read.stride, size)) for i in range(size)]
        first = T.bind(placed + column * read.made + row)
        for i, turned in enumerate(_turned(vectors, size)):
            store(output, turned, first + i * read.made, size)


def _turned(rows: list[Any], size: int) -> list[Any]:
    """The transpose of a square block, by exchanging halves, quarters and so on of pairs of rows."""
    step = 1
    while step < size:
        low = [lane if not lane & step else size + (lane ^ step) for lane in range(size)]
        high = [lane | step if not lane & step else size + lane for lane in range(size)]
        for i in range(size):
            if not i & step:
                pair = [rows[i], rows[i | step]]
                rows[i], rows[i | step] = (T.bind(tirx.Shuffle(pair, lanes)) for lanes in (low, high))
        step *= 2
    return rows
