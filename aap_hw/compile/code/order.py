"""Values in their order and picked by their numbers, whatever device they are for."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from aap_hw.compile.code.definition import DEFINITIONS, Definition
from aap_hw.compile.code.function import activations
from aap_hw.compile.code.sampling import row_number
from aap_hw.compile.families.order import is_by_row, is_descending, taken_shape
from aap_hw.compile.families.reductions import Reduction
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey

# Values whose sums are summed up apart from each other, so that float32 stays right however many there are.
BLOCK = 128


def comes_before(key: KernelKey, one: Any, other: Any) -> Any:
    """Whether a value has to stand before another; what is not a number counts as the largest."""
    large, small = (one, other) if is_descending(key) else (other, one)
    return tirx.any(large > small, tirx.all(tirx.isnan(large), tirx.Not(tirx.isnan(small))))


@DEFINITIONS.register("take_along")
def take_along(address: Address) -> Definition:
    """Values of each row by their numbers."""
    key, source, shape = address.key, Reduction.of(address).source, taken_shape(address)

    def value(inputs: Any, n: Any, k: Any, i: Any) -> Any:
        table, index = inputs
        return table(n, row_number(index(n, k, 0 if is_by_row(key) else i), source[1]), i)

    numbers = (*shape[:2], 1 if is_by_row(key) else shape[2])
    return Definition(tuple(activations(key, source, numbers)), shape, value)
