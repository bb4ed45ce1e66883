"""Lengths that depend on the widths of channel groups: exact arithmetic, and their text in a key.

In the text of a key ``i`` and ``o`` stand for the width that the kernel reads and the one that it makes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from math import lcm

import numpy as np

from aap_hw.graph import WidthExpr


class TooManyWidths(Exception):  # noqa: N818 - a question that is answered by fixing them
    """A kernel depends on more widths than the two that a key has letters for."""

    def __init__(self, *lengths: WidthExpr) -> None:
        self.groups = {name for length in lengths for name, _ in length.terms}


class NoLength(Exception):  # noqa: N818 - an answer of arithmetic
    """A product or quotient of lengths is not a linear function of widths."""


def total(*lengths: WidthExpr) -> WidthExpr:
    """The sum of lengths."""
    terms: dict[str, int] = {}
    for length in lengths:
        for name, times in length.terms:
            terms[name] = terms.get(name, 0) + times
    constant = sum(length.constant for length in lengths)
    return WidthExpr(constant, tuple(sorted((name, times) for name, times in terms.items() if times)))


def product(one: WidthExpr, other: WidthExpr) -> WidthExpr:
    """The product of two lengths.

    Raises
    ------
    NoLength : both depend on widths.
    """
    if one.terms and other.terms:
        raise NoLength
    times, length = (one.constant, other) if not one.terms else (other.constant, one)
    return total(WidthExpr(times * length.constant, tuple((name, times * each) for name, each in length.terms)))


def quotient(one: WidthExpr, other: WidthExpr) -> WidthExpr:
    """The factor by which another length is multiplied to make this one.

    Raises
    ------
    NoLength : there is none that holds for all widths.
    """
    divisor = other.constant if not other.terms else 1
    if other.terms:
        ratios = {Fraction(times, dict(other.terms).get(name, 0) or 1) for name, times in one.terms} or {Fraction(0)}
        ratio = WidthExpr(int(min(ratios)))
        if product(ratio, other) != total(one) or not ratio.constant:
            raise NoLength
        return ratio
    if not divisor or one.constant % divisor or any(times % divisor for _, times in one.terms):
        raise NoLength
    return total(WidthExpr(one.constant // divisor, tuple((name, times // divisor) for name, times in one.terms)))


def settled(length: WidthExpr, fixed: Mapping[str, int]) -> WidthExpr:
    """A length, given the widths of the groups that are fixed."""
    free = tuple((name, times) for name, times in length.terms if name not in fixed)
    constant = sum(times * fixed[name] for name, times in length.terms if name in fixed)
    return total(WidthExpr(length.constant + constant, free))


def length_text(length: WidthExpr, read: WidthExpr, made: WidthExpr, divisor: int = 1) -> str:
    """A length, or a share of it, as a number or with the letters of the two widths.

    Raises
    ------
    TooManyWidths : it depends on more.
    """
    if not length.terms:
        return str(length.constant // divisor)
    for letters in ("o", "i", "io"):
        widths = [made if letter == "o" else read for letter in letters]
        if (factors := combination(length, widths)) is not None:
            return _sum_of(dict(zip([*letters, ""], factors, strict=True)), divisor)
    raise TooManyWidths(length, made, read)


def combination(length: WidthExpr, widths: list[WidthExpr]) -> list[Fraction] | None:
    """Factors for some widths, and a constant, with which they add up to a length for any widths of the groups."""
    names = sorted({name for each in (length, *widths) for name, _ in each.terms})
    columns = [[dict(width.terms).get(name, 0) for name in names] for width in widths]
    wanted = [dict(length.terms).get(name, 0) for name in names]
    solution = np.linalg.lstsq(np.array(columns, float).T, np.array(wanted, float), rcond=None)[0]
    factors = [Fraction(float(factor)).limit_denominator(1000) for factor in solution]
    if [sum(f * column[k] for f, column in zip(factors, columns, strict=True)) for k in range(len(names))] != wanted:
        return None
    constants = (factor * width.constant for factor, width in zip(factors, widths, strict=True))
    return [*factors, length.constant - sum(constants, Fraction())]


def _sum_of(factors: dict[str, Fraction], divisor: int) -> str:
    """Text such as ``2*i-o+3`` or ``(i+1)//4``."""
    shares = {letter: factor / divisor for letter, factor in factors.items()}
    common = lcm(*(share.denominator for share in shares.values()))

    def parts() -> Iterator[str]:
        for letter, share in shares.items():
            if times := int(share * common):
                yield (
                    f"{times:+d}*{letter}"
                    if letter and abs(times) > 1
                    else f"{times:+d}"[:1] + (letter or str(abs(times)))
                )

    text = "".join(parts()).removeprefix("+")
    return text if common == 1 else f"({text})//{common}"
