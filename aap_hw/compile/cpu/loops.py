"""Parts of the light kernels: loops over pixels, vectors along channels, and the kernel around them.

Pixels of a tensor (N, H, W, C) are numbered across the batch, so that a value is at ``pixel * C + channel`` in its flat
buffer. Overlapping vectors cover any number of channels (`emit.Steps`). Some channels are then computed twice, so a
kernel must not read what it stores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tvm import s_tir, tirx
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.function import Argument, KernelFunction, unpacked
from aap_hw.compile.cpu.emit import Steps, Tensor, kernel_code, lane_loop, lanes_for
from aap_hw.compile.families import Shape
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.precision import FLOAT32
from aap_hw.compile.keys.target import CpuTarget

# Waking the other threads takes as long as moving about this many values.
WORTH_SHARING = 1 << 14


def light_kernel(
    key: KernelKey,
    arguments: Sequence[Argument],
    output: Shape,
    body: Callable[..., None],
    widths: Sequence[tirx.Var] = (),
) -> KernelFunction:
    """A kernel from its arguments, its output's shape, and ``body``, which writes the loops over flat buffers.

    ``widths`` are the variables for the channels of those arguments that may have any width, in order.
    """
    free = iter(widths)
    tensors = [
        Tensor(f"input_{i}", (*a.shape[:-1], next(free)) if a.any_width else a.shape, a.type)
        for i, a in enumerate(arguments)
    ]
    code = _rooted(kernel_code([*tensors, Tensor("output", output, key.types.made)], body))
    return KernelFunction(code, tuple(arguments), output, key.types.made, unpacked(arguments))


def _rooted(code: tirx.PrimFunc) -> tirx.PrimFunc:
    # Relax checks whether a kernel with one argument is a mere reshape, and expects a block to look into.
    root = s_tir.SBlockRealize([], True, s_tir.SBlock([], [], [], "root", code.body))
    return code.with_body(root).with_attr("s_tir", True)


def shares(target: CpuTarget, values: int) -> bool:
    """Whether it is worth sharing the work on so many values among threads."""
    return target.threads > 1 and values >= WORTH_SHARING


@contextmanager
def row_loop(rows: int, target: CpuTarget, values: int) -> Iterator[Any]:
    """A loop over rows, shared among threads if that is worth it for so many values."""
    with T.parallel(0, rows) if shares(target, values) else T.serial(0, rows) as row:
        yield row


@contextmanager
def pixel_loop(shape: Shape, target: CpuTarget) -> Iterator[Any]:
    """A loop over the pixels of (N, H, W, C)."""
    batch, height, width, _ = shape
    if shares(target, math.prod(shape)):
        with T.parallel(0, batch * height) as row, T.serial(0, width) as x:
            yield T.bind(row * width + x)
    else:
        with T.serial(0, batch * height * width) as pixel:
            yield pixel


@contextmanager
def channel_loop(channels: int, target: CpuTarget, type_: str = FLOAT32) -> Iterator[Any]:
    """A loop over channels, a vector of values of a type at a time."""
    steps = Steps(channels, lanes_for(channels, target, type_))
    with T.serial(0, steps.count) as step:
        first = T.bind(steps.start(step))
        with lane_loop(steps.length) as lane:
            yield first + lane
