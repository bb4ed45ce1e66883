"""Light kernels as tensor expressions: each says what one value of its output is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx

from aap_hw.compile.code.expressions import ACTIVATIONS, exp, number
from aap_hw.compile.code.function import Argument, KernelFunction, activations, apply_epilogue, factors
from aap_hw.compile.code.windows import axes_of, largest_of, mean_of
from aap_hw.compile.families.shape import Shape, even_split, image_shape, slice_start
from aap_hw.compile.gpu.scheduling import gpu_kernel
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.target import GpuTarget


def _value_by_value(
    key: KernelKey,
    arguments: Sequence[Argument],
    shape: Shape,
    target: GpuTarget,
    value: Callable[..., Any],
    steps: Sequence[str] = (),
) -> KernelFunction:
    """``value(inputs, *indices)`` for each value of the output, and the epilogue."""

    def compute(*inputs: Any) -> Any:
        return te.compute(shape, lambda *at: apply_epilogue(value(inputs, *at), steps, None, None), name="output")

    has_factors = any(argument.role == "weight" for argument in arguments)
    return gpu_kernel(key, arguments, shape, compute, target, (lambda weight: weight) if has_factors else None)


def activation(address: Address, target: GpuTarget) -> KernelFunction:
    """An activation that no other kernel took along."""
    key, channels = address.key, address.width_in
    shape = image_shape(key, channels)
    return _value_by_value(key, activations(shape), shape, target, lambda t, *at: t[0](*at), [key.op])


def add(address: Address, target: GpuTarget) -> KernelFunction:
    """Sum of two tensors of the same shape."""
    key, channels = address.key, address.width_in
    shape = image_shape(key, channels)
    arguments = activations(shape, shape)
    return _value_by_value(key, arguments, shape, target, lambda t, *at: t[0](*at) + t[1](*at), key.epilogue)


def multiply(address: Address, target: GpuTarget) -> KernelFunction:
    """Product of two tensors of the same shape."""
    key, channels = address.key, address.width_in
    shape = image_shape(key, channels)
    arguments = activations(shape, shape)
    return _value_by_value(key, arguments, shape, target, lambda t, *at: t[0](*at) * t[1](*at), key.epilogue)


def scale_channels(address: Address, target: GpuTarget) -> KernelFunction:
    """An image times one factor a channel."""
    key, channels = address.key, address.width_in
    shape = image_shape(key, channels)
    arguments = activations(shape, (key.batch, 1, 1, channels))

    def scaled(tensors: Any, n: Any, y: Any, x: Any, c: Any) -> Any:
        return tensors[0](n, y, x, c) * tensors[1](n, 0, 0, c)

    return _value_by_value(key, arguments, shape, target, scaled, key.epilogue)


def affine(address: Address, target: GpuTarget) -> KernelFunction:
    """A factor and a summand a channel."""
    key, channels = address.key, address.width_in
    shape = image_shape(key, channels)

    def scaled(tensors: Any, *at: Any) -> Any:
        image, scale, shift = tensors
        return image(*at) * scale(at[-1]) + shift(at[-1])

    return _value_by_value(key, [*activations(shape), *factors(channels)], shape, target, scaled, key.epilogue)


def pool(address: Address, target: GpuTarget) -> KernelFunction:
    """Maximum or mean of windows."""
    key, channels = address.key, address.width_in
    height, width = axes_of(key)
    summary = largest_of(key) if key.op == "max_pool2d" else mean_of(key)

    def value(tensors: Any, n: Any, y: Any, x: Any, c: Any) -> Any:
        return summary(lambda row, column: tensors[0](n, row, column, c), y, x)

    shape = key.batch, height.windows, width.windows, channels
    return _value_by_value(key, activations(image_shape(key, channels)), shape, target, value)


def global_average_pool(address: Address, target: GpuTarget) -> KernelFunction:
    """The mean of each channel over a whole image."""
    key, channels = address.key, address.width_in
    shape = image_shape(key, channels)
    output = key.batch, 1, 1, channels

    def compute(image: Any) -> Any:
        rows, columns = te.reduce_axis((0, shape[1]), name="row"), te.reduce_axis((0, shape[2]), name="column")
        sums = te.compute(
            output, lambda n, y, x, c: te.sum(image(n, y + rows, x + columns, c), axis=[rows, columns]), name="sums"
        )
        return te.compute(output, lambda *at: sums(*at) * number(1 / (shape[1] * shape[2])), name="output")

    return gpu_kernel(key, activations(shape), output, compute, target)


def concat(address: Address, target: GpuTarget) -> KernelFunction:
    """Images side by side along the channels, whose widths are read off the arguments when the kernel runs."""
    key, channels = address.key, address.width_in
    parts = int(key.attribute("parts"))
    shape, has_affine = image_shape(key, channels), "affine" in key.epilogue
    arguments = activations(*[image_shape(key, width) for width in even_split(channels, parts)], any_width=True)

    def value(tensors: Any, n: Any, y: Any, x: Any, c: Any) -> Any:
        images, constants = tensors[:parts], tensors[parts:]
        starts = [sum((image.shape[-1] for image in images[:i]), tirx.const(0, "int32")) for i in range(parts)]
        result = images[-1](n, y, x, c - starts[-1])
        for image, start, end in reversed(list(zip(images, starts, starts[1:], strict=False))):
            result = tirx.if_then_else(c < end, image(n, y, x, c - start), result)
        return result * constants[0](c) + constants[1](c) if has_affine else result

    steps = [step for step in key.epilogue if step != "affine"]
    constants = factors(channels) if has_affine else []
    return _value_by_value(key, [*arguments, *constants], shape, target, value, steps)


def interleave(address: Address, target: GpuTarget) -> KernelFunction:
    """Images of the same width, their channels dealt out in turn."""
    key, channels = address.key, address.width_in
    parts = int(key.attribute("parts"))

    def value(tensors: Any, n: Any, y: Any, x: Any, c: Any) -> Any:
        result = tensors[-1](n, y, x, c // parts)
        for i in reversed(range(parts - 1)):
            result = tirx.if_then_else(c % parts == i, tensors[i](n, y, x, c // parts), result)
        return result

    arguments = activations(*[image_shape(key, channels // parts)] * parts)
    return _value_by_value(key, arguments, image_shape(key, channels), target, value)


def _moved(
    key: KernelKey, source: Shape, shape: Shape, target: GpuTarget, place: Callable[..., tuple[Any, ...]]
) -> KernelFunction:
    """Each value of the output is that at ``place(*indices)`` of the input."""
    return _value_by_value(key, activations(source), shape, target, lambda t, *at: t[0](*place(*at)))


def channel_shuffle(address: Address, target: GpuTarget) -> KernelFunction:
    """Channel j of group g becomes channel j * groups + g."""
    key, channels = address.key, address.width_in
    shape, groups = image_shape(key, channels), int(key.attribute("groups"))
    each = channels // groups
    return _moved(key, shape, shape, target, lambda n, y, x, c: (n, y, x, c % groups * each + c // groups))


def channel_slice(address: Address, target: GpuTarget) -> KernelFunction:
    """The last channels, or those behind some pieces as wide as this one."""
    key, width_in, width_out = address.key, address.width_in, address.width_out
    first = slice_start(key, width_in, width_out)
    source, shape = image_shape(key, width_in), image_shape(key, width_out)
    return _moved(key, source, shape, target, lambda n, y, x, c: (n, y, x, first + c))


def subsample(address: Address, target: GpuTarget) -> KernelFunction:
    """Every so many rows and columns."""
    key, channels = address.key, address.width_in
    (height, width), (sh, sw) = key.size, key.pair("stride")
    shape = key.batch, -(-height // sh), -(-width // sw), channels
    return _moved(key, image_shape(key, channels), shape, target, lambda n, y, x, c: (n, y * sh, x * sw, c))


def to_nhwc(address: Address, target: GpuTarget) -> KernelFunction:
    """The network's input, (N, C, H, W), as (N, H, W, C)."""
    key, channels = address.key, address.width_in
    source = key.batch, channels, *key.size
    return _moved(key, source, image_shape(key, channels), target, lambda n, y, x, c: (n, c, y, x))


def to_nchw(address: Address, target: GpuTarget) -> KernelFunction:
    """A feature map as the output of a network: (N, C, H, W)."""
    key, channels = address.key, address.width_in
    shape = key.batch, channels, *key.size
    return _moved(key, image_shape(key, channels), shape, target, lambda n, c, y, x: (n, y, x, c))


def flatten(address: Address, target: GpuTarget) -> KernelFunction:
    """(N, H, W, C) to (N, 1, 1, C*H*W) in PyTorch's order: channel first."""
    key, channels, values = address.key, address.width_in, address.width_out
    height, width = key.size

    def place(n: Any, _y: Any, _x: Any, i: Any) -> tuple[Any, ...]:
        return n, i // width % height, i % width, i // (height * width)

    return _moved(key, image_shape(key, channels), (key.batch, 1, 1, values), target, place)


def pad_channels(address: Address, target: GpuTarget) -> KernelFunction:
    """Channels of zeros before and behind those of the image."""
    key, width_in, width_out = address.key, address.width_in, address.width_out
    before = int(key.attribute("before", "0"))

    def value(tensors: Any, n: Any, y: Any, x: Any, c: Any) -> Any:
        is_inside = tirx.all(c >= before, c < before + width_in)
        return tirx.if_then_else(is_inside, tensors[0](n, y, x, c - before), number(0.0))

    return _value_by_value(key, activations(image_shape(key, width_in)), image_shape(key, width_out), target, value)


def softmax(address: Address, target: GpuTarget) -> KernelFunction:
    """e^(x - max) / sum over the channels of vectors, or of the pixels of an image."""
    key, channels = address.key, address.width_in
    shape = image_shape(key, channels)

    def compute(image: Any) -> Any:
        k, j = te.reduce_axis((0, channels), name="k"), te.reduce_axis((0, channels), name="j")
        largest = te.compute(shape[:-1], lambda *pixel: te.max(image(*pixel, k), axis=k), name="largest")
        powers = te.compute(shape, lambda *at: exp(image(*at) - largest(*at[:-1])), name="powers")
        total = te.compute(shape[:-1], lambda *pixel: te.sum(powers(*pixel, j), axis=j), name="total")
        return te.compute(shape, lambda *at: powers(*at) / total(*at[:-1]), name="output")

    return gpu_kernel(key, activations(shape), shape, compute, target)


LIGHT_KERNELS: dict[str, Callable[[Address, GpuTarget], KernelFunction]] = {
    "max_pool2d": pool,
    "avg_pool2d": pool,
    "global_avg_pool2d": global_average_pool,
    **dict.fromkeys(ACTIVATIONS, activation),
    "add": add,
    "mul": multiply,
    "scale_channels": scale_channels,
    "affine": affine,
    "concat": concat,
    "interleave": interleave,
    "channel_shuffle": channel_shuffle,
    "channel_slice": channel_slice,
    "subsample": subsample,
    "pad_channels": pad_channels,
    "flatten": flatten,
    "softmax": softmax,
    "to_nhwc": to_nhwc,
    "to_nchw": to_nchw,
}
