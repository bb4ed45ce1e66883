"""Dot products of small integers and of numbers in half precision, by instruction set.

All of those of integers add the products of four uint8 activations and four int8 weights to each int32 sum, exactly:
nothing saturates on the way. One packing of weights serves all: the inputs of a channel side by side, then the next
channel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.target import codegen

from aap_hw.compile.cpu.emit import AVX512_BYTES, spread
from aap_hw.compile.cpu.opaque import ANCHOR
from aap_hw.compile.cpu.tiles import FUSED, Costs, multiplied_and_added
from aap_hw.compile.keys.precision import FLOAT16, FLOAT32
from aap_hw.compile.keys.target import CpuTarget
from aap_hw.errors import UserError

GROUP, PAIR = 4, 2
"""Inputs of a dot product of bytes, and of numbers in half precision."""
FEWEST_LANES = 4
"""Sums in the shortest vector that has such instructions."""


@dataclass(frozen=True)
class DotProduct:
    """How an instruction set multiplies.

    Attributes
    ----------
    add
        Sum, a vector with a group of activations a lane (several as int32), a vector of as many weights -> the new sum.
    split
        How many registers hold one of these vectors in the form that the instructions take.
    working
        Registers that hold intermediate results.
    shift
        What is subtracted from activations for instructions that take signed numbers.
    add_halves
        As ``add``, of weights in two vectors of 16-bit numbers, those of even and of odd inputs; if that is faster.
    costs
        Of a tile, beside what ``add`` does.
    group
        How many inputs are multiplied at once. Several are as many as have room in 32 bits.
    most
        Products that may be added up before the sum is moved to one in float32; None if there is no need to.
    sum : type of the sums, if it is not that of the kernel.
    code : functions in LLVM's language that ``add`` calls; `imported` makes them known.
    lowest_weight : the smallest weight that sums on their way have room for.
    pairs_apart : in a vector of weights the first two inputs of all channels come first, then their last two.
    run : how many groups of a pixel one load brings, if ``add`` can take them as lanes of a vector. Else 1.
    prepare : what is done to activations before they are multiplied.
    lane : what ``add`` takes of prepared activations at a step of a run, as `tiles.lane_in_all` if it is None.
    of_signed : the same for activations that `signed` has made signed before, if instructions take such numbers.
    """

    add: Callable[[Any, Any, Any], Any]
    split: int = 1
    working: int = 0
    shift: int = 0
    costs: Costs = FUSED
    group: int = GROUP
    most: int | None = None
    sum: str = ""
    code: str = ""
    lowest_weight: int = -128
    add_halves: Callable[[Any, Any, Sequence[Any]], Any] | None = None
    pairs_apart: bool = False
    run: int = 1
    prepare: Callable[[Any, int], Any] = lambda activations, lanes: activations
    lane: Callable[[Any, int, int], Any] | None = None
    of_signed: DotProduct | None = None

    def fits(self, pixels: int, vectors: int, target: CpuTarget, run: int = 1, spare: int = 0) -> bool:
        """Whether a tile's sums, its weights and one pixel's activations, or a run of all pixels, stay in registers.

        Of a tile with runs, whether so many registers are ``spare``.
        """
        if run > 1:
            return pixels * vectors + self.split * vectors + pixels + self.working + spare < target.registers
        # Without AVX-512 one operand of an instruction may also come from memory.
        most = target.registers + (target.vector_bytes < AVX512_BYTES and self.split == 1)
        return pixels * vectors + self.split * (vectors + 1) + self.working < most

    @contextmanager
    def imported(self) -> Iterator[None]:
        """Within it, what ``add`` writes may call ``code``."""
        with T.attr(T.int32(0), "pragma_import_llvm", self.code) if self.code else nullcontext():
            yield


def dot_product(lanes: int, target: CpuTarget) -> DotProduct:
    """The best that a CPU has for vectors of so many sums, at least ``FEWEST_LANES``.

    Raises
    ------
    UserError : its instructions are not known here.
    """
    bits = 32 * lanes
    if has_features(target, "neon"):
        if has_features(target, "i8mm"):
            return _quads("llvm.aarch64.neon.usdot.v4i32.v16i8", lanes)
        return _signed_quads(lanes) if has_features(target, "dotprod") else _products(lanes)
    if not has_features(target, "sse2"):
        raise UserError(f"there are no kernels of bytes for the CPU of {dict(target.options)}; compile for float32")
    vnni = "avx512vnni" if bits == AVX512_BITS else "avx512vl+avx512vnni"
    if has_features(target, vnni) or (bits < AVX512_BITS and has_features(target, "avxvnni")):
        return _quads(f"llvm.x86.avx512.vpdpbusd.{bits}", lanes)
    return _pairs(lanes, target)


def pair_product(lanes: int, target: CpuTarget) -> DotProduct:
    """Dot products of two numbers in bfloat16, with sums in float32.

    TVM has no vectors of bfloat16 for CPUs, so that the instruction is called in LLVM's own language.
    """
    name = f"sum_of_bfloat16_pairs_{lanes}"

    def add(total: Any, activations: Any, weights: Any) -> Any:
        return T.call_pure_extern(f"{FLOAT32}x{lanes}", name, total, activations, weights)

    sums, singles, pairs = f"<{lanes} x float>", f"<{PAIR * lanes} x bfloat>", f"<{lanes} x i32>"
    instruction = f"@llvm.x86.avx512bf16.dpbf16ps.{32 * lanes}"
    code = f"""
        declare {sums} {instruction}({sums}, {singles}, {singles})
        define linkonce_odr {sums} @{name}({sums} %total, {pairs} %one, <{PAIR * lanes} x i16> %other) alwaysinline {{
            %read = bitcast {pairs} %one to {singles}
            %weights = bitcast <{PAIR * lanes} x i16> %other to {singles}
            %sum = call {sums} {instruction}({sums} %total, {singles} %read, {singles} %weights)
            ret {sums} %sum
        }}
    """
    return DotProduct(add, group=PAIR, code=code)


def half_product(lanes: int, target: CpuTarget) -> DotProduct:
    """Products of numbers in float16, a few of them added up in float16.

    There is no instruction of Armv8.2 that adds them up in float32 at the same speed. A sum of 32 products of random
    numbers is off by about 2^-10 of its size, as much as storing it makes.
    """
    return DotProduct(multiplied_and_added, group=1, most=32, sum=FLOAT16)


AVX512_BITS = 8 * AVX512_BYTES
MULTIPLY_AND_ADD = {
    128: "llvm.x86.sse2.pmadd.wd",
    256: "llvm.x86.avx2.pmadd.wd",
    AVX512_BITS: "llvm.x86.avx512.pmaddw.d.512",
}


WITH_INTEGERS = {128: "sse2", 256: "avx2", AVX512_BITS: "avx512bw"}
"""Features of x86 that bring instructions for integers in vectors of so many bits."""


def of_integers(type_: str, names: Mapping[int, str], operands: Sequence[Any], target: CpuTarget) -> Any:
    """What an instruction of x86 makes of vectors of integers, piece by piece where it is not there for all their bits.

    ``names`` are those of the instruction by bits of a vector. It must treat each 128 bits alike.
    """
    scalar, _, lanes = type_.rpartition("x")
    bits, half = int(scalar.removeprefix("int")) * int(lanes), int(lanes) // 2
    if has_features(target, WITH_INTEGERS[bits]):
        return T.call_llvm_pure_intrin(type_, names[bits], *operands)
    bound = [T.bind(each) for each in operands]

    def made(upper: int) -> Any:
        return of_integers(f"{scalar}x{half}", names, [_half(each, upper) for each in bound], target)

    return tirx.Shuffle([made(0), made(1)], list(range(2 * half)))


def _half(value: Any, upper: int) -> Any:
    count = int(str(value.ty.dtype).rpartition("x")[2]) // 2
    return tirx.Shuffle([value], list(range(upper * count, (upper + 1) * count)))


@functools.cache
def has_features(target: CpuTarget, features: str) -> bool:
    """Whether a CPU has all of LLVM's features, written with ``+`` between them."""
    return all(codegen.llvm_cpu_has_features(feature, target.tvm) for feature in features.split("+"))


def _quads(name: str, lanes: int) -> DotProduct:
    """One instruction multiplies unsigned by signed bytes and adds the products of a lane."""
    quads = f"int8x{GROUP * lanes}"

    def add(total: Any, activations: Any, weights: Any) -> Any:
        operands = T.reinterpret(quads, activations), T.reinterpret(quads, weights)
        return T.call_llvm_pure_intrin(f"int32x{lanes}", name, total, *operands)

    return DotProduct(add)


def _pairs(lanes: int, target: CpuTarget) -> DotProduct:
    """Bytes with even and odd numbers become 16-bit numbers, whose products the instruction adds in pairs.

    The instruction for bytes (vpmaddubsw) would add two products in 16 bits, where 2 * 255 * 127 has no room.
    """
    halves, eight = f"int16x{2 * lanes}", spread(T.int16(8), 2 * lanes)

    def add_halves(total: Any, activations: Any, weights: Sequence[Any]) -> Any:
        low = spread(T.int32(0x00FF00FF), lanes)
        odd_bytes = T.shift_right(activations, spread(T.int32(8), lanes))
        even, odd = (T.reinterpret(halves, T.bitwise_and(each, low)) for each in (activations, odd_bytes))
        for operands in zip((even, odd), weights, strict=True):
            total = total + of_integers(f"int32x{lanes}", MULTIPLY_AND_ADD, operands, target)
        return total

    def add(total: Any, activations: Any, weights: Any) -> Any:
        pairs = T.reinterpret(halves, weights)
        return add_halves(
            total, activations, (T.shift_right(T.shift_left(pairs, eight), eight), T.shift_right(pairs, eight))
        )

    # Seven instructions prepare a vector of either kind, four add a product, and none waits for long.
    return DotProduct(add, split=2, working=1, costs=Costs(load=7 / 8, accumulators=2), add_halves=add_halves)


# Makes four unsigned bytes signed ones that are smaller by 128.
SIGN_BITS = -0x7F7F7F80


def signed(value: Any, lanes: int = 1) -> Any:
    """An unsigned byte, or a vector of them, as the signed one that is smaller by 128; its type stays uint8."""
    return T.bitwise_xor(value, spread(T.uint8(128), lanes))


def _signed(activations: Any, lanes: int) -> Any:
    return T.bitwise_xor(activations, spread(T.int32(SIGN_BITS), lanes))


def _signed_quads(lanes: int) -> DotProduct:
    """As above, but both are signed."""
    quads = f"int8x{GROUP * lanes}"

    def add(total: Any, activations: Any, weights: Any) -> Any:
        # The second one may be a lane of a vector.
        operands = T.reinterpret(quads, weights), T.reinterpret(quads, activations)
        return T.call_llvm_pure_intrin(f"int32x{lanes}", "llvm.aarch64.neon.sdot.v4i32.v16i8", total, *operands)

    # Loads count for more where twice as many products are made in a cycle.
    costs = Costs(load=0.25, parting=1.25)
    of_signed = DotProduct(add, shift=128, costs=costs, run=lanes, code=ANCHOR)
    # To make a run of a pixel signed takes an instruction, and one register for all.
    costs = replace(costs, placing=0.11)
    return replace(of_signed, working=1, costs=costs, prepare=_signed, of_signed=of_signed)


def _products(lanes: int) -> DotProduct:
    """Products of signed bytes in 16 bits, added in pairs there and then in 32 bits: 2 * 128 * 127 has room."""
    size = GROUP * lanes

    def add(total: Any, activations: Any, weights: Any) -> Any:
        operands = [T.reinterpret(f"int8x{size}", each) for each in (activations, weights)]
        halves = [
            [
                T.Cast(f"int16x{size // 2}", tirx.Shuffle([each], list(range(start, start + size // 2))))
                for each in operands
            ]
            for start in (0, size // 2)
        ]
        products = [one * other for one, other in halves]
        pairs = T.call_llvm_pure_intrin(f"int16x{size // 2}", "llvm.aarch64.neon.addp.v8i16", *products)
        return total + T.call_llvm_pure_intrin(f"int32x{lanes}", "llvm.aarch64.neon.saddlp.v4i32.v8i16", pairs)

    # LLVM multiplies well before it adds.
    return DotProduct(add, split=2, working=7, shift=128, lowest_weight=-127, run=lanes, prepare=_signed)


def dense_product(lanes: int, target: CpuTarget) -> DotProduct:
    """As `dot_product`, for convolutions whose weights may lie in memory as the instructions like them."""
    without = has_features(target, "neon") and not has_features(target, "dotprod") and not has_features(target, "i8mm")
    return _products_of_pairs(lanes) if without else dot_product(lanes, target)


def _products_of_pairs(lanes: int) -> DotProduct:
    """Products of signed bytes, two of them added in 16 bits, and these in pairs in 32 bits: 2 * 128 * 127 has room."""
    size, half = GROUP * lanes, GROUP * lanes // 2

    def lane(activations: Any, i: int, lanes: int) -> Any:
        """The first two inputs for all channels, and then the last two."""
        pairs = T.reinterpret(f"int16x{2 * lanes}", activations)
        return T.reinterpret(f"int8x{size}", tirx.Shuffle([pairs], [2 * i] * lanes + [2 * i + 1] * lanes))

    def add(total: Any, activations: Any, weights: Any) -> Any:
        operands = [T.reinterpret(f"int8x{size}", each) for each in (activations, weights)]
        first, second = (
            [T.Cast(f"int16x{half}", tirx.Shuffle([each], list(range(start, start + half)))) for each in operands]
            for start in (0, half)
        )
        products = first[0] * first[1] + second[0] * second[1]
        return total + T.call_llvm_pure_intrin(f"int32x{lanes}", "llvm.aarch64.neon.saddlp.v4i32.v8i16", products)

    # A product takes three instructions, to place activations one.
    of_signed = DotProduct(
        add,
        working=13,
        shift=128,
        costs=Costs(load=1 / 3, placing=1 / 3, parting=0.4),
        lowest_weight=-127,
        run=lanes,
        lane=lane,
        code=ANCHOR,
        pairs_apart=True,
    )
    return replace(of_signed, prepare=_signed, of_signed=of_signed)


def has_byte_shuffles(target: CpuTarget) -> bool:
    """Whether one instruction puts bytes of two vectors into any order."""
    return not has_features(target, "neon") and has_features(target, "avx512vbmi")
