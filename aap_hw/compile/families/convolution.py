"""Convolutions of images, dense, grouped and depthwise, and linear layers, which are convolutions of one pixel."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from aap_hw.compile.families.family import FAMILIES, Family, Shape
from aap_hw.compile.families.windows import Axis, axes_of
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey

# Attributes of a 1x1 convolution. A linear layer of rows (N, ..., C) is one, each row being a pixel.
POINTWISE: Mapping[str, Any] = {"kernel": (1, 1), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}


@dataclass(frozen=True)
class ConvolutionShape:
    """The sizes of a convolution that do not depend on its widths.

    ``groups`` divides both widths and is 1 for a depthwise convolution.
    """

    batch: int
    rows: Axis
    columns: Axis
    planar: bool
    groups: int = 1

    @classmethod
    @functools.cache
    def of(cls, key: KernelKey) -> ConvolutionShape:
        """Read the sizes off a key; plans ask for those of the same few keys at each of their widths."""
        rows, columns = axes_of(key)
        groups = int(key.attribute("groups", "1"))
        return cls(key.batch, rows, columns, key.attribute("layout") == "nchw", groups)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input."""
        return self.rows.size, self.columns.size

    @property
    def kernel(self) -> tuple[int, int]:
        """Height and width of a window."""
        return self.rows.kernel, self.columns.kernel

    @property
    def stride(self) -> tuple[int, int]:
        """From one window to the next, down and across."""
        return self.rows.stride, self.columns.stride

    @property
    def padding(self) -> tuple[int, int]:
        """Zeros above and to the left; there may be others below and to the right."""
        return self.rows.padding, self.columns.padding

    @property
    def dilation(self) -> tuple[int, int]:
        """From one element of a window to the next, down and across."""
        return self.rows.dilation, self.columns.dilation

    @property
    def out_height(self) -> int:
        """Height of the output."""
        return self.rows.windows

    @property
    def out_width(self) -> int:
        """Width of the output."""
        return self.columns.windows

    @property
    def is_pointwise(self) -> bool:
        """Whether an output pixel is made of the one at its place and of nothing else, as by a 1x1 kernel."""
        return (self.kernel, self.stride, self.padding) == ((1, 1), (1, 1), (0, 0))

    @property
    def pixel_rows(self) -> tuple[int, int]:
        """Rows of output pixels over the whole batch, and pixels of each; pointwise all are alike, as one long row."""
        rows, row = self.batch * self.out_height, self.out_width
        return (1, rows * row) if self.is_pointwise else (rows, row)

    def image(self, channels: int) -> Shape:
        """Shape of the input: NCHW for a network's own input, else NHWC."""
        n, (h, w) = self.batch, self.size
        return (n, channels, h, w) if self.planar else (n, h, w, channels)

    def output(self, channels: int) -> Shape:
        """Shape of the output."""
        return self.batch, self.out_height, self.out_width, channels


def _output(address: Address) -> Shape:
    return ConvolutionShape.of(address.key).output(address.width_out)


def _weight(address: Address) -> Shape:
    shape = ConvolutionShape.of(address.key)
    return address.width_out, address.width_in // shape.groups, *shape.kernel


def _weight_of_each(address: Address) -> Shape:
    return address.width_out, 1, *ConvolutionShape.of(address.key).kernel


def _family(weight: Callable[[Address], Shape]) -> Family:
    """The family of kernels that use each weight once for each pixel of the output, and add a bias."""
    return Family(
        output=_output,
        multiply_accumulates=lambda address: math.prod(_output(address)[:-1]) * math.prod(weight(address)),
        constants=lambda address: math.prod(weight(address)) + address.width_out,
        weight=weight,
        is_pitched=True,
    )


FAMILIES.register("conv2d")(_family(_weight))
FAMILIES.register("depthwise_conv2d")(_family(_weight_of_each))
FAMILIES.register("linear")(replace(_family(_weight), is_pitched=False))
