"""The sizes of a convolution, read from its key, and the arithmetic that follows from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from aap_hw.compile.families import slow
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey

WITH_WEIGHTS = ("conv2d", "depthwise_conv2d", "linear")
WITH_WINDOWS = ("max_pool2d", "avg_pool2d")


Shape = tuple[int, ...]


@dataclass(frozen=True)
class ConvolutionShape:
    """The sizes of a convolution that do not depend on its widths.

    ``groups`` divides both widths; a depthwise convolution, which has one channel a group, counts as 1 here.
    """

    batch: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    planar: bool
    groups: int = 1

    @classmethod
    def of(cls, key: KernelKey) -> ConvolutionShape:
        """Read the sizes off a key; a linear layer is a convolution of one pixel."""
        height, width = key.size or (1, 1)
        return cls(
            key.batch,
            (height, width),
            key.pair("kernel", 1),
            key.pair("stride", 1),
            key.pair("padding", 0),
            key.pair("dilation", 1),
            key.attribute("layout") == "nchw",
            int(key.attribute("groups", "1")),
        )

    @property
    def out_height(self) -> int:
        """Height of the output."""
        return _extent(self, 0)

    @property
    def out_width(self) -> int:
        """Width of the output."""
        return _extent(self, 1)

    def image(self, channels: int) -> tuple[int, ...]:
        """Shape of the input: NCHW for a network's own input, else NHWC."""
        n, (h, w) = self.batch, self.size
        return (n, channels, h, w) if self.planar else (n, h, w, channels)


def _extent(shape: ConvolutionShape, axis: int) -> int:
    reach = shape.dilation[axis] * (shape.kernel[axis] - 1) + 1
    return (shape.size[axis] + 2 * shape.padding[axis] - reach) // shape.stride[axis] + 1


def multiply_accumulates(address: Address) -> int:
    """Multiply-accumulate operations of one call of a convolution, linear layer or product; 0 for other kernels.

    N * H_out * W_out for each weight of a kernel that has a schedule.
    """
    key = address.key
    if slow.is_slow(key):
        return slow.multiply_accumulates(address) if all(address.widths) else 0
    shape = ConvolutionShape.of(key) if key.op in WITH_WEIGHTS else None
    pixels = shape.batch * shape.out_height * shape.out_width if shape else 0
    return pixels * weight_elements(address)


def weight_elements(address: Address) -> int:
    """Weights of a convolution or linear layer, its bias not among them; 0 for other kernels.

    KH * KW * C_in / groups * C_out, without C_in where each channel has its own filter.
    """
    return math.prod(weight_shape(address)) if address.key.op in WITH_WEIGHTS else 0


def weight_shape(address: Address) -> tuple[int, ...]:
    """Shape of the weight of a convolution or linear layer, (C_out, C_in / groups, KH, KW)."""
    shape = ConvolutionShape.of(address.key)
    of_each = 1 if address.key.op == "depthwise_conv2d" else address.width_in // shape.groups
    return address.width_out, of_each, *shape.kernel


def image_shape(key: KernelKey, channels: int) -> Shape:
    """(N, H, W, C) of a kernel's input; a vector is an image of one pixel."""
    height, width = key.size or (1, 1)
    return key.batch, height, width, channels


def slice_start(key: KernelKey, width_in: int, width_out: int) -> int:
    """Where a slice of channels begins: at the first, so that it ends with the last, or behind equal pieces."""
    match key.attribute("side"):
        case "first":
            return 0
        case "last":
            return width_in - width_out
    return int(key.attribute("side")) * width_out


def even_split(channels: int, parts: int) -> list[int]:
    """As equal widths as whole numbers allow: the split that a table measures."""
    return [channels * (i + 1) // parts - channels * i // parts for i in range(parts)]


def pool_windows(size: int, kernel: int, stride: int, padding: int, ceil: bool) -> int:
    """Windows along one axis; with ``ceil``, one that begins in the image may end outside (as in PyTorch)."""
    room = size + 2 * padding - kernel
    count = (-(-room // stride) if ceil else room // stride) + 1
    return count - (ceil and (count - 1) * stride >= size + padding)


def output_pixels(key: KernelKey) -> int:
    """Pixels of what a kernel makes, over the whole batch; 1 for each vector."""
    if slow.is_slow(key):
        return slow.output_pixels(key)
    if key.op in WITH_WEIGHTS:
        shape = ConvolutionShape.of(key)
        return shape.batch * shape.out_height * shape.out_width
    if key.op in ("global_avg_pool2d", "flatten"):
        return key.batch
    height, width = key.size or (1, 1)
    if key.op in WITH_WINDOWS:
        kernel, stride, padding = key.pair("kernel"), key.pair("stride"), key.pair("padding")
        ceil = bool(key.attribute("ceil"))
        height, width = (pool_windows(key.size[i], kernel[i], stride[i], padding[i], ceil) for i in range(2))
    elif key.op == "subsample":
        down, across = key.pair("stride")
        height, width = -(-height // down), -(-width // across)
    return key.batch * height * width
