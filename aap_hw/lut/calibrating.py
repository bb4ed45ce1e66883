"""How much longer kernels take in a network than on their own, found from a few whole networks.

In a network, weights and output buffers were last touched an inference ago, and the more a network does, the less of
them is left in the caches; and a network of a few milliseconds is never as undisturbed as the best samples of a kernel.
Whole networks of different widths know it: the ratios of their latencies to the sums of their kernels' are regressed on
those sums, which gives a straight line. Pure: numbers in, numbers out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Standard deviations: of a tilt from 0, and of a measured network from the line, as a share of its latency. Only their
# ratio matters: one network says nothing of the tilt, two dozen of different sizes nearly all.
TILT_SPREAD = 0.15
NETWORK_SPREAD = 0.02
# The tilt stays within these, whatever a few noisy measurements say. What grows out of the caches becomes slower, which
# can be a lot; that it becomes quicker has not been seen.
LEAST_TILT, MOST_TILT = -3 * TILT_SPREAD, 5 * TILT_SPREAD


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
    """Latency of a network by the sum of its kernels.

    As a share of the largest known network, a network of the share ``x`` by its kernels takes ``x * (1 + tilt * (x -
    1))`` of the latency: the ratio of both is a straight line. Beyond the largest network the ratio stays what it is.

    Attributes
    ----------
    alone_us : sum of the latencies of the largest network's kernels, each timed on its own.
    measured_us : latency of that network by the line.
    tilt : how much less of the ratio is left as a network shrinks to nothing. Above -1 and below 1, where a network
        whose kernels take longer takes longer.
    """

    alone_us: float = 1.0
    measured_us: float = 1.0
    tilt: float = 0.0

    def network_us(self, alone_us: float) -> float:
        """Latency of a network whose kernels take ``alone_us`` on their own."""
        share = alone_us / self.alone_us
        return self.measured_us * share * (1 + self.tilt * (min(share, 1.0) - 1))

    def alone_of(self, network_us: float) -> float:
        """What the kernels of a network may take on their own if it may take ``network_us``."""
        share = network_us / self.measured_us
        if share < 1:
            # The root of tilt * x**2 + (1 - tilt) * x = share in the form that holds for a tilt of 0 too.
            linear = 1 - self.tilt
            share = 2 * share / (linear + (linear**2 + 4 * self.tilt * share) ** 0.5)
        return self.alone_us * share


# With no calibration, a network's latency is the sum of its kernels'.
ALONE = Slowdown()


def uncertainty(observations: Sequence[Observation]) -> float:
    """Standard error of the fitted line at the middle of the networks, as a share; infinite for fewer than three."""
    if len(observations) < 3:
        return float("inf")
    line = fitted_slowdown(observations)
    off = np.array([o.measured_us / line.network_us(o.alone_us) - 1 for o in observations])
    # Two degrees of freedom are the line's.
    return float(np.sqrt(np.square(off).sum() / (off.size - 2) / off.size))


def fitted_slowdown(observations: Sequence[Observation]) -> Slowdown:
    """The line nearest to some networks, the tilt drawn towards 0 (ridge regression); ``ALONE`` if there are none."""
    if not observations:
        return ALONE
    alone = np.array([o.alone_us for o in observations])
    ratio = np.array([o.measured_us for o in observations]) / alone
    largest = float(alone.max())
    share = alone / largest
    apart = share - share.mean()
    slope = float(apart @ ratio) / (float(apart @ apart) + (NETWORK_SPREAD / TILT_SPREAD) ** 2)
    # From a line through the mean ratio to one through the largest network's.
    steepness = min(max(slope / float(ratio.mean()), LEAST_TILT), MOST_TILT)
    at_largest = 1 + steepness * (1 - float(share.mean()))
    return Slowdown(largest, largest * float(ratio.mean()) * at_largest, steepness / at_largest)
