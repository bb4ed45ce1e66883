"""Bytes that a kernel's loops bring into a cache of a given size, by which of its loops fit there.

A loop whose turn fits fetches what all its turns touch once: what neighbouring turns share is still there. The turns
of one that does not fit fetch their own, one after another.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

from aap_hw.estimate.indices import range_of
from aap_hw.estimate.reading import Access, Loop, Program

# What is written is fetched first, and goes back later.
STORED = 2


class Traffic:
    """What the loops of a kernel touch, found once for all caches."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._touched: dict[tuple[int, bool], float] = {}

    def bytes_into(self, cache_bytes: float) -> float:
        """Bytes that a call moves between a cache and what lies behind it, if the cache is empty before the call."""
        return self._moved(self._program.whole, cache_bytes)

    def _moved(self, loop: Loop, cache_bytes: float) -> float:
        if self._bytes(loop, of_all_turns=False) <= cache_bytes:
            return self._bytes(loop, of_all_turns=True) * min(1.0, loop.extent)  # less of a branch
        own = sum(access.bytes * (STORED if access.is_store else 1) for access in loop.accesses)
        return loop.extent * (own + sum(self._moved(each, cache_bytes) for each in loop.inside))

    def _bytes(self, loop: Loop, *, of_all_turns: bool) -> float:
        """Bytes that lie in a cache after one turn of a loop, or that move for all of them."""
        known = self._touched.get((id(loop), of_all_turns))
        if known is None:
            known = sum(touched(self._program, loop, of_all_turns=of_all_turns))
            self._touched[id(loop), of_all_turns] = known
        return known


def touched(program: Program, loop: Loop, *, of_all_turns: bool) -> Iterator[float]:
    """Of each buffer, the bytes that a loop touches in one turn; or in all, stores counted twice."""
    free = set(_variables(loop)) | ({loop.variable} if of_all_turns and loop.variable is not None else set())
    ranges = {
        name: (low, high) if name in free else (math.floor((low + high) / 2),) * 2
        for name, (low, high) in program.ranges.items()
    }
    ends: dict[int, list[float]] = defaultdict(lambda: [math.inf, -math.inf])
    at_most: dict[int, float] = defaultdict(float)
    stored: set[int] = set()
    for access in _accesses(loop):
        low, high = range_of(access.index, ranges)
        first, last = ends[access.buffer]
        ends[access.buffer] = [min(first, low), max(last, high + access.bytes)]
        turns = math.prod(ranges[name][1] - ranges[name][0] + 1 for name in access.variables & free)
        at_most[access.buffer] += turns * access.bytes
        if access.is_store and of_all_turns:
            stored.add(access.buffer)
    for buffer, (first, last) in ends.items():
        yield min(last - first, at_most[buffer]) * (STORED if buffer in stored else 1)


def _accesses(loop: Loop) -> Iterator[Access]:
    yield from loop.accesses
    for each in loop.inside:
        yield from _accesses(each)


def _variables(loop: Loop) -> Iterator[int]:
    for each in loop.inside:
        if each.variable is not None:
            yield each.variable
        yield from _variables(each)
