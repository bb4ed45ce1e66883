"""A kernel's loops as numbers: what each turn of a loop computes, and which bytes it touches.

Read from TVM's form of a kernel just before LLVM gets it. Its loops have lengths that are known, and its tiles are
written out, so that it says which vector instructions LLVM makes. What LLVM adds to them is not seen: addresses,
moves, and registers that do not suffice.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tvm import tirx
from tvm.target import codegen

from aap_hw.compile.keys.target import CpuTarget
from aap_hw.estimate.indices import ZERO, Index, index_of, share_of, typical, variables_of

# Vector operations that a division or a square root keeps its unit busy for.
DIVISION = 5
_SLOW_CALLS = ("sqrt", "rsqrt", "exp", "exp2", "log", "tanh", "sigmoid", "erf", "power", "pow")
# Instructions that add neighbours, and to a sum as well where there is one.
_ADDS_NEIGHBOURS = tuple(f"llvm.aarch64.neon.{name}" for name in ("saddlp", "uaddlp", "addp"))
_EXTREMES = ("llvm.maximum", "llvm.minimum")
_FREE_CALLS = ("reinterpret", "likely", "vectorlow", "vectorhigh")


@dataclass(frozen=True)
class Access:
    """Neighbouring bytes that a turn reads or writes.

    Attributes
    ----------
    index : the first one's place in its buffer, in bytes, which depends on ``variables``.
    """

    buffer: int
    index: Index
    variables: frozenset[int]
    bytes: int
    is_store: bool


@dataclass
class Loop:
    """What happens in a turn of a loop, loops inside apart; a branch is a loop of one turn at most.

    Attributes
    ----------
    variable : its name in indices; None of a branch and of the whole kernel.
    extent : turns; of a branch, in what share of the cases it is taken.
    multiply_adds, arithmetic, loads, stores : of vectors, as many as the units of the CPU work on at a time.
    chain : the longest row of additions to one sum.
    """

    variable: int | None = None
    extent: float = 1.0
    is_parallel: bool = False
    multiply_adds: float = 0.0
    arithmetic: float = 0.0
    loads: float = 0.0
    stores: float = 0.0
    chain: int = 0
    accesses: list[Access] = field(default_factory=list)
    inside: list[Loop] = field(default_factory=list)


@dataclass(frozen=True)
class Program:
    """A kernel: its loops, the ranges of their variables, and the buffers that each thread has for itself."""

    whole: Loop
    ranges: dict[int, tuple[float, float]]
    scratch: frozenset[int]


def read_program(code: tirx.PrimFunc, target: CpuTarget, extents: dict[Any, int]) -> Program:
    """The loops of a kernel's code; ``extents`` are values of the variables in its arguments' shapes."""
    reader = _Reader(target, extents)
    reader.statement(code.body)
    return Program(reader.whole, reader.ranges, frozenset(reader.scratch))


class _Reader:
    def __init__(self, target: CpuTarget, extents: dict[Any, int]) -> None:
        self.whole = self._loop = Loop()
        self.ranges: dict[int, tuple[float, float]] = {}
        self._target = target
        self._known: dict[Any, Index] = {name: ("number", value) for name, value in extents.items()}
        self._buffers: dict[Any, int] = {}
        self.scratch: set[int] = set()
        self._sums: set[int] = set()
        self._chains: list[Counter[tuple[int, int]]] = [Counter()]
        self._lanes, self._lane = 1, -1
        self._is_in_parallel = False

    def statement(self, node: Any) -> None:
        """Read a statement into the loop at hand."""
        match type(node).__name__:
            case "SeqStmt":
                for each in node.seq:
                    self.statement(each)
            case "SBlockRealize":
                self.statement(node.block)
            case "SBlock" | "AttrStmt":
                self.statement(node.body)
            case "AllocBuffer":
                self._allocate(node.buffer)
            case "Bind":
                self._bind(node.var, node.value)
            case "For":
                self._for(node)
            case "IfThenElse":
                self._branch(node)
            case "BufferStore":
                self._store(node)
            case "Evaluate":
                self._value(node.value)

    def _allocate(self, buffer: Any) -> None:
        number = self._buffers.setdefault(buffer, len(self._buffers))
        elements = math.prod(typical(index_of(each, self._known), self.ranges) for each in buffer.shape)
        if self._is_in_parallel:
            self.scratch.add(number)
        if elements * _bytes(buffer.dtype) <= self._target.registers * self._target.vector_bytes:
            self._sums.add(number)

    def _bind(self, name: Any, value: Any) -> None:
        if _is_index(value):
            self._known[name] = index_of(value, self._known)
        else:
            self._value(value)

    def _for(self, node: Any) -> None:
        number, extent = len(self.ranges), typical(index_of(node.extent, self._known), self.ranges)
        first = typical(index_of(node.min, self._known), self.ranges)
        self._known[node.loop_var] = ("variable", number)
        if node.kind == tirx.ForKind.VECTORIZED:
            self.ranges[number] = (0, 0)
            self._lanes, self._lane = int(extent), number
            self.statement(node.body)
            self._lanes, self._lane = 1, -1
            return
        self.ranges[number] = (first, first + max(extent, 1) - 1)
        around, is_parallel = self._is_in_parallel, node.kind == tirx.ForKind.PARALLEL
        self._is_in_parallel = around or is_parallel
        self._inside(Loop(number, max(0.0, extent), is_parallel), lambda: self.statement(node.body))
        self._is_in_parallel = around

    def _branch(self, node: Any) -> None:
        share = share_of(index_of(node.condition, self._known), self.ranges)
        if share > 0:
            self._inside(Loop(extent=share), lambda: self.statement(node.then_case))
        if node.else_case is not None and share < 1:
            self._inside(Loop(extent=1 - share), lambda: self.statement(node.else_case))

    def _inside(self, loop: Loop, read: Callable[[], None]) -> None:
        around, self._loop = self._loop, loop
        self._chains.append(Counter())
        read()
        loop.chain = max(self._chains.pop().values(), default=0)
        self._loop = around
        if loop.extent > 0:
            around.inside.append(loop)

    def _store(self, node: Any) -> None:
        self._value(node.value)
        buffer, index = self._place(node.buffer, node.indices)
        if buffer in self._sums and index[0] == "number":
            place = buffer, index[1]
            if self._adds_to(node.value, place):
                self._chains[-1][place] += 1
            return
        lanes = node.value.ty.dtype.lanes * self._lanes
        self._loop.stores += self._units(lanes * _bytes(node.buffer.dtype))
        self._touch(buffer, index, lanes * _bytes(node.buffer.dtype), is_store=True)

    def _adds_to(self, value: Any, place: tuple[int, int]) -> bool:
        """Whether a value is made of what lies at a place: its sum, or the last argument of an instruction."""
        match type(value).__name__:
            case "TensorLoad" | "BufferLoad":
                return self._place(value.source, value.indices) == (place[0], ("number", place[1]))
            case "Add" | "Sub":
                return self._adds_to(value.a, place) or self._adds_to(value.b, place)
            case "Call":
                return _intrinsic(value) not in _EXTREMES and any(self._adds_to(each, place) for each in value.args)
        return False

    def _place(self, buffer: Any, indices: Any) -> tuple[int, Index]:
        """Number of a buffer, and where in it something is, in bytes."""
        at: Index = ZERO
        for length, each in zip(buffer.shape, indices, strict=True):
            along = index_of(each, self._known)
            at = along if at == ZERO else ("Add", ("Mul", at, index_of(length, self._known)), along)
        size = _bytes(buffer.dtype)
        number = self._buffers.setdefault(buffer, len(self._buffers))
        return number, ("number", at[1] * size) if at[0] == "number" else ("Mul", at, ("number", size))

    def _touch(self, buffer: int, index: Index, size: int, *, is_store: bool) -> None:
        if buffer not in self._sums:
            self._loop.accesses.append(Access(buffer, index, variables_of(index), size, is_store))

    def _units(self, size: float) -> float:
        return max(1.0, size / self._target.unit_bytes)

    def _value(self, node: Any) -> None:
        """Count what it takes to compute a value."""
        match type(node).__name__:
            case "Var" | "IntImm" | "FloatImm" | "StringImm":
                return
            case "TensorLoad" | "BufferLoad":
                self._load(node)
            case "Add" | "Sub":
                for one, other in ((node.a, node.b), (node.b, node.a)):
                    if type(other).__name__ == "Mul":
                        self._loop.multiply_adds += self._units_of(node)
                        for each in (one, *self._factors(other)):
                            self._value(each)
                        return
                    if _intrinsic(other) in _ADDS_NEIGHBOURS:
                        self._value(one)
                        self._value(other)
                        return
                self._operation(node, node.a, node.b)
            case "Mul":
                self._operation(node, *self._factors(node))
            case "Div":
                self._operation(node, node.a, node.b, cost=DIVISION)
            case "Broadcast" | "Cast":
                is_widened = type(node).__name__ == "Cast" and (node.ty.dtype.lanes > 1 or self._lanes > 1)
                self._operation(node, node.value, cost=float(is_widened))
            case "Shuffle":
                is_free = self._target.multiplies_by_lane and len(set(map(str, node.indices))) == 1
                self._operation(node, *node.vectors, cost=float(not is_free))
            case "Select":
                self._operation(node, node.condition, node.true_value, node.false_value)
            case "Let":
                self._bind(node.var, node.value)
                self._value(node.body)
            case "Call":
                self._call(node)
            case "Ramp":
                self._operation(node)
            case "Not":
                self._operation(node, node.a)
            case _:
                self._operation(node, node.a, node.b)

    def _factors(self, product: Any) -> Iterator[Any]:
        """What is multiplied; 64-bit Arm multiplies either half of a vector of whole numbers as if they were wider."""
        for factor in (product.a, product.b):
            if self._target.multiplies_by_lane and _is_widened(factor):
                half = factor.value
                yield half.vectors[0] if type(half).__name__ == "Shuffle" and _is_row(half.indices) else half
            else:
                yield factor

    def _operation(self, node: Any, *operands: Any, cost: float = 1.0) -> None:
        if cost and not _is_index(node):
            self._loop.arithmetic += cost * self._units_of(node)
        for each in operands:
            self._value(each)

    def _call(self, node: Any) -> None:
        name = str(getattr(node.op, "name", node.op)).rpartition(".")[2]
        arguments = list(node.args)
        if name == "if_then_else":
            # Two loops of code, of which the second is rarely run.
            self._value(arguments[1])
        elif _intrinsic(node) in (*_ADDS_NEIGHBOURS, *_EXTREMES):
            self._operation(node, *arguments[1:])
        elif name in ("call_llvm_pure_intrin", "call_llvm_intrin", "call_pure_extern", "call_extern"):
            self._loop.multiply_adds += self._units_of(node)
            for each in arguments[1:]:
                self._value(each)
        else:
            cost = 0.0 if name in _FREE_CALLS else DIVISION if name in _SLOW_CALLS else 1.0
            self._operation(node, *arguments, cost=cost)

    def _load(self, node: Any) -> None:
        buffer, index = self._place(node.source, node.indices)
        if buffer in self._sums and index[0] == "number":
            return
        is_of_lanes = self._lane in variables_of(index)
        size = node.ty.dtype.lanes * (self._lanes if is_of_lanes else 1) * _bytes(node.source.dtype)
        self._loop.loads += self._units(size)
        self._touch(buffer, index, size, is_store=False)

    def _units_of(self, node: Any) -> float:
        type_ = node.ty.dtype
        return self._units(type_.lanes * self._lanes * max(8, type_.bits) // 8)


def _is_widened(value: Any) -> bool:
    """Whether a vector of whole numbers is made of one of half their bits."""
    if type(value).__name__ != "Cast" or value.ty.dtype.lanes == 1:
        return False
    types = value.ty.dtype, value.value.ty.dtype
    return all("int" in str(each) for each in types) and int(types[0].bits) == 2 * int(types[1].bits)


def _is_row(indices: Any) -> bool:
    """Whether neighbours are taken, from one half or the other."""
    numbers = [int(each) for each in indices]
    return numbers == list(range(numbers[0], numbers[0] + len(numbers))) and numbers[0] in (0, len(numbers))


def _intrinsic(node: Any) -> str:
    """Name of the instruction that a call of LLVM's is; empty for all else."""
    if type(node).__name__ != "Call" or not str(getattr(node.op, "name", "")).endswith("call_llvm_pure_intrin"):
        return ""
    return str(codegen.llvm_get_intrinsic_name(int(node.args[0])))


def _bytes(type_: Any) -> int:
    """Bytes of one value."""
    bits = int((tirx.const(0, type_).ty.dtype if isinstance(type_, str) else type_).bits)
    return max(8, bits) // 8


def _is_index(node: Any) -> bool:
    """Whether a value is a whole number that loops count or bytes lie at."""
    type_ = getattr(node.ty, "dtype", None)
    return type_ is not None and type_.lanes == 1 and str(type_) in ("int32", "int64", "bool")
