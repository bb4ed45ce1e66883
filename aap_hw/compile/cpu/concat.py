"""Concatenation of channels, with the batch normalisation and activation that follow.

A table point has one input width, the sum, so the code must not depend on how the sum is split: the widths of the
parts are read off the arguments when the kernel runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.function import KernelFunction, activations, apply_epilogue, factors
from aap_hw.compile.cpu.emit import lane_loop
from aap_hw.compile.cpu.loops import light_kernel, row_loop, shares
from aap_hw.compile.families.shape import even_split, image_shape
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import CpuTarget


def concat(address: Address, target: CpuTarget) -> KernelFunction:
    """Images side by side along the channels; with ``affine`` in the epilogue, a factor and a summand a channel."""
    key, channels = address.key, address.width_in
    parts = int(key.attribute("parts"))
    shape, widths = image_shape(key, channels), [tirx.Var(f"width_{i}", "int32") for i in range(parts)]
    examples = [image_shape(key, width) for width in even_split(channels, parts)]
    has_affine = "affine" in key.epilogue
    steps = [step for step in key.epilogue if step != "affine"]
    values, pixels = key.batch * shape[1] * shape[2] * channels, key.batch * shape[1] * shape[2]
    rows = key.batch * shape[1] if shares(target, values) else 1

    def body(*buffers: Any) -> None:
        images, (*constants, output) = buffers[:parts], buffers[parts:]

        with row_loop(rows, target, values) as row:
            # Exact, and opaque to LLVM: its analysis of addresses takes time in the cube of the summands of an integer.
            placed, before = T.float32(0), T.int32(0)
            for image, width in zip(images, widths, strict=True):

                def copy(pixel: Any, c: Any, image: Any = image, width: Any = width, before: Any = before) -> None:
                    x = image[pixel * width + c]
                    if has_affine:
                        scale, shift = constants
                        x = x * scale[before + c] + shift[before + c]
                    value = apply_epilogue(x, steps, None, None)
                    T.buffer_store(output, value, [pixel * channels + before + c])

                _copy_any_width(row * (pixels // rows), pixels // rows, width, target.lanes, copy)
                placed = T.bind(placed + T.Cast("float32", width))
                before = T.bind(T.Cast("int32", placed))

    constants = factors(channels) if has_affine else []
    return light_kernel([*activations(*examples, any_width=True), *constants], shape, body, widths)


def _copy_any_width(first: Any, pixels: int, width: Any, lanes: int, copy: Callable[[Any, Any], None]) -> None:
    """``copy(pixel, c)`` for all pixels from ``first`` and all channels below ``width``.

    Vectors of which the last overlaps the one before; single values where not one vector fits.
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
