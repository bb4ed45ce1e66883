"""What a table says of a whole network: its latency at a width plan, and the costs that a policy chooses by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from aap_hw.compile.families.slow import is_slow
from aap_hw.compile.front.network import Kernel, Network
from aap_hw.compile.keys.key import KernelKey
from aap_hw.lut.calibrating import ALONE, Slowdown
from aap_hw.lut.enumeration import distinct_widths
from aap_hw.lut.table import LatencyTable
from aap_hw.policy import KernelCost
from aap_hw.policy.problem import FloatArray

CostOfKernel = Callable[[Kernel, Mapping[str, int]], float]


@dataclass(frozen=True)
class KernelLatency:
    """One kernel of a network at its widths, with what the table says of it."""

    kernel: str
    key: str
    width_in: int
    width_out: int
    latency_us: float
    interpolated: bool


def kernel_latencies(network: Network, widths: Mapping[str, int], table: LatencyTable) -> list[KernelLatency]:
    """Latency of every kernel that a width plan leaves of a network, in calling order.

    Raises
    ------
    MissingKernelError : the table lacks one of them.
    """
    rows = []
    for kernel in network.kernels:
        if kernel.is_removed(widths):
            continue
        address = kernel.at(widths)
        found = table.latency(address, network.precision)
        ends = address.width_in, address.width_out
        rows.append(KernelLatency(kernel.name, str(address.key), *ends, found.us, found.interpolated))
    return rows


def slow_share(rows: Sequence[KernelLatency]) -> float:
    """Share of a network's time, between 0 and 1, that its kernels without a schedule of ours take."""
    slow = math.fsum(row.latency_us for row in rows if is_slow(KernelKey.parse(row.key)))
    return slow / math.fsum(row.latency_us for row in rows)


def predict_us(network: Network, widths: Mapping[str, int], table: LatencyTable, slowdown: Slowdown = ALONE) -> float:
    """Latency of a network under a width plan, in microseconds: of the sum over its kernels, what is seen of it."""
    return slowdown.network_us(sum(row.latency_us for row in kernel_latencies(network, widths, table)))


def latency_costs(network: Network, candidates: Mapping[str, Sequence[int]], table: LatencyTable) -> list[KernelCost]:
    """Each kernel's latency in microseconds as a function of its groups' candidate widths; see ``kernel_costs``.

    Raises
    ------
    MissingKernelError : the table lacks a kernel.
    """
    return kernel_costs(
        network, candidates, lambda kernel, widths: table.latency(kernel.at(widths), network.precision).us
    )


def kernel_costs(network: Network, candidates: Mapping[str, Sequence[int]], cost: CostOfKernel) -> list[KernelCost]:
    """What each kernel costs, in any unit, by its groups' candidate widths; 0 where a width of 0 removes it.

    A kernel that reads or makes many groups side by side becomes one cost for each of them, which together are at least
    its own: exactly that where it grows by the same amount with every channel, as multiply-accumulates do.
    """
    return [part for kernel in network.kernels for part in cost_parts(kernel, candidates, cost)]


def cost_parts(
    kernel: Kernel, candidates: Mapping[str, Sequence[int]], cost: CostOfKernel, *, exactly: int = 2
) -> list[KernelCost]:
    """The costs of one kernel, as of `kernel_costs`; how many, and of which groups, follows from its widths alone.

    If they depend on more groups than ``exactly``, groups that add up to a width have a cost each.
    """

    def of_present(kernel: Kernel, widths: Mapping[str, int]) -> float:
        return 0.0 if kernel.is_removed(widths) else cost(kernel, widths)

    # A group with one candidate is a constant; only free groups make a dimension.
    names = kernel.groups
    free = tuple(name for name in names if len(candidates[name]) > 1)
    if len(free) > exactly:
        return list(_costs_of_sum(kernel, free, candidates, of_present))
    plans = [dict(zip(names, widths, strict=True)) for widths in product(*(candidates[name] for name in names))]
    costs = [of_present(kernel, widths) for widths in plans]
    return [KernelCost(free, np.reshape(costs, [len(candidates[name]) for name in free]))]


def _costs_of_sum(
    kernel: Kernel, free: Sequence[str], candidates: Mapping[str, Sequence[int]], cost: CostOfKernel
) -> Iterator[KernelCost]:
    """Costs of a kernel by a sum of groups: for each width of the other side a line that no sum costs more than.

    If the other side is a sum, too, where these lines begin and how they rise follow straight lines themselves.
    """
    summed, others = kernel.sides(free)
    more = {
        name: times * (np.array(candidates[name]) - candidates[name][0]) for name, times in {**summed, **others}.items()
    }
    fixed = {name: candidates[name][0] for name in kernel.groups if name not in free}

    def added(side: Mapping[str, int], widths: Mapping[str, int]) -> int:
        return sum(times * (widths[name] - candidates[name][0]) for name, times in side.items())

    sums = distinct_widths(kernel, list(summed), candidates)
    wide = [added(summed, widths) for widths in sums]
    one = tuple(others) if len(others) == 1 else ()
    rows = (
        [{one[0]: width} for width in candidates[one[0]]] if one else distinct_widths(kernel, list(others), candidates)
    )
    lines = [_line_above(wide, [cost(kernel, {**fixed, **row, **widths}) for widths in sums]) for row in rows]
    lowest, slopes = (np.array(each) for each in zip(*lines, strict=True))
    if len(others) < 2:
        yield KernelCost(one, lowest.reshape([len(rows)] * len(one)))
        for name in summed:
            products = np.outer(more[name], slopes)
            yield KernelCost((name, *one), products if one else products[:, 0])
        return
    height = [added(others, row) for row in rows]
    (start, rise), (slope, twist) = _line_above(height, lowest), _line_above(height, slopes)
    yield KernelCost((), np.array(start))
    yield from (KernelCost((name,), rise * more[name]) for name in others)
    yield from (KernelCost((name,), slope * more[name]) for name in summed)
    yield from (KernelCost((a, b), twist * np.outer(more[a], more[b])) for a in summed for b in others)


def _line_above(at: Sequence[int], values: Sequence[float] | FloatArray) -> tuple[float, float]:
    """Value at 0 and slope of the lowest line above points that rises as much as from the first to the last of them."""
    x, y = np.array(at), np.array(values)
    first, last = x.argmin(), x.argmax()
    slope = max(0.0, float(y[last] - y[first]) / max(1, x[last] - x[first]))
    return float((y - slope * x).max()), slope
