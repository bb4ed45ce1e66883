"""What an emulated program executed: its instructions by kind, by function, and its innermost loops.

Reads what `_count_blocks.c` wrote, and lets LLVM's tools decode it. Kinds are told by name and operands:

    multiply-adds     of whole vectors, in float32 or integers; a product that is not added counts as ``products``
    loads and stores  of vector registers
    rest              everything else
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import tempfile
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MULTIPLY_ADDS, PRODUCTS, MEMORY, REST = KINDS = ("multiply_adds", "products", "loads_and_stores", "rest")

_VECTOR = re.compile(r"\bv\d+\.\d*[bhsd]")
_REGISTER = re.compile(r"\b([qdshb]\d+|v\d+\.)")
_ADDED = re.compile(r"f?ml[as]l?2?|[su]ml[as]l2?|(us|su|[su])dot|(us|[su])mmla|bf(dot|mmla)|fmlal2?")
_PRODUCT = re.compile(r"fmulx?|mul|[su]mull2?|sqr?dmulh|sqdmull2?")
_LINE = re.compile(r"\s*[0-9a-f]+:\s+(\S.*)")
LONGEST_LOOP = 4096
"""Instructions in a loop at most."""
TURNS = 200
"""Of a loop, by which LLVM tells what one takes."""
REGISTERS_WRITTEN = 24


@dataclass(frozen=True)
class Executed:
    """An instruction at an address of a program, and how often it ran."""

    address: int
    word: int
    count: int
    text: str

    @property
    def kind(self) -> str:
        """Which of ``KINDS`` it is."""
        return kind_of(self.text)


@dataclass(frozen=True)
class Loop:
    """A loop without another one inside: its instructions in order, and how often it turned."""

    body: tuple[Executed, ...]
    turns: int

    @property
    def multiply_adds(self) -> int:
        """Vector multiply-adds of a turn, products that something else adds up among them."""
        return sum(each.kind in (MULTIPLY_ADDS, PRODUCTS) for each in self.body)

    @property
    def executed(self) -> int:
        """Instructions that ran in all turns."""
        return sum(each.count for each in self.body)

    @property
    def is_dense(self) -> bool:
        """Whether it adds up products over its turns, more of them than it loads: a dense kernel does."""
        adding = {_written(each.text)[0] for each in self.body if _is_added(each.text)}
        others = {name for each in self.body if not _is_added(each.text) for name in _written(each.text)}
        loads = sum(each.kind == MEMORY for each in self.body)
        return len(adding - others) > 1 and self.multiply_adds > loads


def kind_of(text: str) -> str:
    """The kind of an instruction as LLVM writes it."""
    name, _, operands = text.partition("\t")
    if name.startswith(("ld", "st")) and _REGISTER.search(operands.partition("[")[0]):
        return MEMORY
    if not _VECTOR.search(operands):
        return REST
    if _ADDED.fullmatch(name):
        return MULTIPLY_ADDS
    return PRODUCTS if _PRODUCT.fullmatch(name) else REST


def _is_added(text: str) -> bool:
    """Whether a vector instruction adds to what its register held."""
    return kind_of(text) == MULTIPLY_ADDS or text.startswith(("sadalp", "uadalp"))


def _written(text: str) -> list[str]:
    """Numbers of the vector registers that an instruction writes."""
    name, _, operands = text.partition("\t")
    if name.startswith("st"):
        return []
    end = "[" if name.startswith("ld") else ","
    return re.findall(r"\b[vqdshb](\d+)", operands.partition(end)[0])


def counted(instructions: Sequence[Executed]) -> Counter[str]:
    """Executed instructions of each kind."""
    found = Counter(dict.fromkeys(KINDS, 0))
    for each in instructions:
        found[each.kind] += each.count
    return found


def executed(path: Path) -> list[Executed]:
    """All that ran between the marks, by address; two programs at one address after each other stay apart."""
    counts: Counter[tuple[int, int]] = Counter()
    for line in path.read_text().splitlines():
        address, runs, words = line.split()
        for i in range(0, len(words), 8):
            counts[int(address, 16) + i // 2, int(words[i : i + 8], 16)] += int(runs)
    texts = decoded(sorted({word for _, word in counts}))
    return [Executed(address, word, count, texts[word]) for (address, word), count in sorted(counts.items())]


def decoded(words: Sequence[int]) -> dict[int, str]:
    """What LLVM makes of instruction words: name and operands with a tab between."""
    with tempfile.TemporaryDirectory() as folder:
        source, code = Path(folder) / "words.s", Path(folder) / "words.o"
        source.write_text("".join(f".inst {word:#x}\n" for word in words))
        tool("llvm-mc", "-triple=aarch64-linux-gnu", "-filetype=obj", source, "-o", code)
        text = tool("llvm-objdump", "-d", "-z", "--no-show-raw-insn", "--mattr=+all", code)
    lines = [match[1] for match in map(_LINE.fullmatch, text.splitlines()) if match]
    assert len(lines) == len(words), "LLVM's disassembler skipped an instruction"
    return {word: _as_read(word, line) for word, line in zip(words, lines, strict=True)}


def _as_read(word: int, line: str) -> str:
    """A line as LLVM's other tools read it: without remarks, and a branch goes to itself, not to another line."""
    line = re.sub(r"\s*(<.*>|//.*)$", "", line)
    return line if branch_offset(word) is None else re.sub(r"\b0x[0-9a-f]+$", ".", line)


def tool(name: str, *arguments: str | Path, stdin: str = "") -> str:
    """What one of LLVM's tools prints."""
    command = [found_tool(name), *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{name} fails: {done.stderr.strip()}"
    return done.stdout


@functools.cache
def found_tool(name: str) -> str:
    """The newest of LLVM's tools of a name; Debian keeps all but one version out of the path.

    Raises
    ------
    FileNotFoundError : there is none.
    """
    versions = sorted(
        Path("/usr/lib").glob(f"llvm-*/bin/{name}"), key=lambda path: int(path.parts[3][5:].split(".")[0])
    )
    found = str(versions[-1]) if versions else shutil.which(name)
    if found is None:
        raise FileNotFoundError(name)
    return found


def loops(instructions: Sequence[Executed]) -> list[Loop]:
    """The innermost loops, those that executed most first."""
    places = {each.address: i for i, each in enumerate(instructions)}
    ends: dict[int, int] = {}
    for i, each in enumerate(instructions):
        offset = branch_offset(each.word)
        if offset is None or not -4 * LONGEST_LOOP <= offset <= 0:
            continue
        first = places.get(each.address + offset)
        if first is not None and each.address - instructions[first].address == 4 * (i - first):
            ends[first] = max(i, ends.get(first, i))
    inner = [
        (first, last)
        for first, last in ends.items()
        if not any(first <= other and end <= last and (other, end) != (first, last) for other, end in ends.items())
    ]
    found = [Loop(tuple(instructions[first : last + 1]), instructions[last].count) for first, last in inner]
    return sorted(found, key=lambda loop: -loop.executed)


def branch_offset(word: int) -> int | None:
    """How far a branch within a function goes, in bytes; None of another instruction."""
    if word >> 26 == 0b000101:
        return _signed(word, 0, 26)
    if word >> 24 == 0x54 or (word >> 25) & 0x3F == 0b011010:
        return _signed(word, 5, 19)
    return _signed(word, 5, 14) if (word >> 25) & 0x3F == 0b011011 else None


def _signed(word: int, start: int, bits: int) -> int:
    value = word >> start & (1 << bits) - 1
    return 4 * (value - (1 << bits) if value >> bits - 1 else value)


@dataclass(frozen=True)
class Function:
    """A function of a library: where it begins in memory, and what of it ran."""

    name: str
    instructions: tuple[Executed, ...]


def functions(instructions: Sequence[Executed], library: Path, maps: Path) -> list[Function]:
    """What ran of a library, function by function, in the order of their addresses.

    ``maps`` says where the emulated program's files lay in memory. The library must have its names.
    """
    base, end = _range(maps, library)
    names = _names(library)
    addresses = [each.address - base for each in instructions]
    stops = [start for start, _ in names[1:]] + [end - base]
    ranges = [
        (bisect_left(addresses, start), bisect_left(addresses, stop))
        for (start, _), stop in zip(names, stops, strict=True)
    ]
    return [
        Function(name, tuple(instructions[first:last]))
        for (_, name), (first, last) in zip(names, ranges, strict=True)
        if last > first
    ]


def _range(maps: Path, library: Path) -> tuple[int, int]:
    places = [line.split()[0].split("-") for line in maps.read_text().splitlines() if line.endswith(str(library))]
    return int(places[0][0], 16), int(places[-1][1], 16)


def _names(library: Path) -> list[tuple[int, str]]:
    lines = (line.split() for line in tool("llvm-nm", "--defined-only", library).splitlines())
    return sorted({int(address, 16): name for address, kind, name in lines if kind in "tT"}.items())


def cycles(body: Sequence[Executed], cpu: str) -> float:
    """Cycles of a turn of a loop, by LLVM's model of a CPU's pipeline, with all that it loads in the first cache."""
    return _cycles(tuple(each.text for each in body), cpu)


@functools.cache
def _cycles(body: tuple[str, ...], cpu: str) -> float:
    target = ("-mtriple=aarch64-linux-gnu", f"-mcpu={cpu}", "-mattr=+all")
    said = tool("llvm-mca", *target, f"-iterations={TURNS}", "-resource-pressure=false", stdin="\n".join(body) + "\n")
    return int(re.search(r"Total Cycles:\s+(\d+)", said)[1]) / TURNS  # type: ignore[index]


def share_of_peak(loop: Loop, cpu: str) -> float:
    """Of the multiply-adds that the CPU's pipeline could do while the loop makes a turn, the share that it does.

    What it could do follows from the model, too: the same instructions without any other and without waiting.
    """
    adding = [each.text for each in loop.body if each.kind in (MULTIPLY_ADDS, PRODUCTS)]
    copies = -(-REGISTERS_WRITTEN // len(adding))
    return _cycles(tuple(_independent(adding * copies)), cpu) / copies / cycles(loop.body, cpu)


def _independent(texts: Sequence[str]) -> Iterator[str]:
    """The instructions with other registers: each writes its own, and reads two that nobody writes."""
    for i, text in enumerate(texts):
        name, operands = text.split("\t")
        written, *read = re.split(r", (?![^\[]*\])", operands)
        renamed = [
            re.sub(r"v\d+", f"v{8 + i % REGISTERS_WRITTEN}", written),
            *(re.sub(r"v\d+", f"v{n}", each) for n, each in enumerate(read)),
        ]
        yield f"{name}\t{', '.join(renamed)}"
