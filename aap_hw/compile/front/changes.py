"""Kernels that change the type of a value: what such a kernel calls the value, and the kernel."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from aap_hw.compile.families import family_of
from aap_hw.compile.front.network import Kernel, Port
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.graph import WidthExpr

# What the text of a key divides a width by.
_SHARE = re.compile(r"//(\d+)")


@dataclass(frozen=True)
class Image:
    """So many images of a size, and channels of each pixel."""

    batch: int
    size: tuple[int, ...]
    width: WidthExpr


def image_made_by(kernel: Kernel) -> Image | None:
    """What a kernel makes, whose values are any number of pixels for each channel of its last width, or of none."""
    unit = math.lcm(*map(int, _SHARE.findall(str(kernel.key))))  # a width of which all shares are whole
    one, two, other = (_made(kernel, unit * first, unit * last) for first, last in ((1, 1), (1, 2), (2, 1)))
    batch, values = kernel.key.batch, math.prod(one)
    if math.prod(other) != values and len(kernel.widths) > 1:
        return None
    if two == (*one[:-1], 2 * unit) and len(one) == 4 and one[-1] == unit:
        return Image(one[0], one[1:-1], kernel.width_out)
    if math.prod(two) == 2 * values and values % unit == 0:
        pixels, width = values // unit, kernel.width_out
    elif math.prod(two) == values:
        pixels, width = values, WidthExpr(1)
    else:
        return None
    batch = batch if pixels % batch == 0 else 1
    return Image(batch, (pixels // batch, 1), width)


def image_taken_by(port: Port) -> Image:
    """An input of a network, which lies as (N, C, H, W) if it is an image."""
    if port.is_image:
        return Image(port.shape[0], port.shape[2:], WidthExpr(port.shape[1]))
    return Image(port.shape[0], _rows(port.shape[1:-1]), WidthExpr(port.shape[-1]))


def change(name: str, read: str, image: Image, op: str, precision: str, *, is_planar: bool = False) -> Kernel:
    """The kernel that turns the value ``read`` into one of another type; an image may lie as (N, C, H, W) before."""
    key = KernelKey.make(op, image.size, image.batch, layout="nchw" if is_planar else "")
    return Kernel(name, key.at_precision(precision), (read,), (image.width, image.width))


def reading(kernel: Kernel, inputs: list[str]) -> Kernel:
    """The kernel with other inputs; what took the place of an input image lies as all other images do."""
    is_turned = kernel.inputs[:1] != tuple(inputs[:1]) and kernel.key.attribute("layout") == "nchw"
    return replace(kernel, key=kernel.key.having(layout="") if is_turned else kernel.key, inputs=tuple(inputs))


def _made(kernel: Kernel, first: int, last: int) -> tuple[int, ...]:
    """Shape of what a kernel makes if all its widths but the last are the same."""
    return family_of(kernel.key).output(Address(kernel.key, (*(first,) * (len(kernel.widths) - 1), last)))


def _rows(axes: tuple[int, ...]) -> tuple[int, ...]:
    """Height and width of rows (N, ..., C), which are an image of one column; a vector has neither."""
    return (math.prod(axes), 1) if axes else ()
