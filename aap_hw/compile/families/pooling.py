"""Pooling: one value for each window of an image, or for all of it.

A ``sum_pool2d`` divides the sum of a window by the ``divisor`` in its key, whatever the window holds.
"""

from __future__ import annotations

from aap_hw.compile.families.family import FAMILIES, Family, Shape, nothing
from aap_hw.compile.families.windows import axes_of
from aap_hw.compile.keys.address import Address


def _windows(address: Address) -> Shape:
    return address.key.batch, *(axis.windows for axis in axes_of(address.key)), address.width_out


def _whole(address: Address) -> Shape:
    return address.key.batch, 1, 1, address.width_out


FAMILIES.register("max_pool2d", "avg_pool2d")(Family(_windows, nothing, nothing, keeps_range=True))
FAMILIES.register("sum_pool2d")(Family(_windows, nothing, nothing))
FAMILIES.register("global_avg_pool2d")(Family(_whole, nothing, nothing, keeps_range=True))
