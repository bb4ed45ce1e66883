"""Values along an axis in their order, picked by their numbers, and what they add up to: of (outer, reduced, inner).

An ``argsort`` makes the places of values in ascending order or, with ``order=descending``, in the other; equal ones
keep theirs. With a ``count`` it makes those of the first so many. A ``take_along`` picks ``taken`` values of each row
by numbers of as many axes, or by one number for all of the inner values where the key says ``each=row``. A ``cumsum``
makes the sum of each value and all before it. The three lengths are in ``shape``, with ``i`` and ``o`` for the widths.
"""

from __future__ import annotations

from aap_hw.compile.families.family import FAMILIES, Family, Shape, nothing
from aap_hw.compile.families.reductions import Reduction
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey


def is_descending(key: KernelKey) -> bool:
    """Whether the largest value comes first."""
    return key.attribute("order") == "descending"


def is_by_row(key: KernelKey) -> bool:
    """Whether one number picks all of the inner values at a place."""
    return key.attribute("each") == "row"


def ordered_shape(address: Address) -> Shape:
    """Shape of the places that an ``argsort`` makes."""
    shape = Reduction.of(address)
    return shape.outer, int(address.key.attribute("count") or shape.reduced), shape.inner


def taken_shape(address: Address) -> Shape:
    """Shape of what a ``take_along`` makes."""
    shape = Reduction.of(address)
    return shape.outer, int(address.key.attribute("taken")), shape.inner


FAMILIES.register("argsort")(Family(ordered_shape, nothing, nothing))
FAMILIES.register("take_along")(Family(taken_shape, nothing, nothing))
FAMILIES.register("cumsum")(Family(lambda address: Reduction.of(address).source, nothing, nothing))
