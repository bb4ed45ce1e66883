"""Light kernels that work value by value: activations, sums, products, channel-wise scaling."""

from __future__ import annotations

import math
from typing import Any

from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.function import KernelFunction, activations, apply_epilogue, factors
from aap_hw.compile.cpu.loops import channel_loop, light_kernel, pixel_loop, row_loop, shares
from aap_hw.compile.families.shape import image_shape
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.target import CpuTarget


def activation(address: Address, target: CpuTarget) -> KernelFunction:
    """An activation that no other kernel took along."""
    key, channels = address.key, address.width_in
    return _value_by_value(key, channels, target, lambda x: apply_epilogue(x, [key.op], None, None), inputs=1)


def add(address: Address, target: CpuTarget) -> KernelFunction:
    """Sum of two tensors of the same shape, and what follows."""
    key, channels = address.key, address.width_in
    return _value_by_value(key, channels, target, lambda x, y: x + y, inputs=2)


def multiply(address: Address, target: CpuTarget) -> KernelFunction:
    """Product of two tensors of the same shape, and what follows."""
    key, channels = address.key, address.width_in
    return _value_by_value(key, channels, target, lambda x, y: x * y, inputs=2)


def _value_by_value(key: KernelKey, channels: int, target: CpuTarget, function: Any, inputs: int) -> KernelFunction:
    shape = image_shape(key, channels)
    values = math.prod(shape)
    rows = key.batch * shape[1] if shares(target, values) else 1

    def body(*buffers: Any) -> None:
        *images, output = buffers
        with row_loop(rows, target, values) as row, channel_loop(values // rows, target) as i:
            at = row * (values // rows) + i
            result = function(*[image[at] for image in images])
            T.buffer_store(output, apply_epilogue(result, key.epilogue, None, None), [at])

    return light_kernel(activations(*[shape] * inputs), shape, body)


def scale_channels(address: Address, target: CpuTarget) -> KernelFunction:
    """An image (N, H, W, C) times one factor a channel (N, 1, 1, C): the end of squeeze and excitation."""
    key, channels = address.key, address.width_in
    shape = image_shape(key, channels)

    def body(image: Any, gate: Any, output: Any) -> None:
        with pixel_loop(shape, target) as pixel:
            own = T.bind(pixel // (shape[1] * shape[2]) * channels)
            with channel_loop(channels, target) as c:
                at = pixel * channels + c
                product = image[at] * gate[own + c]
                T.buffer_store(output, apply_epilogue(product, key.epilogue, None, None), [at])

    return light_kernel(activations(shape, (key.batch, 1, 1, channels)), shape, body)


def affine(address: Address, target: CpuTarget) -> KernelFunction:
    """A batch normalisation without a convolution before it: a factor and a summand a channel, and what follows."""
    key, channels = address.key, address.width_in
    shape = image_shape(key, channels)

    def body(image: Any, scale: Any, shift: Any, output: Any) -> None:
        with pixel_loop(shape, target) as pixel, channel_loop(channels, target) as c:
            at = pixel * channels + c
            scaled = image[at] * scale[c] + shift[c]
            T.buffer_store(output, apply_epilogue(scaled, key.epilogue, None, None), [at])

    return light_kernel([*activations(shape), *factors(channels)], shape, body)
