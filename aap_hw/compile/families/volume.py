"""Convolutions of volumes (D, H, W), such as clips: dense, grouped and depthwise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from aap_hw.compile.families.family import FAMILIES, Family, Shape
from aap_hw.compile.families.windows import Axis, axes_of_volume
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey


@dataclass(frozen=True)
class VolumeShape:
    """The sizes of a convolution of volumes that do not depend on its widths; ``groups`` divides both of these."""

    batch: int
    planes: Axis
    rows: Axis
    columns: Axis
    groups: int = 1

    @classmethod
    def of(cls, key: KernelKey) -> VolumeShape:
        """Read the sizes off a key."""
        return cls(key.batch, *axes_of_volume(key), int(key.attribute("groups", "1")))

    @property
    def axes(self) -> tuple[Axis, Axis, Axis]:
        """Outermost first."""
        return self.planes, self.rows, self.columns

    @property
    def kernel(self) -> tuple[int, int, int]:
        """Depth, height and width of a window."""
        return self.planes.kernel, self.rows.kernel, self.columns.kernel

    def volume(self, channels: int) -> Shape:
        """Shape of the input, (N, D, H, W, C)."""
        return self.batch, *(axis.size for axis in self.axes), channels

    def output(self, channels: int) -> Shape:
        """Shape of the output."""
        return self.batch, *(axis.windows for axis in self.axes), channels


def _output(address: Address) -> Shape:
    return VolumeShape.of(address.key).output(address.width_out)


def _weight(address: Address) -> Shape:
    shape = VolumeShape.of(address.key)
    return address.width_out, address.width_in // shape.groups, *shape.kernel


def _weight_of_each(address: Address) -> Shape:
    return address.width_out, 1, *VolumeShape.of(address.key).kernel


def _family(weight: Callable[[Address], Shape]) -> Family:
    return Family(
        output=_output,
        multiply_accumulates=lambda address: math.prod(_output(address)[:-1]) * math.prod(weight(address)),
        constants=lambda address: math.prod(weight(address)) + address.width_out,
        weight=weight,
    )


FAMILIES.register("conv3d")(_family(_weight))
FAMILIES.register("depthwise_conv3d")(_family(_weight_of_each))
