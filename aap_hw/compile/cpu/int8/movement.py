"""Kernels that move bytes: as float32's where nothing is computed, and concatenation of images of several scales."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code import DEFINITIONS
from aap_hw.compile.code.expressions import number
from aap_hw.compile.code.function import Argument, KernelFunction, apply_epilogue
from aap_hw.compile.code.quantized import (
    LARGEST,
    Number,
    Quantized,
    normalisation_of,
    numbers_of,
    scales_of,
    unclipped,
)
from aap_hw.compile.cpu.concat import copy_any_width
from aap_hw.compile.cpu.int8.epilogue import made_of
from aap_hw.compile.cpu.kernels import KERNELS, QUANTIZED
from aap_hw.compile.cpu.loops import light_kernel, row_loop, shares
from aap_hw.compile.cpu.movement import write_padded
from aap_hw.compile.families.quantised import MOVING
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.precision import FLOAT32
from aap_hw.compile.keys.target import CpuTarget
from aap_hw.errors import UserError


@QUANTIZED.register(*sorted(MOVING - {"max_pool2d"}))
def moved(address: Address, target: CpuTarget) -> KernelFunction:
    """The code of float32's kernel, which never looks at a value."""
    key = address.key
    function = KERNELS[key.op](address, target)
    if key.types.made != key.types.read or any(argument.role == "constant" for argument in function.arguments):
        raise UserError(f"the kernel {key} has no code in this version: it would have to compute what it moves")
    return replace(function, quantized=lambda _: ())


@QUANTIZED.register("pad_channels", "pad")
def padded(address: Address, target: CpuTarget) -> KernelFunction:
    """An image among the byte that stands for zero, or for the number that the key names."""
    key, definition = address.key, DEFINITIONS[address.key.op](address)

    def body(image: Any, filling: Any, output: Any) -> None:
        write_padded(address, target, image, output, T.bind(filling[0]))

    def quantized(model: Quantized) -> tuple[np.ndarray, ...]:
        (read,) = model.read
        filling = np.rint(float(key.attribute("value", "0")) / read.scale) + read.zero_point
        return (np.array([np.clip(filling, 0, LARGEST)], np.uint8),)

    arguments = [*definition.arguments, Argument("constant", (1,), type=key.types.read)]
    return replace(light_kernel(key, arguments, definition.shape, body), quantized=quantized)


@QUANTIZED.register("concat")
def concat(address: Address, target: CpuTarget) -> KernelFunction:
    """Images side by side along the channels; those that have the scale of the output are copied.

    With ``affine`` in the epilogue, each channel has a factor and a summand.
    """
    key, definition = address.key, DEFINITIONS["concat"](address)
    is_normalised, steps = "affine" in key.epilogue, [step for step in unclipped(key) if step != "affine"]
    batch, height, width, channels = shape = definition.shape
    parts = [argument for argument in definition.arguments if argument.any_width]
    widths = [tirx.Var(f"width_{i}", "int32") for i in range(len(parts))]
    pixels, values = batch * height * width, math.prod(shape)
    rows = batch * height if shares(target, values) else 1
    may_copy = key.types.made == key.types.read and not key.epilogue

    def body(*buffers: Any) -> None:
        images, (*factors, scales, numbers, output) = buffers[: len(parts)], buffers[len(parts) :]
        known = {n: T.bind(numbers[int(n)]) for n in Number}

        with row_loop(rows, target, values) as row:
            # Exact, and hides the sum from LLVM, whose analysis of addresses takes time cubic in the number of
            # summands.
            placed, before = T.float32(0), T.int32(0)
            for part, (image, own) in enumerate(zip(images, widths, strict=True)):
                zero, step = T.bind(scales[2 * part]), T.bind(scales[2 * part + 1])

                def copy(pixel: Any, c: Any, image: Any = image, own: Any = own, before: Any = before) -> None:
                    T.buffer_store(output, image[pixel * own + c], [pixel * channels + before + c])

                def convert(
                    pixel: Any,
                    c: Any,
                    image: Any = image,
                    own: Any = own,
                    before: Any = before,
                    zero: Any = zero,
                    step: Any = step,
                ) -> None:
                    value = (T.Cast(FLOAT32, image[pixel * own + c]) - zero) * step
                    if factors:
                        at = before + c
                        value = value * factors[0][at] + factors[0][channels + at]
                    value = made_of(key, apply_epilogue(value, steps, None, None), known.__getitem__)
                    T.buffer_store(output, value, [pixel * channels + before + c])

                first, count = row * (pixels // rows), pixels // rows
                if may_copy:
                    with T.If(tirx.all(step == number(1.0), zero == known[Number.ZERO_MADE])):
                        with T.Then():
                            copy_any_width(first, count, own, target.lanes_of(key.types.made), copy)
                        with T.Else():
                            copy_any_width(first, count, own, target.lanes, convert)
                else:
                    copy_any_width(first, count, own, target.lanes, convert)
                placed = T.bind(placed + T.Cast("float32", own))
                before = T.bind(T.Cast("int32", placed))

    def quantized(model: Quantized) -> tuple[np.ndarray, ...]:
        normalisation = [normalisation_of(key, model)] if is_normalised else []
        return *normalisation, scales_of(key, model), numbers_of(key, replace(model, read=()))

    factors = [Argument("constant", (2, channels))] if is_normalised else []
    arguments = [*parts, *factors, Argument("constant", (len(parts), 2)), Argument("constant", (len(Number),))]
    return replace(light_kernel(key, arguments, shape, body, widths), quantized=quantized)
