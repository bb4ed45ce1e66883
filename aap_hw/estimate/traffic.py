"""Bytes that a kernel's loops bring into a cache of a given size, by which of its loops fit there.

A loop whose turn fits fetches what all its turns touch once: what neighbouring turns share is still there. The turns
of one that does not fit fetch their own, one after another. Threads take turns of a parallel loop side by side. In a
cache that they share, what their turns have in common is fetched for all of them; in one of its own, each fetches it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from aap_hw.estimate.indices import Ranges, range_of
from aap_hw.estimate.reading import Access, Loop, Program

# What is written is fetched first, and goes back later.
STORED = 2


@dataclass(frozen=True)
class Piece:
    """What is touched of one buffer.

    Attributes
    ----------
    kept, moved : bytes that lie in a cache, and bytes that go in or out: stores do both.
    variables : of the loops that the place depends on.
    is_scratch : whether each thread has one of its own.
    """

    kept: float
    moved: float
    variables: frozenset[int]
    is_scratch: bool


@dataclass(frozen=True)
class _Cache:
    """A cache, and the threads that fill it at the place at hand, whose parallel loops have these ``variables``."""

    bytes: float
    is_shared: bool
    threads: int = 1
    variables: frozenset[int] = frozenset()

    def times(self, piece: Piece) -> int:
        """How many threads put something of their own there."""
        is_apart = piece.is_scratch or not piece.variables.isdisjoint(self.variables)
        return self.threads if self.is_shared and is_apart else 1


class Traffic:
    """What the loops of a kernel touch, found once for all caches."""

    def __init__(self, program: Program, threads: int) -> None:
        self._program, self._threads = program, threads
        self._ranges_of_thread = dict(program.ranges)
        for loop in _loops(program.whole):
            if loop.is_parallel and loop.variable is not None:
                first, _ = program.ranges[loop.variable]
                self._ranges_of_thread[loop.variable] = first, first + max(1.0, turns_of(loop, threads)) - 1
        self._touched: dict[tuple[int, bool, bool], list[Piece]] = {}

    def bytes_into(self, cache_bytes: float, *, is_shared: bool) -> float:
        """Bytes that a call moves between a cache and what lies behind it, if the cache is empty before the call.

        Of a cache that is not shared those of the thread that has most to do.
        """
        return self._moved(self._program.whole, _Cache(cache_bytes, is_shared))

    def _moved(self, loop: Loop, cache: _Cache) -> float:
        if loop.is_parallel and loop.variable is not None and self._threads > 1:
            threads = min(self._threads, max(1, int(loop.extent)))
            cache = replace(cache, threads=threads, variables=cache.variables | {loop.variable})
        if (
            sum(piece.kept * cache.times(piece) for piece in self._pieces(loop, cache, of_all_turns=False))
            <= cache.bytes
        ):
            pieces = self._pieces(loop, cache, of_all_turns=True)
            return min(1.0, loop.extent) * sum(piece.moved * cache.times(piece) for piece in pieces)  # less of a branch
        own = sum(
            piece.moved * cache.times(piece)
            for access in loop.accesses
            for piece in [_piece([access], access.bytes, self._program)]
        )
        return turns_of(loop, self._threads) * (own + sum(self._moved(each, cache) for each in loop.inside))

    def _pieces(self, loop: Loop, cache: _Cache, *, of_all_turns: bool) -> list[Piece]:
        """What a loop touches in one turn, or in all turns of one thread."""
        place = id(loop), cache.is_shared, of_all_turns
        if place not in self._touched:
            ranges = self._program.ranges if cache.is_shared else self._ranges_of_thread
            turns = turns_of(loop, self._threads) if of_all_turns else 1.0
            self._touched[place] = list(_touched(self._program, loop, turns, ranges))
        return self._touched[place]


def turns_of(loop: Loop, threads: int) -> float:
    """Turns of a loop in the thread that has most of them."""
    return float(math.ceil(loop.extent / threads)) if loop.is_parallel else loop.extent


def _touched(program: Program, loop: Loop, turns: float, within: Ranges) -> Iterator[Piece]:
    """Of each buffer, what so many turns of a loop touch, while those inside turn within their ranges."""
    free = set(_variables(loop))
    ranges = {
        name: (low, high) if name in free else (math.floor((low + high) / 2),) * 2
        for name, (low, high) in within.items()
    }
    if loop.variable is not None:
        low, high = within[loop.variable]
        first = math.floor((low + high) / 2) if turns == 1 else low
        ranges[loop.variable] = first, first + max(1.0, turns) - 1
    accesses: dict[int, list[Access]] = defaultdict(list)
    for access in _accesses(loop):
        accesses[access.buffer].append(access)
    for some in accesses.values():
        ends = [range_of(access.index, ranges) for access in some]
        span = max(high + a.bytes for (_, high), a in zip(ends, some, strict=True)) - min(low for low, _ in ends)
        at_most = sum(
            access.bytes * math.prod(ranges[name][1] - ranges[name][0] + 1 for name in access.variables & free)
            for access in some
        )
        yield _piece(some, min(span, at_most), program)


def _piece(accesses: Sequence[Access], size: float, program: Program) -> Piece:
    return Piece(
        size,
        size * (STORED if any(access.is_store for access in accesses) else 1),
        frozenset[int]().union(*(access.variables for access in accesses)),
        accesses[0].buffer in program.scratch,
    )


def _loops(loop: Loop) -> Iterator[Loop]:
    """A loop and all inside it."""
    yield loop
    for each in loop.inside:
        yield from _loops(each)


def _accesses(loop: Loop) -> Iterator[Access]:
    for each in _loops(loop):
        yield from each.accesses


def _variables(loop: Loop) -> Iterator[int]:
    for each in _loops(loop):
        if each.variable is not None:
            yield each.variable
