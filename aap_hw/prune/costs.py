"""What a network takes of every resource at any widths and precisions: latency by the table, the rest counted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aap_hw.compile.front.network import Network
from aap_hw.lut.calibrating import ALONE, Slowdown
from aap_hw.lut.predicting import KernelLatency, kernel_latencies
from aap_hw.lut.table import LatencyTable
from aap_hw.policy import LATENCY, MEMORY
from aap_hw.prune.choices import COUNTS
from aap_hw.prune.mixture import Mixture

if TYPE_CHECKING:
    from aap_hw.compile.keys.target import DeviceTarget


@dataclass(frozen=True)
class Costs:
    """What one network takes on one device.

    Attributes
    ----------
    network : the unpruned network's kernels.
    slowdown : how much longer the network takes than the sum of its kernels, by the table.
    calibration : latency measured on the device over what the table predicts; 1 if nothing was measured.
    unpruned_ms : latency of the unpruned network that shares are of; None if it is only predicted.
    target : the machine that memory is counted for; None leaves memory out.
    mixture : if groups are given precisions, too, what is known of that. Then ``network`` is in the more exact one, and
        so is the unpruned one that shares are of.
    """

    network: Network
    table: LatencyTable
    slowdown: Slowdown = ALONE
    calibration: float = 1.0
    unpruned_ms: float | None = None
    target: DeviceTarget | None = None
    mixture: Mixture | None = None

    @property
    def dense(self) -> dict[str, float]:
        """What the unpruned network takes of every resource; its latency in ms, measured if it was."""
        predicted = self.spent(self.network.dense, self._all_floats)
        return predicted if self.unpruned_ms is None else {**predicted, LATENCY.name: self.unpruned_ms}

    def spent(self, widths: Mapping[str, int], floats: Sequence[str] | None = None) -> dict[str, float]:
        """What the network takes of every resource at the given widths; its latency in ms as predicted.

        Of a network of mixed precisions ``floats`` are the layers in floating point.
        """
        counts = {name: float(sum(count(k, widths) for k in self.network.kernels)) for name, count in COUNTS.items()}
        if self.target is not None:
            from aap_hw.compile.library.footprint import peak_bytes  # loads TVM: two seconds that others do without

            counts[MEMORY.name] = float(peak_bytes(self.network_of(floats), widths, self.target))
        # Summed as the policy sums, so that both agree on which plans meet a budget.
        alone_us = math.fsum(row.latency_us for row in self.kernels(widths, floats))
        return {LATENCY.name: self.network_ms(alone_us, self._slowdown_with(floats)), **counts}

    def kernels(self, widths: Mapping[str, int], floats: Sequence[str] | None = None) -> list[KernelLatency]:
        """What each kernel takes at the given widths."""
        return kernel_latencies(self.network_of(floats), widths, self.table)

    def network_of(self, floats: Sequence[str] | None) -> Network:
        """The kernels of a plan whose layers ``floats`` stay in floating point."""
        return self.network if self.mixture is None or floats is None else self.mixture.network.network(floats)

    def slowdown_in(self, precision: str) -> Slowdown:
        """The slowdown of a network in one precision altogether, if that is known."""
        return self.slowdown if self.mixture is None else self.mixture.slowdowns.get(precision, self.slowdown)

    def network_ms(self, alone_us: float, slowdown: Slowdown) -> float:
        """Latency of a network with such a slowdown whose kernels take so long one by one."""
        return slowdown.network_us(alone_us) * self.calibration / 1e3

    def alone_us(self, network_ms: float, slowdown: Slowdown) -> float:
        """The sum of kernel latencies at which a network with this slowdown takes ``network_ms``."""
        return slowdown.alone_of(network_ms * 1e3 / self.calibration)

    def dense_alone_us(self, slowdown: Slowdown) -> float:
        """The largest such sum at which a network with this slowdown is no slower than the unpruned one."""
        alone_us = math.fsum(row.latency_us for row in self.kernels(self.network.dense))
        if self.mixture is None:
            return alone_us
        return slowdown.alone_of(self._slowdown_with(self._all_floats).network_us(alone_us))

    @property
    def _all_floats(self) -> tuple[str, ...]:
        return () if self.mixture is None else tuple(self.mixture.network.read)

    def _slowdown_with(self, floats: Sequence[str] | None) -> Slowdown:
        return self.slowdown if self.mixture is None or floats is None else self.mixture.slowdown(floats, self.slowdown)
