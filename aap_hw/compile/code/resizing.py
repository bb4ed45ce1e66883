"""Resizing: weighted sums, or the largest, of the pixels that tables name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import Any

from tvm import te

from aap_hw.compile.code.definition import DEFINITIONS, Definition
from aap_hw.compile.code.function import Argument, activations
from aap_hw.compile.families import family_of, image_shape
from aap_hw.compile.families.resizing import Taps, axes_of
from aap_hw.compile.keys.address import Address


def combined(how: str, weights: Sequence[Any], values: Sequence[Any]) -> Any:
    """The output of a way of resizing for some values and their weights, if they have any."""
    if how == "largest":
        return reduce(te.max, values)
    return reduce(add, [weight * value for weight, value in zip(weights, values, strict=True)] if weights else values)


@DEFINITIONS.register("resize")
def resize(address: Address) -> Definition:
    """Resize along the rows first, then down the columns. Tables of places and weights are among the arguments."""
    key = address.key
    how, axes = key.attribute("how"), axes_of(key)
    rows, columns = axes
    tables = [table for taps in axes for table in (taps.places, taps.weights)]

    def along(taps: Taps, places: Any, weights: Any, at: Any, value: Callable[[Any], Any]) -> Any:
        found = [value(places(term, at)) for term in range(taps.terms)]
        return found[0] if taps.is_picked else combined(how, [weights(term, at) for term in range(taps.terms)], found)

    def value(inputs: Any, n: Any, y: Any, x: Any, c: Any) -> Any:
        image, row_places, row_weights, column_places, column_weights = inputs
        return along(
            rows,
            row_places,
            row_weights,
            y,
            lambda row: along(columns, column_places, column_weights, x, lambda column: image(n, row, column, c)),
        )

    arguments = (
        *activations(key, image_shape(key, address.width_in)),
        *(Argument("literal", table.shape, type=str(table.dtype)) for table in tables),
    )
    return Definition(arguments, family_of(key).output(address), value, tuple(tables))
