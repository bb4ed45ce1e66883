"""What a kernel's latency is made of: arithmetic, bytes from the caches and from memory, and the call itself.

Each term is what it would take on its own, at the limits of the core and its memory. How much of it is seen in a
latency is learned (`aap_hw.estimate.correction`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from tvm import tirx

from aap_hw.compile.code.function import CONSTANTS, KernelFunction
from aap_hw.compile.families.slow import is_slow
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.precision import BYTES
from aap_hw.compile.keys.target import CpuTarget
from aap_hw.compile.library.build import build_kernel
from aap_hw.device.profile import BoardSpec
from aap_hw.errors import UserError
from aap_hw.estimate.cores import Core
from aap_hw.estimate.reading import Loop, Program, read_program
from aap_hw.estimate.traffic import Traffic, turns_of

# Instructions that count a loop's turns and go back to its beginning.
OF_A_TURN = 3
# A call, in which TVM's virtual machine checks arguments, is counted in thousands of cycles.
CYCLES_OF_A_CALL = 1000


@dataclass(frozen=True)
class Terms:
    """Microseconds of each part of one call.

    Attributes
    ----------
    arithmetic : of the thread that has most to do.
    caches : to bring what the first cache lacks from the second, and what that lacks from the third.
    memory : to bring what no cache has.
    call : until the kernel begins.
    threads : until other threads have begun and ended.
    """

    arithmetic: float
    caches: float
    memory: float
    call: float
    threads: float


@dataclass(frozen=True)
class Machine:
    """A core with its caches.

    Attributes
    ----------
    copies : how many sets of weights a kernel is timed with in turn.
    is_apart : whether each thread has its part of the cache that all share and fetches into it for itself, rather than
        that threads keep step, and what one has fetched is there for all. The truth lies between.
    """

    core: Core
    board: BoardSpec
    copies: int
    is_apart: bool = False

    def terms(self, address: Address, target: CpuTarget) -> Terms:
        """The terms of a kernel.

        Raises
        ------
        UserError : the kernel has no code for the target, or none of ours.
        """
        if is_slow(address.key):
            raise UserError(
                f"the kernel {address.key} cannot be estimated: TVM lowers it without a schedule of this project; "
                "profile the network on the board"
            )
        function = build_kernel(address, target)
        program = read_program(function.code, target, _extents(function))
        cycles = _Cycles(self.core, target.threads)
        cycles.add(program.whole, 1.0, 1.0)
        caches_us, memory_us = self._moved_us(program, function, target.threads)
        per_us = self.board.clock_ghz * 1e3
        return Terms(
            cycles.busy / per_us, caches_us, memory_us, CYCLES_OF_A_CALL / per_us, cycles.forks * self.board.fork_us
        )

    def _moved_us(self, program: Program, function: KernelFunction, threads: int) -> tuple[float, float]:
        """Microseconds for bytes from the caches, and for those from memory."""
        board, per_us = self.board, self.board.clock_ghz * 1e3
        traffic = Traffic(program, threads)
        kept = sum(_bytes(function, True)) * self.copies + sum(_bytes(function, False))
        *own, last = (kib << 10 for kib in (board.l1_kib, board.l2_kib, board.l3_kib) if kib)  # which all cores share
        # What is there from the call before need not be fetched.
        into = [traffic.bytes_into(size, is_shared=False) if kept > size else 0.0 for size in own]
        if self.is_apart:
            from_memory = threads * traffic.bytes_into(last / threads, is_shared=False)
            into[-1] *= threads  # as what serves it serves one after another
        else:
            from_memory = traffic.bytes_into(last, is_shared=True)
        per_cycle = self.core.l2_bytes, self.core.l3_bytes
        cycles = sum(moved / rate for moved, rate in zip(into, per_cycle, strict=False))  # there may be no third cache
        return cycles / per_us, (from_memory if kept > last else 0.0) / board.memory_gb_s / 1e3


class _Cycles:
    """Cycles of the thread that has most to do."""

    def __init__(self, core: Core, threads: int) -> None:
        self._core, self._threads = core, threads
        self.busy = self.forks = 0.0

    def add(self, loop: Loop, times: float, share: float) -> None:
        """A loop that runs so many times in all, of which one thread has a share."""
        if loop.is_parallel and self._threads > 1 and loop.extent:
            self.forks += times
            share *= turns_of(loop, self._threads) / loop.extent
        turns = times * loop.extent
        self.busy += turns * share * self._turn(loop)
        for each in loop.inside:
            self.add(each, turns, share)

    def _turn(self, loop: Loop) -> float:
        """Cycles of one turn, by whatever limits it most."""
        core, counting = self._core, OF_A_TURN if loop.variable is not None else 0
        instructions = loop.multiply_adds + loop.arithmetic + loop.loads + loop.stores + counting
        return max(
            instructions / core.width,
            loop.multiply_adds / core.multiply_adds,
            (loop.multiply_adds + loop.arithmetic) / core.arithmetic,
            loop.loads / core.loads,
            loop.stores / core.stores,
            (loop.loads + loop.stores) / core.accesses,
            loop.chain * core.latency,
        )


def _bytes(function: KernelFunction, are_constants: bool) -> Iterator[int]:
    """Bytes of the arguments that are constants, or of the others and the output."""
    for argument in function.arguments:
        if (argument.role in CONSTANTS) == are_constants:
            yield math.prod(argument.shape) * BYTES[argument.type]
    if not are_constants:
        yield math.prod(function.output_shape) * BYTES[function.output_type]


def _extents(function: KernelFunction) -> dict[tirx.Var, int]:
    """Values of the variables in the shapes of a kernel's arguments."""
    found: dict[tirx.Var, int] = {}
    for buffer, argument in zip(function.code.params, function.arguments, strict=False):  # the output is the last one
        found |= {
            length: value
            for length, value in zip(buffer.shape, argument.shape, strict=True)
            if isinstance(length, tirx.Var)
        }
    return found
