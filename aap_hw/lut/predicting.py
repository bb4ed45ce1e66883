"""What a table says of a whole network: its latency at a width plan, and the costs that a policy chooses by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from aap_hw.compile.network import Kernel, Network
from aap_hw.lut.calibrating import ALONE, Slowdown
from aap_hw.lut.enumeration import groups_of
from aap_hw.lut.table import LatencyTable
from aap_hw.policy import KernelCost


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
    """Latency of every kernel of a network under a width plan, in calling order.

    Raises
    ------
    MissingKernelError : the table lacks one of them.
    """
    rows = []
    for kernel in network.kernels:
        key, width_in, width_out = kernel.at(widths)
        found = table.latency(key, width_in, width_out)
        rows.append(KernelLatency(kernel.name, str(key), width_in, width_out, found.us, found.interpolated))
    return rows


def predict_us(network: Network, widths: Mapping[str, int], table: LatencyTable, slowdown: Slowdown = ALONE) -> float:
    """Latency of a network under a width plan, in microseconds: of the sum over its kernels, what is seen of it."""
    return slowdown.network_us(sum(row.latency_us for row in kernel_latencies(network, widths, table)))


def latency_costs(network: Network, candidates: Mapping[str, Sequence[int]], table: LatencyTable) -> list[KernelCost]:
    """Each kernel's latency in microseconds as a function of its groups' candidate widths.

    Raises
    ------
    MissingKernelError : the table lacks a kernel.
    """
    return kernel_costs(network, candidates, lambda kernel, widths: table.latency(*kernel.at(widths)).us)


def kernel_costs(
    network: Network, candidates: Mapping[str, Sequence[int]], cost: Callable[[Kernel, Mapping[str, int]], float]
) -> list[KernelCost]:
    """Any cost of each kernel as a function of its groups' candidate widths."""
    return [_cost(kernel, candidates, cost) for kernel in network.kernels]


def _cost(
    kernel: Kernel, candidates: Mapping[str, Sequence[int]], cost: Callable[[Kernel, Mapping[str, int]], float]
) -> KernelCost:
    # A group with one candidate is a constant; only free groups make a dimension.
    names = groups_of(kernel)
    free = tuple(name for name in names if len(candidates[name]) > 1)
    costs = [
        cost(kernel, dict(zip(names, widths, strict=True))) for widths in product(*(candidates[name] for name in names))
    ]
    return KernelCost(free, np.reshape(costs, [len(candidates[name]) for name in free]))
