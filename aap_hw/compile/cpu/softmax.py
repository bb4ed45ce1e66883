"""Softmax over the channels of vectors (N, C), or of the pixels of an image."""

from __future__ import annotations

import math
from typing import Any

from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.expressions import exp, number
from aap_hw.compile.code.function import KernelFunction, activations
from aap_hw.compile.cpu.emit import scratch
from aap_hw.compile.cpu.kernels import KERNELS
from aap_hw.compile.cpu.loops import channel_loop, light_kernel
from aap_hw.compile.families import image_shape
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import CpuTarget


@KERNELS.register("softmax")
def softmax(address: Address, target: CpuTarget) -> KernelFunction:
    """e^(x - max) / sum: the exponentials are vectors, the two reductions go value by value."""
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
