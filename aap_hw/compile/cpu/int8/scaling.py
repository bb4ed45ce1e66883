"""Products of an image of bytes and a number for each of its channels, as squeeze and excitation takes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.approximations import MANTISSA_BITS
from aap_hw.compile.code.expressions import number
from aap_hw.compile.code.function import KernelFunction, activations, apply_epilogue
from aap_hw.compile.code.quantized import LARGEST, Number, unclipped
from aap_hw.compile.cpu.emit import Steps, lane_loop, lanes_for, registers, spread, store, vector
from aap_hw.compile.cpu.int8.epilogue import Numbers, bounds_of, in_vectors, in_whole_steps, made_of
from aap_hw.compile.cpu.int8.light import numbered_kernel, real
from aap_hw.compile.cpu.int8.storing import NARROW_TO_BYTES, NARROW_TO_HALVES, joined, to_bytes
from aap_hw.compile.cpu.isa import GROUP
from aap_hw.compile.cpu.kernels import QUANTIZED
from aap_hw.compile.cpu.loops import row_loop
from aap_hw.compile.cpu.pooling import vectors_at_once
from aap_hw.compile.families import image_shape
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.precision import FLOAT32
from aap_hw.compile.keys.target import CpuTarget


@QUANTIZED.register("scale_channels")
def scaled(address: Address, target: CpuTarget) -> KernelFunction:
    """What a few vectors of channels are multiplied by stays in registers for a whole row of pixels.

    Both scales are part of it and, if nothing stands between, that of the output.
    """
    key, channels = address.key, address.width_in
    steps = unclipped(key)
    is_plain = key.types.made == "uint8" and not steps
    shape = batch, height, width, _ = image_shape(key, channels)
    lanes = lanes_for(channels, target)
    by_vectors = is_plain and target.multiplies_by_lane and channels >= GROUP * lanes
    if by_vectors and not key.epilogue:
        return _in_halves(address, target)
    count = GROUP if by_vectors else vectors_at_once(channels, lanes)
    blocks = Steps(channels, count * lanes)

    def body(image: Any, gate: Any, output: Any, numbers: Numbers) -> None:
        bounds = bounds_of(key, numbers) if by_vectors else None
        with row_loop(batch * height, target, math.prod(shape)) as row, T.serial(0, blocks.count) as block:
            first = T.bind(blocks.start(block))
            own = T.bind(row // height * channels + first)
            factors, summands = (registers(count * lanes, FLOAT32) for _ in range(2))
            step = numbers(Number.STEP_READ) * numbers(Number.STEPS_MADE) if is_plain else numbers(Number.STEP_READ)
            for v in range(count):
                with lane_loop(lanes) as i:
                    place = v * lanes + i
                    T.buffer_store(factors, real(gate[own + place], numbers, 1) * step, [place])
                    T.buffer_store(summands, number(0.0) - numbers(Number.ZERO_READ) * factors[place], [place])
            with T.serial(0, width) as x:
                at = T.bind((row * width + x) * channels + first)
                if bounds is not None:
                    parts = in_vectors(T.bind(vector(image, at, blocks.length)), lanes)
                    own_of = [[vector(each, v * lanes, lanes) for each in (factors, summands)] for v in range(count)]
                    values = [part * factor + summand for part, (factor, summand) in zip(parts, own_of, strict=True)]
                    (made,) = to_bytes([values], bounds, lanes, target)
                    store(output, made, at, blocks.length)
                for v in () if by_vectors else range(count):
                    with lane_loop(lanes) as i:
                        place = v * lanes + i
                        value = T.Cast(FLOAT32, image[at + place]) * factors[place] + summands[place]
                        if is_plain:
                            made = T.Cast(key.types.made, in_whole_steps(value, numbers))
                        else:
                            made = made_of(key, apply_epilogue(value, steps, None, None), numbers)
                        T.buffer_store(output, made, [at + place])

    return numbered_kernel(key, activations(key, shape, (batch, 1, 1, channels)), shape, body)


SHIFT = 7
"""Bytes are shifted left by this much, as far as 16 bits allow."""


def _in_halves(address: Address, target: CpuTarget) -> KernelFunction:
    """The same in numbers of 16 bits on Arm, within an 85th of a step if a step of the image makes less than one.

    A byte, shifted up, is multiplied by a factor below 1, over 2^15. If a step of the image may make as many as 2^p of
    the output, factors are divided by that, the last shift brings it back, and errors are 2^p times as large. If the
    gate may be below 0, p is one more: a summand is then up to the zero point and as much as a product.
    """
    key, channels = address.key, address.width_in
    shape = batch, height, width, _ = image_shape(key, channels)
    size, half, quarter = GROUP * target.lanes, GROUP * target.lanes // 2, target.lanes
    blocks = Steps(channels, size)

    def body(image: Any, gate: Any, output: Any, numbers: Numbers) -> None:
        step = T.bind(numbers(Number.STEP_READ) * numbers(Number.STEPS_MADE))
        zero, zero_gate = numbers(Number.ZERO_READ), numbers(Number.ZERO_ADDED)
        highest = T.max(zero_gate, number(LARGEST) - zero_gate) * numbers(Number.STEP_ADDED) * step
        power = T.max((T.reinterpret("int32", highest) >> MANTISSA_BITS) - 126, 0)
        power = T.bind(power + T.Cast("int32", zero_gate > number(0.0)))
        above = T.bind(T.reinterpret(FLOAT32, (T.int32(127 + 15) - power) << MANTISSA_BITS))
        shift = T.bind(spread(T.Cast("int16", power - SHIFT), half))

        def halves(vectors: Sequence[Any]) -> Any:
            """Two vectors of float32 as one of 16-bit numbers, rounded."""
            whole = [
                T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.fcvtns.v4i32.v4f32", each) for each in vectors
            ]
            return T.bind(joined("int16x4", NARROW_TO_HALVES, whole))

        with row_loop(batch * height, target, math.prod(shape)) as row, T.serial(0, blocks.count) as block:
            first = T.bind(blocks.start(block))
            gates = in_vectors(T.bind(vector(gate, T.bind(row // height * channels + first), size)), quarter)
            scale = T.bind(numbers(Number.STEP_ADDED) * step * above)
            factors = [T.bind((each - spread(zero_gate, quarter)) * spread(scale, quarter)) for each in gates]
            made = T.bind(spread(numbers(Number.ZERO_MADE) * above * number(2.0 ** (SHIFT - 15)), quarter))
            summands = [T.bind(made - each * spread(zero * number(2.0 ** (SHIFT - 15)), quarter)) for each in factors]
            factors_16, summands_16 = ([halves(some[i : i + 2]) for i in (0, 2)] for some in (factors, summands))
            with T.serial(0, width) as x:
                at = T.bind((row * width + x) * channels + first)
                read, found = T.bind(vector(image, at, size)), []
                for i in range(2):
                    part = T.Cast(f"int16x{half}", tirx.Shuffle([read], list(range(i * half, (i + 1) * half))))
                    shifted = T.shift_left(part, spread(T.int16(SHIFT), half))
                    product = T.call_llvm_pure_intrin(
                        "int16x8", "llvm.aarch64.neon.sqrdmulh.v8i16", shifted, factors_16[i]
                    )
                    value = T.call_llvm_pure_intrin("int16x8", "llvm.aarch64.neon.sqadd.v8i16", product, summands_16[i])
                    found.append(T.call_llvm_pure_intrin("int16x8", "llvm.aarch64.neon.sqrshl.v8i16", value, shift))
                store(output, joined("uint8x8", NARROW_TO_BYTES, found), at, size)

    return numbered_kernel(key, activations(key, shape, (batch, 1, 1, channels)), shape, body)
