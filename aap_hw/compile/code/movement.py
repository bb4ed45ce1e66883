"""Kernels that move values: for each index of the output, the index of the input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import te, tirx

from aap_hw.compile.code.definition import DEFINITIONS, Definition
from aap_hw.compile.code.elementwise import scaled_and_shifted
from aap_hw.compile.code.expressions import number
from aap_hw.compile.code.function import activations, apply_epilogue, factors
from aap_hw.compile.families import Shape, family_of, image_shape
from aap_hw.compile.families.movement import PADDING_MODES, borders_of, even_split, slice_start, zeros_before
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey


def _moved(address: Address, source: Shape, place: Callable[..., tuple[Any, ...]]) -> Definition:
    """Each value of the output is that at ``place(*index)`` of the input."""
    shape = family_of(address.key).output(address)
    return Definition(tuple(activations(address.key, source)), shape, lambda inputs, *index: inputs[0](*place(*index)))


@DEFINITIONS.register("channel_shuffle")
def channel_shuffle(address: Address) -> Definition:
    """Groups of channels dealt out in turn: channel j of group g becomes channel j * groups + g."""
    groups = int(address.key.attribute("groups"))
    each = address.width_in // groups
    source = image_shape(address.key, address.width_in)
    return _moved(address, source, lambda n, y, x, c: (n, y, x, c % groups * each + c // groups))


@DEFINITIONS.register("channel_slice")
def channel_slice(address: Address) -> Definition:
    """The first or last channels, or those behind some pieces of the same width."""
    first = slice_start(address)
    return _moved(address, image_shape(address.key, address.width_in), lambda n, y, x, c: (n, y, x, first + c))


@DEFINITIONS.register("subsample")
def subsample(address: Address) -> Definition:
    """Every stride-th row and column."""
    down, across = address.key.along("stride")
    source = image_shape(address.key, address.width_in)
    return _moved(address, source, lambda n, y, x, c: (n, y * down, x * across, c))


@DEFINITIONS.register("to_nhwc")
def to_nhwc(address: Address) -> Definition:
    """The network's input, (N, C, H, W), as (N, H, W, C)."""
    source = address.key.batch, address.width_in, *address.key.image
    return _moved(address, source, lambda n, y, x, c: (n, c, y, x))


@DEFINITIONS.register("to_nchw")
def to_nchw(address: Address) -> Definition:
    """A feature map as the output of a network: (N, C, H, W)."""
    return _moved(address, image_shape(address.key, address.width_in), lambda n, c, y, x: (n, y, x, c))


@DEFINITIONS.register("flatten")
def flatten(address: Address) -> Definition:
    """(N, H, W, C) to (N, 1, 1, C*H*W) in PyTorch's order: channel first."""
    height, width = address.key.image

    def place(n: Any, _y: Any, _x: Any, i: Any) -> tuple[Any, ...]:
        return n, i // width % height, i % width, i // (height * width)

    return _moved(address, image_shape(address.key, address.width_in), place)


@DEFINITIONS.register("pad_channels")
def pad_channels(address: Address) -> Definition:
    """Channels of zeros before and behind those of the image."""
    key, before = address.key, zeros_before(address)

    def value(inputs: Any, n: Any, y: Any, x: Any, c: Any) -> Any:
        is_inside = tirx.all(c >= before, c < before + address.width_in)
        return tirx.if_then_else(is_inside, inputs[0](n, y, x, c - before), number(0.0, key.types.made))

    tensors = activations(key, image_shape(key, address.width_in))
    return Definition(tuple(tensors), image_shape(key, address.width_out), value)


def padded_place(mode: str, place: Any, size: int) -> Any:
    """Index of the pixel that padding puts at a place in or around ``size`` pixels; arbitrary if there is none."""
    last = size - 1
    match mode:
        case "reflect":
            from_last = last - te.max(place, 0 - place)
            return last - te.max(from_last, 0 - from_last)
        case "circular":
            return (place + size) % size
    return te.max(te.min(place, last), 0)


@DEFINITIONS.register("pad")
def pad(address: Address) -> Definition:
    """Padding with a constant, with mirrored pixels, with the outermost pixel, or with pixels of the opposite end."""
    key, (height, width) = address.key, address.key.image
    (top, _), (left, _) = borders_of(key)
    mode, value = key.attribute("mode", PADDING_MODES[0]), float(key.attribute("value", "0"))

    def padded(inputs: Any, n: Any, y: Any, x: Any, c: Any) -> Any:
        row, column = y - top, x - left
        pixel = inputs[0](n, padded_place(mode, row, height), padded_place(mode, column, width), c)
        if mode != "constant":
            return pixel
        is_inside = tirx.all(row >= 0, row < height, column >= 0, column < width)
        return tirx.if_then_else(is_inside, pixel, number(value, key.types.made))

    tensors = activations(key, image_shape(key, address.width_in))
    return Definition(tuple(tensors), family_of(key).output(address), padded)


@DEFINITIONS.register("interleave")
def interleave(address: Address) -> Definition:
    """Images of the same width, their channels dealt out in turn: concatenation and shuffle in one."""
    key, parts = address.key, int(address.key.attribute("parts"))

    def value(inputs: Any, n: Any, y: Any, x: Any, c: Any) -> Any:
        result = inputs[-1](n, y, x, c // parts)
        for i in reversed(range(parts - 1)):
            result = tirx.if_then_else(c % parts == i, inputs[i](n, y, x, c // parts), result)
        return result

    tensors = activations(key, *[image_shape(key, address.width_in // parts)] * parts)
    return Definition(tuple(tensors), image_shape(key, address.width_in), value)


def joined_value(key: KernelKey) -> Callable[..., Any]:
    """The output of a concatenation for a value, given its channel's factor and summand if there is a normalisation."""
    steps = [step for step in key.epilogue if step != "affine"]

    def joined(value: Any, *constants: Any) -> Any:
        return apply_epilogue(scaled_and_shifted(value, *constants) if constants else value, steps, None, None)

    return joined


@DEFINITIONS.register("concat")
def concat(address: Address) -> Definition:
    """Images side by side along the channels, whose widths are read off the arguments when the kernel runs.

    A table point has one input width, the sum, so the code must not depend on how the sum is split.
    """
    key, channels = address.key, address.width_in
    parts, joined = int(key.attribute("parts")), joined_value(key)

    def value(inputs: Any, n: Any, y: Any, x: Any, c: Any) -> Any:
        images, constants = inputs[:parts], inputs[parts:]
        starts = [sum((image.shape[-1] for image in images[:i]), tirx.const(0, "int32")) for i in range(parts)]
        result = images[-1](n, y, x, c - starts[-1])
        for image, start, end in reversed(list(zip(images, starts, starts[1:], strict=False))):
            result = tirx.if_then_else(c < end, image(n, y, x, c - start), result)
        return joined(result, *[constant(c) for constant in constants])

    tensors = activations(key, *[image_shape(key, width) for width in even_split(channels, parts)], any_width=True)
    constants = factors(key, channels) if "affine" in key.epilogue else []
    return Definition((*tensors, *constants), image_shape(key, channels), value)
