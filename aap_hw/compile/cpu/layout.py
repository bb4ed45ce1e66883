"""Light kernels that move channels and pixels: layouts, slices, padding and flattening."""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.function import KernelFunction, activations
from aap_hw.compile.cpu.loops import channel_loop, light_kernel, pixel_loop, row_loop
from aap_hw.compile.families.shape import image_shape, slice_start
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.target import CpuTarget


def to_nhwc(address: Address, target: CpuTarget) -> KernelFunction:
    """The network's input, (N, C, H, W), as (N, H, W, C)."""
    key, channels = address.key, address.width_in
    shape = image_shape(key, channels)
    area = shape[1] * shape[2]

    def body(image: Any, output: Any) -> None:
        with pixel_loop(shape, target) as pixel:
            first = T.bind(pixel // area * (channels * area) + pixel % area)
            with T.serial(0, channels) as c:
                T.buffer_store(output, image[first + c * area], [pixel * channels + c])

    return light_kernel(activations((key.batch, channels, *shape[1:3])), shape, body)


def to_nchw(address: Address, target: CpuTarget) -> KernelFunction:
    """A feature map as the output of a network: (N, C, H, W)."""
    key, channels = address.key, address.width_in
    return _planar(key, channels, target, (key.batch, channels, *key.size))


def flatten(address: Address, target: CpuTarget) -> KernelFunction:
    """(N, H, W, C) to (N, 1, 1, C*H*W) in PyTorch's order: channel first."""
    key, channels, values = address.key, address.width_in, address.width_out
    return _planar(key, channels, target, (key.batch, 1, 1, values))


def _planar(key: KernelKey, channels: int, target: CpuTarget, output_shape: tuple[int, ...]) -> KernelFunction:
    area, planes = key.size[0] * key.size[1], key.batch * channels

    def body(image: Any, output: Any) -> None:
        with row_loop(planes, target, planes * area) as plane:
            first = T.bind(plane // channels * (area * channels) + plane % channels)
            with T.serial(0, area) as pixel:
                T.buffer_store(output, image[first + pixel * channels], [plane * area + pixel])

    return light_kernel(activations(image_shape(key, channels)), output_shape, body)


def subsample(address: Address, target: CpuTarget) -> KernelFunction:
    """Every so many rows and columns."""
    key, channels = address.key, address.width_in
    (height, width), (sh, sw) = key.size, key.pair("stride")
    shape = key.batch, -(-height // sh), -(-width // sw), channels

    def body(image: Any, output: Any) -> None:
        with pixel_loop(shape, target) as pixel:
            row, x = pixel // shape[2], pixel % shape[2]
            n, y = row // shape[1], row % shape[1]
            source = T.bind((n * height + y * sh) * width + x * sw)
            with channel_loop(channels, target) as c:
                T.buffer_store(output, image[source * channels + c], [pixel * channels + c])

    return light_kernel(activations(image_shape(key, channels)), shape, body)


def pad_channels(address: Address, target: CpuTarget) -> KernelFunction:
    """Channels of zeros before and behind those of the image."""
    key, width_in, width_out = address.key, address.width_in, address.width_out
    shape, before = image_shape(key, width_out), int(key.attribute("before", "0"))

    def body(image: Any, output: Any) -> None:
        def zeros(first: Any, count: int) -> None:
            if count:
                with channel_loop(count, target) as c:
                    T.buffer_store(output, T.float32(0), [first + c])

        with pixel_loop(shape, target) as pixel:
            zeros(pixel * width_out, before)
            with channel_loop(width_in, target) as c:
                T.buffer_store(output, image[pixel * width_in + c], [pixel * width_out + before + c])
            zeros(pixel * width_out + before + width_in, width_out - before - width_in)

    return light_kernel(activations(image_shape(key, width_in)), shape, body)


def channel_slice(address: Address, target: CpuTarget) -> KernelFunction:
    """The last ``width_out`` channels, or those behind some pieces as wide as this one."""
    key, width_in, width_out = address.key, address.width_in, address.width_out
    shape, first = image_shape(key, width_out), slice_start(key, width_in, width_out)

    def body(image: Any, output: Any) -> None:
        with pixel_loop(shape, target) as pixel, channel_loop(width_out, target) as c:
            T.buffer_store(output, image[pixel * width_in + first + c], [pixel * width_out + c])

    return light_kernel(activations(image_shape(key, width_in)), shape, body)


def channel_shuffle(address: Address, target: CpuTarget) -> KernelFunction:
    """Groups of channels dealt out in turn: channel j of group g becomes channel j * groups + g."""
    key, channels = address.key, address.width_in
    shape, groups = image_shape(key, channels), int(key.attribute("groups"))
    each = channels // groups

    def body(image: Any, output: Any) -> None:
        # LLVM merges the strided stores of one iteration into whole vectors; so it does below.
        with pixel_loop(shape, target) as pixel, T.serial(0, each) as c:
            for g in range(groups):
                T.buffer_store(output, image[pixel * channels + g * each + c], [pixel * channels + c * groups + g])

    return light_kernel(activations(shape), shape, body)


def interleave(address: Address, target: CpuTarget) -> KernelFunction:
    """Images of the same width, their channels dealt out in turn: concatenation and shuffle in one."""
    key, channels = address.key, address.width_in
    shape, parts = image_shape(key, channels), int(key.attribute("parts"))
    each = channels // parts

    def body(*buffers: Any) -> None:
        *images, output = buffers
        with pixel_loop(shape, target) as pixel, T.serial(0, each) as c:
            for i, image in enumerate(images):
                T.buffer_store(output, image[pixel * each + c], [pixel * channels + c * parts + i])

    return light_kernel(activations(*[image_shape(key, each)] * parts), shape, body)
