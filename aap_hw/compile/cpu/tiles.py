"""Register tiles: sums for a few pixels times a few vectors of channels, which stay in registers.

Where an instruction multiplies a vector by one value of another, one load brings the values of a pixel for several
steps of the reduction. Elsewhere each is loaded into all lanes of a register.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.cpu.emit import AVX512_BYTES, Steps, constant, lanes_for, registers, scratch, spread, store, vector
from aap_hw.compile.keys.precision import FLOAT32
from aap_hw.compile.keys.target import CpuTarget

# Cost of a load in cycles; the rest of it is hidden behind arithmetic.
COST_OF_LOAD = 0.15
# Independent accumulators that keep two fused multiply-add units busy over their latency of about five cycles.
ACCUMULATORS_FOR_FULL_RATE = 10


@dataclass(frozen=True)
class Costs:
    """What else a tile costs, in units of what is done once for each accumulator.

    Attributes
    ----------
    load : to load a vector, and to bring it into the form that is multiplied.
    accumulators : fewest accumulators that keep the arithmetic busy.
    run : steps for which one load brings the values of a pixel.
    placing : to put a pixel's value of one step where it is multiplied, if that takes an instruction.
    parting : of each step, to store a pixel apart from others, as vectors leave a tile four at a time.
    """

    load: float = COST_OF_LOAD
    accumulators: int = ACCUMULATORS_FOR_FULL_RATE
    run: int = 1
    placing: float = 0.0
    parting: float = 0.0


FUSED = Costs()
"""Of fused multiply-adds."""


@dataclass(frozen=True)
class Tile:
    """Register tile: ``pixels`` x ``vectors`` accumulators of ``lanes`` output channels each."""

    pixels: int
    vectors: int
    lanes: int

    @property
    def channels(self) -> int:
        """Output channels of one tile."""
        return self.vectors * self.lanes

    def cycles(self, pixels: int, channels: int, costs: Costs = FUSED) -> float:
        """Estimated cycles that one step of a reduction takes for ``pixels`` x ``channels`` outputs.

        A tile takes a cycle for each accumulator (or each load where there are more of these), and never less than the
        latency of the arithmetic. Work that the last tiles repeat counts.
        """
        accumulators, loads = self.pixels * self.vectors, self.pixels / costs.run + self.vectors
        step = max(accumulators, loads, costs.accumulators) + costs.load * loads + costs.placing * self.pixels
        step += costs.parting * self.pixels * (self.vectors % 4 > 0)
        return step * Steps(pixels, self.pixels).count * Steps(channels, self.channels).count


def run_of(depth: int, target: CpuTarget) -> int:
    """Steps for which one load brings a pixel's values in float32, if ``depth`` steps read neighbours; often 1."""
    return target.lanes if target.multiplies_by_lane and depth >= target.lanes else 1


@functools.cache
def choose_tile(pixels: int, channels: int, target: CpuTarget, type_: str = FLOAT32, run: int = 1) -> Tile:
    """The tile that needs the fewest cycles for ``pixels`` x ``channels`` outputs, of those that fit the registers."""
    # Beside the accumulators: a vector of weights each, and one pixel's value, or the values of all for some steps.
    spare = target.registers + (target.vector_bytes < AVX512_BYTES and run == 1)
    lanes = lanes_for(channels, target, type_)

    def fits(pixels: int, vectors: int) -> bool:
        return pixels * vectors + vectors + (1 if run == 1 else pixels) < spare

    return cheapest_tile(pixels, channels, lanes, target.registers, fits, Costs(run=run))


def cheapest_tile(
    pixels: int, channels: int, lanes: int, most: int, fits: Callable[[int, int], bool], costs: Costs = FUSED
) -> Tile:
    """The tile of vectors of so many lanes that needs the fewest cycles, of those that ``fits`` and has ``most`` of."""
    candidates = [
        Tile(p, v, lanes)
        for v in range(1, min(channels // lanes, most) + 1)
        for p in range(1, min(pixels, most) + 1)
        if fits(p, v)
    ]
    return min(candidates, key=lambda tile: (tile.cycles(pixels, channels, costs), -tile.pixels))


def multiplied_and_added(total: Any, value: Any, weight: Any) -> Any:
    """The sum with a product added."""
    return total + value * weight


def lane_in_all(values: Any, i: int, lanes: int) -> Any:
    """One lane of a vector in all lanes of another, which LLVM makes part of the multiplication."""
    return tirx.Shuffle([values], [i] * lanes)


def accumulate(
    tile: Tile,
    reduction: Sequence[Any],
    pixel: Callable[..., Any],
    weight: Callable[..., Any],
    type_: str,
    *,
    of_vectors: bool = False,
    run: int = 1,
    lane: Callable[[Any, int, int], Any] = lane_in_all,
    add: Callable[[Any, Any, Any], Any] = multiplied_and_added,
    begin: Callable[[int], Any] | None = None,
    in_pairs: bool = False,
) -> Callable[..., Any]:
    """Sum pixel x weight over the loops of ``reduction`` in registers.

    ``pixel(*indices, p)`` is the scalar of pixel p, ``weight(*indices, v)`` the v-th vector of weights, both of the
    type of the sums, or whatever ``add(sum, pixel, weight)`` takes. With ``of_vectors`` pixels are vectors, too. With a
    ``run`` a pixel is the vector of its scalars at so many steps of the innermost loop, and of what lies behind them if
    that loop is shorter; ``lane`` makes what is multiplied of such a vector, a step, and the lanes of a sum. A turn of
    that loop does one run, or two ``in_pairs``, which saves what the loop itself takes. Sums begin with zeros, or with
    the vector ``begin(v)``. Returns a function of p, v and a lane that reads the sum of pixel p and vector v there, or
    the whole vector without a lane.
    """
    # LLVM sees through the stack. What TVM allocates it fills before the loops, and reads behind them.
    sums = (registers if run == 1 else scratch)(tile.pixels * tile.vectors * tile.lanes, type_)

    def at(p: int, v: int) -> int:
        return (p * tile.vectors + v) * tile.lanes

    def add_step(indices: Sequence[Any], value_of: Callable[[int], Any]) -> None:
        weights = [T.bind(weight(*indices, v)) for v in range(tile.vectors)]
        for p in range(tile.pixels):
            value = T.bind(value_of(p))
            for v in range(tile.vectors):
                index = at(p, v)
                store(sums, add(vector(sums, index, tile.lanes), value, weights[v]), index, tile.lanes)

    def add_run(around: Sequence[Any], start: Any, places: range) -> None:
        """The steps at some places of the run that begins at ``start``."""
        values = [T.bind(pixel(*around, start, p)) for p in range(tile.pixels)]

        def lanes_at(i: int) -> Callable[[int], Any]:
            return lambda p: lane(values[p], i, tile.lanes)

        for i in places:
            add_step((*around, start + i), lanes_at(i))

    first = [T.bind(begin(v)) for v in range(tile.vectors)] if begin else None
    for p in range(tile.pixels):
        for v in range(tile.vectors):
            store(sums, first[v] if first else constant(0.0, tile.lanes, type_), at(p, v), tile.lanes)
    with ExitStack() as loops:
        if run == 1:
            indices = [loops.enter_context(T.serial(0, extent)) for extent in reduction]
            add_step(indices, lambda p: pixel(*indices, p) if of_vectors else spread(pixel(*indices, p), tile.lanes))
        else:
            *outer, depth = reduction
            around = [loops.enter_context(T.serial(0, extent)) for extent in outer]
            turns = depth // run
            # LLVM would write out a loop of one turn, and load all weights before it.
            pairs = turns // 2 if in_pairs and turns >= 4 else 0
            if pairs:
                with T.serial(0, pairs) as turn:
                    for i in range(2):
                        add_run(around, T.bind((2 * turn + i) * run), range(run))
            if left := turns - 2 * pairs:
                with T.serial(0, left) as turn:
                    add_run(around, T.bind((2 * pairs + turn) * run), range(run))
            if rest := depth % run:
                start = max(depth - run, 0)
                add_run(around, start, range(depth - rest - start, depth - start))

    def of(p: int, v: int, lane: Any = None) -> Any:
        return vector(sums, at(p, v), tile.lanes) if lane is None else sums[at(p, v) + lane]

    return of
