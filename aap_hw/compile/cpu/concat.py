"""Concatenation of channels, with the batch normalisation and activation that follow.

A table point has one input width, the sum, so the code must not depend on how the sum is split: the widths of the
parts are read off the arguments when the kernel runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code import DEFINITIONS
from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.code.movement import joined_value
from aap_hw.compile.cpu.emit import lane_loop
from aap_hw.compile.cpu.kernels import KERNELS
from aap_hw.compile.cpu.loops import light_kernel, row_loop, shares
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import CpuTarget


@KERNELS.register("concat")
def concat(address: Address, target: CpuTarget) -> KernelFunction:
    """Images side by side along the channels; with ``affine`` in the epilogue, a factor and a summand a channel."""
    definition, joined = DEFINITIONS["concat"](address), joined_value(address.key)
    batch, height, width, channels = shape = definition.shape
    parts = [argument for argument in definition.arguments if argument.any_width]
    widths = [tirx.Var(f"width_{i}", "int32") for i in range(len(parts))]
    pixels, values = batch * height * width, math.prod(shape)
    rows = batch * height if shares(target, values) else 1

    def body(*buffers: Any) -> None:
        images, (*constants, output) = buffers[: len(parts)], buffers[len(parts) :]

        with row_loop(rows, target, values) as row:
            # Exact, and hides the sum from LLVM, whose analysis of addresses takes time cubic in the number of
            # summands.
            placed, before = T.float32(0), T.int32(0)
            for image, own in zip(images, widths, strict=True):

                def copy(pixel: Any, c: Any, image: Any = image, own: Any = own, before: Any = before) -> None:
                    value = joined(image[pixel * own + c], *[constant[before + c] for constant in constants])
                    T.buffer_store(output, value, [pixel * channels + before + c])

                copy_any_width(row * (pixels // rows), pixels // rows, own, target.lanes, copy)
                placed = T.bind(placed + T.Cast("float32", own))
                before = T.bind(T.Cast("int32", placed))

    return light_kernel(address.key, definition.arguments, shape, body, widths)


def copy_any_width(first: Any, pixels: int, width: Any, lanes: int, copy: Callable[[Any, Any], None]) -> None:
    """``copy(pixel, c)`` for all pixels from ``first`` and all channels below ``width``.

    The last vector overlaps the one before; channels fewer than a vector are copied one by one.
    """
    with T.serial(0, pixels) as p:
        pixel = T.bind(first + p)
        with T.If(width >= lanes):
            with T.Then(), T.serial(0, tirx.truncdiv(width + (lanes - 1), lanes)) as step:
                start = T.bind(T.min(step * lanes, width - lanes))
                with lane_loop(lanes) as lane:
                    copy(pixel, start + lane)
            with T.Else(), T.serial(0, width) as c:
                copy(pixel, c)
