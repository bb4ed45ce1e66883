"""Resizing to any size: each pixel is a weighted sum, or the largest, of a few pixels along each axis.

Interpolation and adaptive pooling differ only in which pixels these are and in their weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from aap_hw.compile.families.family import FAMILIES, Family, Shape, nothing
from aap_hw.compile.families.spelt.resizing import TAPS
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.errors import UserError


@dataclass(frozen=True, eq=False)
class Taps:
    """Taps along an axis: for each term of the sums, the input pixel of every output pixel and its weight."""

    places: np.ndarray
    weights: np.ndarray

    @property
    def terms(self) -> int:
        """How many input pixels an output pixel reads."""
        return len(self.places)

    @property
    def is_picked(self) -> bool:
        """Whether every output pixel is a copy of one input pixel."""
        return self.terms == 1 and bool((self.weights == 1).all())


@lru_cache(maxsize=1024)
def taps_of(how: str, size: int, made: int, factor: float | None) -> Taps:
    """The taps that resize an axis from ``size`` to ``made`` pixels."""
    taps = TAPS[how](size, made, factor)
    places, weights = ([tap[i] for tap in taps] for i in (0, 1))
    return Taps(np.array(places, "int32"), np.array(weights, "float32"))


def axes_of(key: KernelKey) -> tuple[Taps, Taps]:
    """The taps down and across of a key.

    Raises
    ------
    UserError : it does not say how to resize in a way that this version knows.
    """
    how, factors = key.attribute("how"), key.attribute("factors")
    try:
        sizes = list(zip(key.image, key.along("to"), strict=True))
        scales: list[float | None] = [float(factor) for factor in factors.split(",")] if factors else [None, None]
        if how not in TAPS or len(scales) != 2 or 0 in key.along("to"):
            raise ValueError(how)
        rows, columns = (taps_of(how, *size, scale) for size, scale in zip(sizes, scales, strict=True))
        return rows, columns
    except ValueError as problem:
        raise UserError(f"'{key}' is not a kernel of this version; profile the device again") from problem


def _resized(address: Address) -> Shape:
    axes_of(address.key)
    return address.key.batch, *address.key.along("to"), address.width_out


FAMILIES.register("resize")(Family(_resized, nothing, nothing))
