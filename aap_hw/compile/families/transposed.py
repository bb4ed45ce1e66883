"""Transposed convolutions of images and volumes, split into one ordinary convolution for each phase of the output.

Along one axis let ``r`` be the remainder of ``o + padding`` divided by the stride. The output at ``o`` is the sum over
``m`` of tap ``r + stride * m`` times the input at ``(o + padding) // stride - m``. All outputs with the same remainder
are a phase, and a phase is a convolution of stride 1 with every stride-th tap.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from aap_hw.compile.families.family import FAMILIES, Family, Shape
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.errors import UserError


@dataclass(frozen=True)
class TransposedAxis:
    """A transposed convolution along one axis.

    Attributes
    ----------
    size : of the input along this axis.
    kernel, stride, padding, beyond : as PyTorch has them; ``beyond`` is its ``output_padding``.
    """

    size: int
    kernel: int
    stride: int
    padding: int
    beyond: int

    @property
    def made(self) -> int:
        """Size of the output."""
        return (self.size - 1) * self.stride - 2 * self.padding + self.kernel + self.beyond

    @property
    def phases(self) -> range:
        """Index of the first output of each phase."""
        return range(min(self.stride, self.made))

    def outputs(self, phase: int) -> int:
        """How many outputs a phase has. Here and below, ``phase`` may be an expression of TVM."""
        return (self.made - phase + self.stride - 1) // self.stride

    def remainder(self, phase: int) -> int:
        """Index of the first tap of a phase."""
        return (phase + self.padding) % self.stride

    def taps(self, phase: int) -> int:
        """How many taps a phase has."""
        return (self.kernel + self.stride - 1 - self.remainder(phase)) // self.stride

    def first(self, phase: int) -> int:
        """Index of the first input that the first output of a phase reads; the phase's last tap multiplies it."""
        return (phase + self.padding) // self.stride - self.taps(phase) + 1

    @property
    def border(self) -> tuple[int, int]:
        """Zeros that the input needs before and behind it."""
        reading = [phase for phase in self.phases if self.taps(phase)]
        ends = [self.first(phase) + self.taps(phase) + self.outputs(phase) - 1 for phase in reading]
        return max([0, *(-self.first(phase) for phase in reading)]), max([0, *(end - self.size for end in ends)])


@dataclass(frozen=True)
class TransposedShape:
    """The sizes of a transposed convolution that do not depend on its widths.

    ``groups`` divides both widths and is 1 for a depthwise kernel. Only volumes have ``planes``.
    """

    batch: int
    rows: TransposedAxis
    columns: TransposedAxis
    groups: int = 1
    planes: TransposedAxis | None = None

    @classmethod
    def of(cls, key: KernelKey) -> TransposedShape:
        """Read the sizes off a key.

        Raises
        ------
        UserError : it has another number of axes than its operator.
        """
        count = 3 if key.op == "conv_transpose3d" else 2
        if len(key.size) != count:
            raise UserError(f"the kernel {key} is not known to this version: it has another number of axes")
        kernel, stride = (key.numbers(name, count, 1) for name in ("kernel", "stride"))
        padding, beyond = (key.numbers(name, count) for name in ("padding", "output_padding"))
        numbers = zip(key.size, kernel, stride, padding, beyond, strict=True)
        *planes, rows, columns = (TransposedAxis(*of_axis) for of_axis in numbers)
        return cls(key.batch, rows, columns, int(key.attribute("groups", "1")), *planes)

    @property
    def axes(self) -> tuple[TransposedAxis, ...]:
        """Outermost first."""
        return (self.rows, self.columns) if self.planes is None else (self.planes, self.rows, self.columns)

    @property
    def kernel(self) -> tuple[int, ...]:
        """Extents of a window."""
        return tuple(axis.kernel for axis in self.axes)

    def input(self, channels: int) -> Shape:
        """Shape of the input."""
        return self.batch, *(axis.size for axis in self.axes), channels

    def output(self, channels: int) -> Shape:
        """Shape of the output."""
        return self.batch, *(axis.made for axis in self.axes), channels


def _weight(address: Address) -> Shape:
    shape = TransposedShape.of(address.key)
    return address.width_in, address.width_out // shape.groups, *shape.kernel


def _weight_of_each(address: Address) -> Shape:
    return address.width_in, 1, *TransposedShape.of(address.key).kernel


def _family(weight: Callable[[Address], Shape]) -> Family:
    """The family of kernels that use each weight once for each pixel of the input, and add a bias."""
    return Family(
        output=lambda address: TransposedShape.of(address.key).output(address.width_out),
        multiply_accumulates=lambda address: (
            math.prod(TransposedShape.of(address.key).input(1)) * math.prod(weight(address))
        ),
        constants=lambda address: math.prod(weight(address)) + address.width_out,
        weight=weight,
        reads_first=True,
    )


FAMILIES.register("conv_transpose2d", "conv_transpose3d")(_family(_weight))
# With one channel a group, the weight is (C, 1, KH, KW) in either order.
FAMILIES.register("depthwise_conv_transpose2d")(replace(_family(_weight_of_each), reads_first=False))
