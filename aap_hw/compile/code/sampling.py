"""Values read at computed places, as expressions of these places."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

from tvm import te, tirx

from aap_hw.compile.code.definition import DEFINITIONS, Definition
from aap_hw.compile.code.expressions import number
from aap_hw.compile.code.function import Argument, Role, activations
from aap_hw.compile.families import family_of, image_shape
from aap_hw.compile.families.sampling import Gather
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey


def row_number(value: Any, rows: int) -> Any:
    """The row of an index, which counts from the end if negative, and is cut to the rows that exist."""
    row = tirx.Cast("int32", value)
    row = tirx.if_then_else(row < 0, row + rows, row)
    return te.max(te.min(row, rows - 1), 0)


def gather_arguments(address: Address) -> tuple[Argument, ...]:
    """A table and the indices of rows."""
    gather, types = Gather.of(address), address.key.types
    roles: list[Role] = ["constant" if each.is_constant else "residual" for each in (gather.table, gather.index)]
    if "residual" in roles:
        roles[roles.index("residual")] = "activation"
    shapes = gather.table.shape, gather.index.shape
    return tuple(Argument(role, shape, type=types.read) for role, shape in zip(roles, shapes, strict=True))


@DEFINITIONS.register("gather")
def gather(address: Address) -> Definition:
    """Rows of a table by index."""
    rows = Gather.of(address).table.shape[1]

    def value(inputs: Any, n: Any, k: Any, i: Any) -> Any:
        table, index = inputs
        return table(n, row_number(index(k), rows), i)

    return Definition(gather_arguments(address), Gather.of(address).shape, value)


@dataclass(frozen=True)
class Corner:
    """A pixel that a point of the grid reads, and its weight, which is 0 outside the image."""

    row: Any
    column: Any
    weight: Any


def corners_of(key: KernelKey, x: Any, y: Any, bind: Callable[[Any], Any] = lambda value: value) -> list[Corner]:
    """The pixels that a point reads, given its coordinates, which are -1 and 1 at the edges of the image."""
    is_cut, has_corners = key.attribute("padding") == "border", bool(key.attribute("corners"))
    is_cubic = key.attribute("how") == "bicubic"

    def pixels(at: Any, size: int) -> Any:
        half = (at + number(1.0)) * number((size - 1) / 2) if has_corners else (at + number(1.0)) * number(size / 2)
        place = half if has_corners else half - number(0.5)
        # Coordinates too large for int32 are cut; all pixels that far outside are the same.
        low, high = (0.0, size - 1.0) if is_cut else (-2.0, size + 1.0)
        low, high = (-3.0, size + 2.0) if is_cubic else (low, high)  # of which the pixels are cut, not the point
        return bind(te.max(te.min(place, number(high)), number(low)))

    def along(at: Any, size: int) -> list[tuple[Any, Any]]:
        if key.attribute("how") == "nearest":
            found = [(bind(tirx.nearbyint(at)), number(1.0))]
        elif is_cubic:
            low = bind(tirx.floor(at))
            weights = map(bind, _cubic(bind(at - low)))
            found = [(low + number(step), weight) for step, weight in zip((-1.0, 0.0, 1.0, 2.0), weights, strict=True)]
        else:
            low = bind(tirx.floor(at))
            share = bind(at - low)
            found = [(low, number(1.0) - share), (low + number(1.0), share)]
        taken = []
        for place, weight in found:
            whole = bind(tirx.Cast("int32", place))
            is_inside = tirx.all(whole >= 0, whole < size)
            weight = weight if is_cubic and is_cut else tirx.if_then_else(is_inside, weight, number(0.0))
            taken.append((te.max(te.min(whole, size - 1), 0), weight))
        return taken

    height, width = key.image
    rows, columns = along(pixels(y, height), height), along(pixels(x, width), width)
    return [Corner(row, column, down * across) for row, down in rows for column, across in columns]


def _cubic(share: Any) -> list[Any]:
    """Weights of four neighbours of a point between the second and the third (Keys, 1981, with a = -0.75)."""
    a = -0.75

    def near(distance: Any) -> Any:
        return ((number(a + 2) * distance - number(a + 3)) * distance) * distance + number(1.0)

    def far(distance: Any) -> Any:
        return ((number(a) * distance - number(5 * a)) * distance + number(8 * a)) * distance - number(4 * a)

    rest = number(1.0) - share
    return [far(share + number(1.0)), near(share), near(rest), far(rest + number(1.0))]


@DEFINITIONS.register("grid_sample")
def grid_sample(address: Address) -> Definition:
    """An image (N, H, W, C) at the points (N, rows, columns, 2) of a grid, x first."""
    key = address.key
    shape = family_of(key).output(address)

    def value(inputs: Any, n: Any, y: Any, x: Any, c: Any) -> Any:
        image, grid = inputs
        corners = corners_of(key, grid(n, y, x, 0), grid(n, y, x, 1))
        return reduce(add, [image(n, each.row, each.column, c) * each.weight for each in corners])

    tensors = activations(key, image_shape(key, address.width_in), (*shape[:3], 2))
    return Definition(tuple(tensors), shape, value)
