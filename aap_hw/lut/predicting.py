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
from aap_hw.errors import UserError
from aap_hw.lut.calibrating import ALONE, Slowdown
from aap_hw.lut.enumeration import distinct_widths
from aap_hw.lut.table import LatencyTable
from aap_hw.policy import KernelCost

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

    A kernel that reads many groups side by side becomes one cost for each of them, which together are at least its own:
    exactly that where it grows by the same amount with every channel, as multiply-accumulates do.
    """
    return [part for kernel in network.kernels for part in cost_parts(kernel, candidates, cost)]


def cost_parts(kernel: Kernel, candidates: Mapping[str, Sequence[int]], cost: CostOfKernel) -> list[KernelCost]:
    """The costs of one kernel, as of `kernel_costs`; how many, and of which groups, follows from its widths alone."""

    def of_present(kernel: Kernel, widths: Mapping[str, int]) -> float:
        return 0.0 if kernel.is_removed(widths) else cost(kernel, widths)

    return list(_costs(kernel, candidates, of_present))


def _costs(kernel: Kernel, candidates: Mapping[str, Sequence[int]], cost: CostOfKernel) -> Iterator[KernelCost]:
    # A group with one candidate is a constant; only free groups make a dimension.
    names = kernel.groups
    free = tuple(name for name in names if len(candidates[name]) > 1)
    if len(free) > 2:
        yield from _costs_of_sum(kernel, free, candidates, cost)
        return
    costs = [
        cost(kernel, dict(zip(names, widths, strict=True))) for widths in product(*(candidates[name] for name in names))
    ]
    yield KernelCost(free, np.reshape(costs, [len(candidates[name]) for name in free]))


def _costs_of_sum(
    kernel: Kernel, free: Sequence[str], candidates: Mapping[str, Sequence[int]], cost: CostOfKernel
) -> Iterator[KernelCost]:
    """Costs of a kernel by the sum of many groups: for each output width a straight line that no sum costs more than.

    Its slope is that from the smallest sum to the largest, and it lies as low as that allows.
    """
    read = [(name, times) for name, times in kernel.width_in.terms if name in free]
    written = [name for name in free if name not in dict(read)]
    if len(written) > 1:
        raise UserError(
            f"the widths of kernel '{kernel.name}' cannot be planned: it writes {len(written)} groups of channels and "
            "reads others; freeze all but one of them"
        )
    fixed = {name: candidates[name][0] for name in kernel.groups if name not in free}
    sums = distinct_widths(kernel, [name for name, _ in read], candidates)
    at_least, slopes = [], []
    for width in candidates[written[0]] if written else [None]:
        others = fixed if width is None else {**fixed, written[0]: width}
        wide = np.array([kernel.width_in.at({**fixed, **widths}) for widths in sums])
        costs = np.array([cost(kernel, {**others, **widths}) for widths in sums])
        first, last = int(wide.argmin()), int(wide.argmax())
        slope = max(0.0, float(costs[last] - costs[first]) / float(wide[last] - wide[first]))
        slopes.append(slope)
        at_least.append(float((costs - slope * (wide - wide[first])).max()))
    yield KernelCost(tuple(written), np.reshape(at_least, [len(slopes)] * len(written)))
    for name, times in read:
        more = times * (np.array(candidates[name]) - candidates[name][0])
        yield KernelCost(
            (name, *written), np.reshape(np.outer(more, slopes), [len(more), *[len(slopes)] * len(written)])
        )
