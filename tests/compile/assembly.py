"""Reading the machine code of a kernel: the loops that multiply, and what they keep in memory instead of registers.

Assembly is read as text, AT&T syntax for x86 and LLVM's own for 64-bit ARM; no other architecture is understood.
Nothing is run, so that code for any of these machines can be looked at on any machine.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import tvm
from tvm import tirx

from aap_hw.compile.keys.target import CpuTarget

# One CPU for each kind of vector.
TARGETS = {
    name: CpuTarget.of({"kind": "llvm", "mcpu": cpu, "mtriple": f"{platform}-linux-gnu"}, threads=1)
    for name, platform, cpu in [
        ("avx2", "x86_64", "haswell"),
        ("avx512", "x86_64", "skylake-avx512"),
        ("neon", "aarch64", "cortex-a72"),
    ]
}
# Full registers only: an FMA of a single float32 (vfmadd231ss, fmadd s0) is what a tail left behind.
_FUSED = re.compile(r"vfn?m(add|sub)\d+ps\s|fml[as]\s+v\d+\.4s")
_EXCHANGE = re.compile(r"v(shuf|perm[it]?|unpck)\w*p[sd]\s|(zip|trn|uzp)[12]\s")
_LABEL = re.compile(r"(\.L\w+):")
_FUNCTION = re.compile(r"[^.\s]\S*:")
_BRANCH = re.compile(r"(?:j\w+|b|b\.\w+|cbn?z\s+\w+,|tbn?z\s+\w+,\s*#\d+,)\s+(\.L\w+)$")
_VECTOR_REGISTER = re.compile(r"%[xyz]mm\d+|\b[qvds]\d+\b")
# Functions that set up a frame pointer may reach their stack through it; in others it is a register like any other.
_FRAME_POINTER = re.compile(r"movq\s+%rsp, %rbp|mov\s+x29, sp|add\s+x29, sp,")
_WIDE = re.compile(r"%[yz]mm\d+|\bq\d+\b|\bv\d+\.4s\b")
# A load of two registers: `_written` tells the first.
_SECOND_OF_PAIR = re.compile(r"ldp\s+q\d+, q(\d+)")
_STACK = re.compile(r"\(%rsp\b|\[sp\b")
_STORED = re.compile(r"^st|\(%r[sb]p[^)]*\)$")
_STACK_OR_FRAME = re.compile(r"\(%r[sb]p\b|\[(sp|x29)\b")


@dataclass(frozen=True)
class Loop:
    """A loop without another loop inside.

    Attributes
    ----------
    instructions : its body, in the order of the text.
    fused : fused multiply-adds of whole vectors.
    sums : registers that such instructions add to and nothing else in the loop writes: they live from turn to turn.
    spills : instructions that move a vector, or an element of one, to the stack or from it.
    """

    instructions: tuple[str, ...]
    fused: int
    sums: frozenset[str]
    spills: tuple[str, ...]

    @property
    def stored(self) -> tuple[str, ...]:
        """Spills of what the loop computes; others read what was computed before it, as they would any constant."""
        return tuple(line for line in self.spills if _STORED.search(line))


def assembly(code: tirx.PrimFunc, target: CpuTarget) -> str:
    """What LLVM makes of a scheduled function for the target, as text."""
    module = tvm.IRModule({"kernel": code.with_attr("global_symbol", "kernel")})
    text: str = tvm.compile(module, target=target.tvm).mod.inspect_source("asm")
    return text


def multiplying_loops(text: str) -> list[Loop]:
    """The innermost loops that multiply and add whole vectors, those with the most such instructions first.

    Where there are loops that sum up over their turns, only these: others run once for many of their turns.
    """
    loops = innermost_loops(text)
    multiplying = sorted((loop for loop in loops if loop.fused), key=lambda loop: -loop.fused)
    return [loop for loop in multiplying if loop.sums] or multiplying


def innermost_loops(text: str) -> list[Loop]:
    """All innermost loops."""
    return [loop for function in _functions(text) for loop in _innermost_loops(function)]


def turning_loops(text: str) -> list[Loop]:
    """The innermost loops that exchange lanes of vectors."""
    return [loop for loop in innermost_loops(text) if any(map(_EXCHANGE.match, loop.instructions))]


def vector_loops(text: str) -> list[Loop]:
    """The innermost loops that work on whole vectors."""
    return [loop for loop in innermost_loops(text) if any(map(_WIDE.search, loop.instructions))]


def whole_vector_multiplications(text: str) -> int:
    """How many fused multiply-adds of whole vectors a kernel's code has."""
    return sum(bool(_FUSED.match(line.strip())) for line in text.splitlines())


def _functions(text: str) -> list[list[str]]:
    """Labels and instructions of each function, without directives."""
    functions: list[list[str]] = []
    for line in map(str.strip, text.splitlines()):
        if _FUNCTION.fullmatch(line):
            functions.append([])
        elif functions and (_LABEL.fullmatch(line) or not line.startswith(".")):
            functions[-1].append(line)
    return functions


def _innermost_loops(lines: Sequence[str]) -> list[Loop]:
    labels = {match[1]: i for i, line in enumerate(lines) if (match := _LABEL.fullmatch(line))}
    ends: dict[int, int] = {}
    for i, line in enumerate(lines):
        if (branch := _BRANCH.match(line)) and labels.get(branch[1], i) < i:
            ends[labels[branch[1]]] = i  # of several branches back to one label the last one closes the loop
    stack = _STACK_OR_FRAME if any(_FRAME_POINTER.match(line) for line in lines) else _STACK
    return [
        _loop(lines[first : last + 1], stack)
        for first, last in ends.items()
        if not any(first < other and end <= last for other, end in ends.items())
    ]


def _loop(lines: Sequence[str], stack: re.Pattern[str]) -> Loop:
    instructions = tuple(line for line in lines if not line.endswith(":"))
    fused = sum(bool(_FUSED.match(line)) for line in instructions)
    spills = tuple(line for line in instructions if stack.search(line) and _VECTOR_REGISTER.search(line))
    return Loop(instructions, fused, _sums(instructions), spills)


def _sums(instructions: Sequence[str]) -> frozenset[str]:
    added = {_written(line) for line in instructions if _FUSED.match(line)}
    others = {_written(line) for line in instructions if not _FUSED.match(line)}
    others |= {match[1] for line in instructions if (match := _SECOND_OF_PAIR.match(line))}
    return frozenset(added - others)


def _written(line: str) -> str:
    """The vector register that an instruction writes, by its number; empty if there is none."""
    operands = line.partition("\t")[2]
    operand = operands.rpartition(",")[2] if "%" in operands else operands.partition(",")[0]
    number = re.fullmatch(r"%[xyz]mm(\d+)|[qv](\d+)(?:\.\w+)?", operand.strip())
    return (number[1] or number[2]) if number and not line.startswith(("st", "vcmp")) else ""
