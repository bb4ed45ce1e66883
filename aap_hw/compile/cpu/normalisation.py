"""Normalisations on a CPU, in two passes: first the mean, then the squared differences from it."""

from __future__ import annotations

import math
from typing import Any

from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.expressions import number
from aap_hw.compile.code.function import KernelFunction, apply_epilogue
from aap_hw.compile.code.normalisation import normalised_arguments
from aap_hw.compile.cpu.emit import Steps, constant, lanes_for, scratch, spread, store, vector
from aap_hw.compile.cpu.kernels import KERNELS
from aap_hw.compile.cpu.loops import channel_loop, light_kernel, row_loop
from aap_hw.compile.cpu.pooling import vectors_at_once
from aap_hw.compile.cpu.sums import row_sum, vector_sums
from aap_hw.compile.families import image_shape
from aap_hw.compile.families.normalisation import OVER_CHANNELS, channels_together
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import CpuTarget


@KERNELS.register(*OVER_CHANNELS)
def over_channels(address: Address, target: CpuTarget) -> KernelFunction:
    """(x - mean) / sqrt(variance + eps) over the channels of each pixel; an RMS norm has no mean."""
    key, channels = address.key, address.width_in
    shape, epsilon = image_shape(key, channels), float(key.attribute("eps"))
    rows, type_ = math.prod(shape[:-1]), key.types.sum

    def body(image: Any, *others: Any) -> None:
        *affine, output = others
        with row_loop(rows, target, rows * channels) as row:
            first = T.bind(row * channels)
            mean = number(0.0, type_)
            if key.op == "layer_norm":
                total = row_sum(channels, target, type_, lambda i, lanes: vector(image, first + i, lanes))
                mean = T.bind(total * number(1 / channels, type_))

            def square(i: Any, lanes: int) -> Any:
                difference = vector(image, first + i, lanes) - spread(mean, lanes)
                return difference * difference

            variance = row_sum(channels, target, type_, square) * number(1 / channels, type_)
            factor = T.bind(number(1.0, type_) / T.sqrt(variance + number(epsilon, type_)))
            with channel_loop(channels, target) as c:
                value = (image[first + c] - mean) * factor
                value = value * affine[0][c] + affine[1][c] if affine else value
                T.buffer_store(output, apply_epilogue(value, key.epilogue, None, None), [first + c])

    return light_kernel(key, normalised_arguments(address), shape, body)


@KERNELS.register("group_norm")
def group_norm(address: Address, target: CpuTarget) -> KernelFunction:
    """The same over all pixels of a group of ``each`` channels: first channel by channel, then joined."""
    key, channels = address.key, address.width_in
    shape, epsilon, each = image_shape(key, channels), float(key.attribute("eps")), channels_together(address)
    pixels, type_, lanes = math.prod(key.image), key.types.sum, lanes_for(channels, target)
    count = vectors_at_once(channels, lanes)
    blocks = Steps(channels, count * lanes)

    def body(image: Any, *others: Any) -> None:
        *affine, output = others
        means, factors = (scratch(key.batch * channels, type_) for _ in range(2))

        def summarise(n: Any, first: Any) -> None:
            """Mean and variance of some channels."""
            start = T.bind(n * pixels * channels + first)

            def pixel(i: Any, v: int) -> Any:
                return vector(image, start + i * channels + v * lanes, lanes)

            def square(i: Any, v: int) -> Any:
                difference = pixel(i, v) - vector(means, n * channels + first + v * lanes, lanes)
                return difference * difference

            for into, value in ((means, pixel), (factors, square)):
                sums = vector_sums(pixels, count, lanes, type_, value)
                for v in range(count):
                    share = vector(sums, v * lanes, lanes) * constant(1 / pixels, lanes, type_)
                    store(into, share, n * channels + first + v * lanes, lanes)

        def join(first: Any) -> None:
            """Combine the statistics of a group's channels into its mean and the factor of its values."""
            mean, variance = (scratch(1, type_) for _ in range(2))
            T.buffer_store(mean, number(0.0, type_), [0])
            with T.serial(0, each) as c:
                T.buffer_store(mean, mean[0] + means[first + c] * number(1 / each, type_), [0])
            T.buffer_store(variance, number(0.0, type_), [0])
            with T.serial(0, each) as c:
                apart = means[first + c] - mean[0]
                added = (factors[first + c] + apart * apart) * number(1 / each, type_)
                T.buffer_store(variance, variance[0] + added, [0])
            factor = T.bind(number(1.0, type_) / T.sqrt(variance[0] + number(epsilon, type_)))
            with T.serial(0, each) as c:
                T.buffer_store(means, mean[0], [first + c])
                T.buffer_store(factors, factor, [first + c])

        with row_loop(key.batch * blocks.count, target, math.prod(shape)) as block:
            summarise(T.bind(block // blocks.count), T.bind(blocks.start(block % blocks.count)))
        with T.serial(0, key.batch * channels // each) as group:
            join(T.bind(group * each))
        with row_loop(key.batch * pixels, target, math.prod(shape)) as pixel:
            own = T.bind(pixel // pixels * channels)
            with channel_loop(channels, target) as c:
                value = (image[pixel * channels + c] - means[own + c]) * factors[own + c]
                value = value * affine[0][c] + affine[1][c] if affine else value
                T.buffer_store(output, apply_epilogue(value, key.epilogue, None, None), [pixel * channels + c])

    return light_kernel(key, normalised_arguments(address), shape, body)
