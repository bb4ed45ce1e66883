"""Swish and its like for bytes on Arm: x times a gate of x, of eight sums at once, by straight lines in 16 bits.

Such a function is max(x, 0) less a bump: g(|x|), which is the same on both sides, below 0.4, and soon 0. A table holds
the bump in pieces of equal length: the height in the middle of each, and the slope. `largest_error` says how near to
the function that is, before the result is rounded to a byte.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.approximations import WITHOUT_FRACTION
from aap_hw.compile.code.function import Argument
from aap_hw.compile.code.quantized import GATED, LARGEST, LEAST_STEP, Quantized
from aap_hw.compile.cpu.emit import spread, vector
from aap_hw.compile.cpu.int8.storing import BITS_OF_IT, NARROW_TO_BYTES, joined
from aap_hw.compile.cpu.isa import GROUP
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.precision import FLOAT32, Scale
from aap_hw.errors import UserError

LANES, BYTES_OF_REGISTER, HALF = 4, 16, 8
PIECES = 4 * BYTES_OF_REGISTER
"""One instruction looks up among so many bytes, and finds 0 beyond them."""
LENGTH = 256
"""Of a piece, in the units that x is counted in: the high byte says which piece, the low one where in it."""
SLOPE_BITS = 7
"""After the point of its slopes."""
ONE = 2**15


def _bump_of_silu(x: np.ndarray) -> np.ndarray:
    made: np.ndarray = x / (1 + np.exp(np.minimum(x, 700)))
    return made


def _bump_of_hardswish(x: np.ndarray) -> np.ndarray:
    made: np.ndarray = x * np.maximum(3 - x, 0) / 6
    return made


@dataclass(frozen=True)
class Bump:
    """What a function lacks of max(x, 0), for |x|.

    Attributes
    ----------
    of : the bump of numbers from 0 on.
    highest : the largest.
    height : units of x to one of the table's heights, of which it has 255. More are better, but then pieces get shorter
        and all of them must still reach to where the bump is almost 0.
    corner : where its slope jumps, for a bump that has such a place.
    """

    of: Callable[[np.ndarray], np.ndarray]
    highest: float
    height: int
    corner: float | None = None


BUMPS = {"silu": Bump(_bump_of_silu, 0.27846455, 2), "hardswish": Bump(_bump_of_hardswish, 0.375, 4, 3.0)}
"""By the names that epilogues have for the functions."""
ROWS = 2 * 4 + 4
"""Registers that the two tables and the four numbers beside them fill."""
TABLE = Argument("constant", (ROWS, BYTES_OF_REGISTER), type="int8")


@dataclass(frozen=True)
class Lines:
    """The function for an output of some scale.

    Attributes
    ----------
    unit : what x is counted in.
    zero : the number that stands for 0, and so for the zero point of the output.
    factor : how many steps of the output a unit is, times 2^15.
    height : units to one of the heights.
    heights, slopes : what is subtracted in the middle of each piece, and what more is added for each unit behind it.
    """

    unit: float
    zero: int
    factor: int
    height: int
    heights: np.ndarray
    slopes: np.ndarray

    @classmethod
    def of(cls, name: str, made: Scale) -> Lines:
        """With units as small as the heights and the output have room for.

        Raises
        ------
        UserError : the output has steps that are too small for its table.
        """
        if made.scale < LEAST_STEP:
            raise UserError(
                f"an output of {name} is quantised in steps of {made.scale:.2g}, but int8 kernels for Arm make it in "
                f"steps of {LEAST_STEP:.2g} or more; quantise it with a wider range"
            )
        bump = BUMPS[name]
        # The largest x must reach the largest byte, less the bump.
        least = max(bump.highest / (bump.height * LARGEST), (made.scale * (LARGEST + 1) + bump.highest) / ONE)
        if bump.corner is not None and (pieces := bump.corner // (LENGTH * least)):
            least = bump.corner / (LENGTH * pieces)  # a corner within a piece would be cut off
        factor = int(np.clip(np.rint(least / made.scale * ONE), LARGEST + 1, ONE - 1))
        unit = factor * made.scale / ONE
        places = np.arange(LENGTH) - LENGTH // 2
        exact = bump.of(np.arange(PIECES * LENGTH).reshape(PIECES, LENGTH) * unit) / unit
        ends = bump.of(np.arange(PIECES + 1) * LENGTH * unit) / unit
        slopes = np.rint((ends[:-1] - ends[1:]) / LENGTH * 2**SLOPE_BITS)
        lines = np.floor(slopes[:, None] * places / 2**SLOPE_BITS + 0.5)
        flat = exact + lines
        heights = np.rint((flat.max(axis=1) + flat.min(axis=1)) / 2 / bump.height)
        zero = round(made.zero_point * ONE / factor)
        # At the largest x, 16 bits have no room for a line that rises above the height.
        last = (ONE - 1 - zero) // LENGTH
        full = slice(max(last - 1, 0), last + 1)
        heights[full] = np.maximum(heights[full], np.ceil(lines[full].max(axis=1) / bump.height))
        heights = np.clip(heights, 0, LARGEST).astype(np.uint8)
        return cls(unit, zero, factor, bump.height, heights, slopes.astype(np.int8))

    @property
    def table(self) -> np.ndarray:
        """All numbers that the code needs, each register's in a row."""
        of_16_bits = [np.full(HALF, number, np.int16).view(np.int8) for number in (self.zero, self.factor)]
        of_8_bits = [np.full(BYTES_OF_REGISTER, number, np.int8) for number in (-LENGTH // 2, self.height)]
        numbers: np.ndarray = np.concatenate([self.heights.view(np.int8), self.slopes, *of_16_bits, *of_8_bits])
        return numbers.reshape(TABLE.shape)

    def evaluated(self, x: np.ndarray, made: Scale) -> np.ndarray:
        """The bytes for real numbers, by the arithmetic of `bytes_of`: 16 bits that wrap around where those do."""
        value = (x / self.unit + made.zero_point * made.scale / self.unit + 0.5) * 2**16
        half = (np.clip(np.trunc(value), -(2**31), 2**31 - 1).astype(np.int64) >> 16).astype(np.int16)
        distance = np.abs(half.astype(np.int32) - self.zero)
        piece, place = distance // LENGTH, (distance % LENGTH - LENGTH // 2).astype(np.int16)
        inside, piece = piece < PIECES, np.minimum(piece, PIECES - 1)
        height, slope = (np.where(inside, each[piece], 0).astype(np.int16) for each in (self.heights, self.slopes))
        line = ((slope * place).astype(np.int32) + 2 ** (SLOPE_BITS - 1)) >> SLOPE_BITS
        value = np.maximum(half, np.int16(self.zero)) - height * np.int16(self.height) + line.astype(np.int16)
        steps = np.clip((value.astype(np.int64) * self.factor + ONE // 2) >> 15, 0, LARGEST)
        return steps.astype(np.uint8)  # type: ignore[no-any-return]


def largest_error(step: float) -> float:
    """How far from the function the result is at most, for an output of a step from `LEAST_STEP` on, as a real number.

    Of a step of 0.02 that is 0.11 steps, of one of 0.1 it is 0.05. Beside it half a step is due to the last rounding,
    and where `Gated.is_small`, up to 0.75 steps of the sums are due to that of the bias.
    """
    return 0.0015 + step * max(1 / 32, 0.33 * min(step, 1.0))


@dataclass(frozen=True)
class Constants:
    """What `Gated.bytes_of` needs beside four vectors of sums: their factors and offsets, and the rows of the table."""

    factors: Sequence[Any]
    offsets: Sequence[Any]
    table: Sequence[Any]

    @classmethod
    def of(cls, channels: tuple[Any, int], place: Any, table: Any, start: Any = 0) -> Constants:
        """With a place of the first channel among the factors, and offsets that lie so much further on.

        The table begins at ``start``.
        """
        factors, apart = channels
        first = T.bind(place)
        several, offsets = (
            [T.bind(vector(factors, begin + first + v * LANES, LANES)) for v in range(GROUP)] for begin in (0, apart)
        )
        rows = range(0, ROWS * BYTES_OF_REGISTER, BYTES_OF_REGISTER)
        return cls(several, offsets, [T.bind(vector(table, start + row, BYTES_OF_REGISTER)) for row in rows])


@dataclass(frozen=True)
class Gated:
    """How a kernel makes bytes of its sums by such a function.

    Attributes
    ----------
    name : the function, as epilogues have it.
    is_small : no sum reaches 2^22. Such sums begin with the bits of a float32 that leaves no room for a fraction, and
        so are numbers in float32 themselves. The offset then takes that float32 away again. It is so large that the
        bias in it is rounded, to at most 0.75 steps of the sums.
    """

    name: str
    is_small: bool

    @classmethod
    def of(cls, key: KernelKey, products: int) -> Gated | None:
        """For a kernel that adds up so many products; None if its epilogue is another."""
        *before, last = ["", *key.epilogue]
        if key.types.made != "uint8" or last not in BUMPS or not {*before} <= {"", "bias"}:
            return None
        return cls(last, products * LARGEST * 128 < 2**22)

    def constants(
        self, model: Quantized, starts: np.ndarray, channels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What sums begin with, factors and offsets for `bytes_of`, from those that make real numbers, and the table.

        Sums become units in the upper half of 32 bits, where the offset is half a unit more, as the lower is cut off.
        """
        assert model.made is not None
        lines, zero = Lines.of(self.name, model.made), model.made.zero_point * model.made.scale
        factors, offsets = channels.astype(np.float64) * (2**16 / lines.unit)
        offsets += (zero / lines.unit + 0.5) * 2**16
        factors = factors.astype(np.float32)
        if self.is_small:
            offsets -= WITHOUT_FRACTION * factors.astype(np.float64)
            starts = starts + np.int32(BITS_OF_IT)
        return starts, np.stack([factors, offsets.astype(np.float32)]), lines.table

    def bytes_of(self, sums: Sequence[Any], known: Constants) -> Any:
        """Four vectors of sums as one of bytes."""
        whole = []
        for total, factor, offset in zip(sums, known.factors, known.offsets, strict=True):
            real = T.reinterpret if self.is_small else T.Cast
            value = real(f"{FLOAT32}x{LANES}", total) * factor + offset
            # What is beyond an int32 becomes the largest or the smallest.
            made = T.call_llvm_pure_intrin(f"int32x{LANES}", "llvm.aarch64.neon.fcvtzs.v4i32.v4f32", value)
            whole.append(T.bind(T.reinterpret("int16x8", made)))
        halves = [_every_other(whole[i : i + 2], 1) for i in (0, 2)]
        *rows, zero, factor, middle, unit = known.table
        zero, factor = (T.bind(T.reinterpret("int16x8", row)) for row in (zero, factor))
        as_bytes = [T.bind(T.reinterpret("int8x16", _halves("sabd", half, zero))) for half in halves]
        pieces, places = _every_other(as_bytes, 1), T.bind(T.bitwise_xor(_every_other(as_bytes, 0), middle))
        heights, slopes = (
            T.bind(T.call_llvm_pure_intrin("int8x16", "llvm.aarch64.neon.tbl4.v16i8", *rows[first : first + 4], pieces))
            for first in (0, 4)
        )
        steps = []
        for i, half in enumerate(halves):
            height, height_unit, slope, place = (_part(each, i) for each in (heights, unit, slopes, places))
            bump = T.call_llvm_pure_intrin("int16x8", "llvm.aarch64.neon.umull.v8i16", height, height_unit)
            rise = T.call_llvm_pure_intrin("int16x8", "llvm.aarch64.neon.smull.v8i16", slope, place)
            line = _halves("srshl", rise, spread(T.int16(-SLOPE_BITS), HALF))
            steps.append(_halves("sqrdmulh", T.max(half, zero) - bump + line, factor))
        return joined("uint8x8", NARROW_TO_BYTES, steps)


def with_table(buffers: Sequence[Any], gated: Gated | None) -> list[Any]:
    """A kernel's buffers with that of the table before the output, or None where there is no table."""
    *others, output = buffers
    return [*others, output] if gated is not None else [*others, None, output]


def _halves(name: str, one: Any, other: Any) -> Any:
    """An instruction of two vectors of 16-bit numbers."""
    return T.bind(T.call_llvm_pure_intrin("int16x8", f"llvm.aarch64.neon.{name}.v8i16", one, other))


def _every_other(vectors: Sequence[Any], first: int) -> Any:
    """Every second lane of two vectors."""
    return T.bind(tirx.Shuffle(list(vectors), list(range(first, 2 * int(vectors[0].ty.dtype.lanes), 2))))


def _part(values: Any, half: int) -> Any:
    """One half of a vector of bytes."""
    return T.bind(tirx.Shuffle([values], list(range(half * HALF, (half + 1) * HALF))))


assert GROUP * LANES == BYTES_OF_REGISTER
assert BUMPS.keys() == GATED
