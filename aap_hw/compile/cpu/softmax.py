"""Softmax over channels, and along any axis: vectors lie along it if it is the last one, else along those behind it."""

from __future__ import annotations

import math
from typing import Any

from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.expressions import exp, number
from aap_hw.compile.code.function import KernelFunction, activations
from aap_hw.compile.cpu.emit import Steps, lane_loop, lanes_for, registers, scratch, vector
from aap_hw.compile.cpu.kernels import KERNELS
from aap_hw.compile.cpu.loops import channel_loop, light_kernel, row_loop
from aap_hw.compile.cpu.pooling import vectors_at_once
from aap_hw.compile.cpu.sums import row_extreme, row_sum, vector_extremes, vector_sums
from aap_hw.compile.families import image_shape
from aap_hw.compile.families.reductions import Reduction
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import CpuTarget


@KERNELS.register("softmax")
def softmax(address: Address, target: CpuTarget) -> KernelFunction:
    """e^(x - max) / sum: exponentials in vectors, maximum and sum value by value."""
    key, channels = address.key, address.width_in
    shape = image_shape(key, channels)

    def body(image: Any, output: Any) -> None:
        powers, largest, total = (scratch(elements, key.types.sum) for elements in (channels, 1, 1))
        with T.serial(0, math.prod(shape[:-1])) as n:
            T.buffer_store(largest, image[n * channels], [0])
            with T.serial(0, channels) as c:
                T.buffer_store(largest, T.max(largest[0], image[n * channels + c]), [0])
            with channel_loop(channels, target) as c:
                T.buffer_store(powers, exp(image[n * channels + c] - largest[0]), [c])
            T.buffer_store(total, number(0.0, total.dtype), [0])
            with T.serial(0, channels) as c:
                T.buffer_store(total, total[0] + powers[c], [0])
            with channel_loop(channels, target) as c:
                T.buffer_store(output, powers[c] / total[0], [n * channels + c])

    return light_kernel(key, activations(key, shape), shape, body)


@KERNELS.register("axis_softmax")
def axis_softmax(address: Address, target: CpuTarget) -> KernelFunction:
    """e^(x - max) / sum along an axis, or its logarithm."""
    key, shape = address.key, Reduction.of(address)
    type_, values, is_log = key.types.sum, math.prod(shape.source), bool(key.attribute("log"))
    lanes = lanes_for(shape.inner, target, type_)
    count = vectors_at_once(shape.inner, lanes)
    blocks = Steps(shape.inner, count * lanes)

    def along(image: Any, output: Any) -> None:
        with row_loop(shape.outer, target, values) as row:
            first, powers = T.bind(row * shape.reduced), scratch(shape.reduced, type_)
            largest = row_extreme(shape.reduced, target, type_, lambda i, lanes: vector(image, first + i, lanes), T.max)
            with channel_loop(shape.reduced, target) as c:
                T.buffer_store(powers, exp(image[first + c] - largest), [c])
            total = row_sum(shape.reduced, target, type_, lambda i, lanes: vector(powers, i, lanes))
            share = T.bind(T.log(total) + largest if is_log else number(1.0, type_) / total)
            with channel_loop(shape.reduced, target) as c:
                result = image[first + c] - share if is_log else powers[c] * share
                T.buffer_store(output, result, [first + c])

    def behind(image: Any, output: Any) -> None:
        with row_loop(shape.outer * blocks.count, target, values) as block:
            start = T.bind(block // blocks.count * (shape.reduced * shape.inner) + blocks.start(block % blocks.count))
            width = count * lanes
            powers, scale = scratch(shape.reduced * width, type_), registers(width, type_)

            def value(i: Any, v: int) -> Any:
                return vector(image, start + i * shape.inner + v * lanes, lanes)

            largest = vector_extremes(shape.reduced, count, lanes, type_, value, T.max)
            with T.serial(0, shape.reduced) as i:
                for v in range(count):
                    with lane_loop(lanes) as lane:
                        place = v * lanes + lane
                        power = exp(image[start + i * shape.inner + place] - largest[place])
                        T.buffer_store(powers, power, [i * width + place])
            sums = vector_sums(
                shape.reduced, count, lanes, type_, lambda i, v: vector(powers, i * width + v * lanes, lanes)
            )
            for v in range(count):
                with lane_loop(lanes) as lane:
                    place = v * lanes + lane
                    share = T.log(sums[place]) + largest[place] if is_log else number(1.0, type_) / sums[place]
                    T.buffer_store(scale, share, [place])
            with T.serial(0, shape.reduced) as i:
                for v in range(count):
                    with lane_loop(lanes) as lane:
                        place, at = v * lanes + lane, start + i * shape.inner + v * lanes + lane
                        result = image[at] - scale[place] if is_log else powers[i * width + place] * scale[place]
                        T.buffer_store(output, result, [at])

    body = along if shape.inner == 1 else behind
    return light_kernel(key, activations(key, shape.source), shape.source, body)
