"""How much longer kernels take in a network than on their own, found from a few whole networks.

In a network, weights and output buffers were last touched an inference ago, and the more a network does, the less of
them is left in the caches; and a network of a few milliseconds is never as undisturbed as the best samples of a kernel.
Whole networks of different widths know it: their latencies are regressed on the sums of their kernels' latencies, as a
straight line between the logarithms. Pure: numbers in, numbers out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Standard deviations: of an exponent from 1, and of a measured network from the line, as a share of its latency. Only
# their ratio matters: one network says nothing of the exponent, a dozen of different sizes nearly all.
EXPONENT_SPREAD = 0.1
NETWORK_SPREAD = 0.02


@dataclass(frozen=True)
class Observation:
    """A network that was measured as a whole.

    Attributes
    ----------
    alone_us : sum of the latencies of its kernels, each timed on its own.
    measured_us : latency of the whole.
    """

    alone_us: float
    measured_us: float


@dataclass(frozen=True)
class Slowdown:
    """Latency of a network by the sum of its kernels: ``measured_us * (sum / alone_us) ** exponent``."""

    alone_us: float = 1.0
    measured_us: float = 1.0
    exponent: float = 1.0

    def network_us(self, alone_us: float) -> float:
        """Latency of a network whose kernels take ``alone_us`` on their own."""
        return float(self.measured_us * (alone_us / self.alone_us) ** self.exponent)

    def alone_of(self, network_us: float) -> float:
        """What the kernels of a network may take on their own if it may take ``network_us``."""
        return float(self.alone_us * (network_us / self.measured_us) ** (1 / self.exponent))


# A network takes what its kernels take on their own.
ALONE = Slowdown()


def fitted_slowdown(observations: Sequence[Observation]) -> Slowdown:
    """The line nearest to some networks, with the exponent drawn towards 1 (ridge regression); none if there are none.

    The exponent stays within three standard deviations of 1, whatever a few noisy measurements say.
    """
    if not observations:
        return ALONE
    alone = np.log([o.alone_us for o in observations])
    ratio = np.log([o.measured_us for o in observations]) - alone
    centre = float(alone.mean())
    size = alone - centre
    tilt = float(size @ ratio) / (float(size @ size) + (NETWORK_SPREAD / EXPONENT_SPREAD) ** 2)
    tilt = min(max(tilt, -3 * EXPONENT_SPREAD), 3 * EXPONENT_SPREAD)
    return Slowdown(math.exp(centre), math.exp(centre + float(ratio.mean())), 1 + tilt)
