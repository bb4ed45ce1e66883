"""Products of an image of bytes and a number for each of its channels, as squeeze and excitation takes them."""

from __future__ import annotations

import math
from typing import Any

from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.expressions import number
from aap_hw.compile.code.function import KernelFunction, activations, apply_epilogue
from aap_hw.compile.code.quantized import Number, unclipped
from aap_hw.compile.cpu.emit import Steps, lane_loop, lanes_for, registers, store, vector
from aap_hw.compile.cpu.int8.epilogue import Numbers, bounds_of, in_vectors, in_whole_steps, made_of
from aap_hw.compile.cpu.int8.light import numbered_kernel, real
from aap_hw.compile.cpu.int8.storing import to_bytes
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
