"""Sums of int8 kernels as bytes: rounded, moved by the zero point, and cut to what a tensor can hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.approximations import WITHOUT_FRACTION
from aap_hw.compile.cpu.emit import spread
from aap_hw.compile.cpu.isa import AVX512_BITS, GROUP, has_features, of_integers
from aap_hw.compile.keys.target import CpuTarget

BITS_OF_IT = int(np.float32(WITHOUT_FRACTION).view(np.int32))


@dataclass(frozen=True)
class Bounds:
    """What a tensor of uint8 can hold: its zero point as int16, and its lowest and highest number as uint8.

    ``clip`` is the step that they do the work of: ``relu``, for which the lowest is the zero point, ``relu6`` or none.
    """

    zero: Any
    lowest: Any
    highest: Any
    clip: str = ""

    def cut(self, values: Any, type_: str) -> Any:
        """A vector of integers with what is beyond the bounds replaced by these."""
        lanes = int(type_.rpartition("x")[2])
        low, high = (spread(T.Cast(type_.rpartition("x")[0], each), lanes) for each in (self.lowest, self.highest))
        return T.min(T.max(values, low), high)

    def cut_and_moved(self, values: Any, type_: str) -> Any:
        """A vector of integers to which the zero point is not added yet, with it added."""
        scalar, _, lanes = type_.rpartition("x")
        zero = T.Cast(scalar, self.zero)
        # Before it is added there is room for it.
        from_zero = Bounds(zero, *(T.Cast(scalar, each) - zero for each in (self.lowest, self.highest)))
        return from_zero.cut(values, type_) + spread(zero, int(lanes))


def saturates(target: CpuTarget) -> bool:
    """Whether a float32 beyond an int32 becomes the largest or the smallest one."""
    return has_features(target, "neon")


def to_bytes(several: Sequence[Sequence[Any]], bounds: Bounds, lanes: int, target: CpuTarget) -> list[Any]:
    """Vectors of float32 as one of uint8: rounded to the nearest, of two to the even one, and the zero point added.

    What is beyond the bounds becomes these. Of each 128 bits the bytes of the first vector come first, then those of
    the second, and so on. No value may be above 2^31. ``several`` such are done at once.
    """
    bits, is_arm, count = 32 * lanes, has_features(target, "neon"), len(several[0])
    # LLVM would round and convert in two instructions.
    rounded = "llvm.aarch64.neon.fcvtns.v4i32.v4f32" if is_arm else f"llvm.lrint.v{lanes}i32.v{lanes}f32"
    whole = [[T.call_llvm_pure_intrin(f"int32x{lanes}", rounded, each) for each in values] for values in several]
    if count == 2 and bits == AVX512_BITS:
        type_ = f"int16x{2 * lanes}"
        pairs = [of_integers(type_, PACK_TO_HALVES, values, target) for values in whole]
        return [T.Cast(f"uint8x{2 * lanes}", bounds.cut_and_moved(pair, type_)) for pair in pairs]
    if count < GROUP:
        return [_one_by_one(each, bounds, lanes) for each in whole]

    if is_arm:
        return [_narrowed(each, bounds) for each in whole]

    def halves(values: Sequence[Any]) -> Any:
        made = of_integers(f"int16x{2 * lanes}", PACK_TO_HALVES, values, target)
        return _saturated_sum(made, spread(bounds.zero, 2 * lanes), f"llvm.sadd.sat.v{2 * lanes}i16")

    def packed(pair: Sequence[Any]) -> Any:
        made = of_integers(f"int8x{4 * lanes}", PACK_TO_BYTES, pair, target)
        return T.bind(bounds.cut(T.reinterpret(f"uint8x{4 * lanes}", made), f"uint8x{4 * lanes}"))

    return [packed([halves(each[:2]), halves(each[2:])]) for each in whole]


def _narrowed(values: Sequence[Any], bounds: Bounds) -> Any:
    """Four vectors of int32, to which the zero point is not added yet, as one of uint8, by instructions of Arm's.

    They cut at 0 and 255 what they narrow, so that only the highest is left to look at where there is a clip.
    """
    halves = [joined("int16x4", NARROW_TO_HALVES, values[i : i + 2]) for i in (0, 2)]
    if not bounds.clip:
        halves = [_saturated_sum(each, spread(bounds.zero, 8), "llvm.sadd.sat.v8i16") for each in halves]
        return joined("uint8x8", NARROW_TO_BYTES, halves)
    above_zero = joined("uint8x8", NARROW_TO_BYTES, halves)
    made = _saturated_sum(above_zero, spread(T.Cast("uint8", bounds.zero), 16), "llvm.uadd.sat.v16i8")
    return T.min(made, spread(bounds.highest, 16))


NARROW_TO_BYTES = "llvm.aarch64.neon.sqxtun.v8i8"
NARROW_TO_HALVES = "llvm.aarch64.neon.sqxtn.v4i16"


def _one_by_one(whole: Sequence[Any], bounds: Bounds, lanes: int) -> Any:
    """Vectors of int32, to which the zero point is not added yet, as one of uint8."""
    made = [bounds.cut_and_moved(each, f"int32x{lanes}") for each in whole]
    pieces, count = range(0, lanes, GROUP), len(made)
    order = [v * lanes + first + i for first in pieces for v in range(count) for i in range(GROUP)]
    side_by_side = made[0] if count == 1 else tirx.Shuffle(made, order)
    return T.Cast(f"uint8x{count * lanes}", side_by_side)


PACK_TO_HALVES = {
    128: "llvm.x86.sse2.packssdw.128",
    256: "llvm.x86.avx2.packssdw",
    AVX512_BITS: "llvm.x86.avx512.packssdw.512",
}
PACK_TO_BYTES = {
    128: "llvm.x86.sse2.packuswb.128",
    256: "llvm.x86.avx2.packuswb",
    AVX512_BITS: "llvm.x86.avx512.packuswb.512",
}


def _saturated_sum(one: Any, other: Any, name: str) -> Any:
    return T.call_llvm_pure_intrin(str(other.ty.dtype), name, one, other)


def joined(type_: str, name: str, vectors: Sequence[Any]) -> Any:
    """Narrower vectors side by side."""
    narrow = [T.call_llvm_pure_intrin(type_, name, each) for each in vectors]
    return tirx.Shuffle(narrow, list(range(len(narrow) * int(type_.rpartition("x")[2]))))
