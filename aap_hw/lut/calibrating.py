"""How much longer kernels take in networks than on their own, found from a few whole networks.

In a network, weights and output buffers were last touched an inference ago, so that memory and caches serve a kernel
worse than when it is called again and again. By how much depends on what runs before it, which no table of single
kernels can know. Whole networks of different widths do know it: their latencies are regressed on the sums of their
kernels' latencies, one factor for each kernel. Pure: arrays in, arrays out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aap_hw.compile.kernel import KernelKey

# Standard deviations, as shares: of what a factor may differ from the common one, and of what a sum of kernels may
# differ from the measured network for other reasons. Only their ratio matters.
FACTOR_SPREAD = 0.05
NETWORK_SPREAD = 0.02
# A kernel is not taken to be so much quicker or slower in a network, whatever a few noisy measurements say.
LEAST, MOST = 0.5, 3.0


@dataclass(frozen=True)
class Observation:
    """A network that was measured as a whole.

    Attributes
    ----------
    kernels_us : sum of the isolated latencies of its kernels, by key.
    measured_us : latency of the whole.
    """

    kernels_us: Mapping[KernelKey, float]
    measured_us: float


def fitted_factors(
    observations: Sequence[Observation], fixed: Mapping[KernelKey, float] | None = None
) -> dict[KernelKey, float]:
    """The factor of every kernel of some networks by which its isolated latency is to be multiplied.

    Least squares of the networks' relative errors with every factor drawn towards one that they have in common (ridge
    regression): few networks suffice, and a kernel that hardly matters hardly deviates.

    Parameters
    ----------
    fixed
        Factors that are known from other networks and stay as they are.
    """
    fixed = fixed or {}
    keys = [key for key in dict.fromkeys(k for o in observations for k in o.kernels_us) if key not in fixed]
    if not keys or not observations:
        return {}
    known = np.array([sum(us * fixed.get(key, 0.0) for key, us in o.kernels_us.items()) for o in observations])
    free = np.array([[o.kernels_us.get(key, 0.0) for key in keys] for o in observations])
    measured = np.array([o.measured_us for o in observations])
    common = float(np.clip(np.median((measured - known) / free.sum(axis=1)), LEAST, MOST))
    shares = free / measured[:, None] / NETWORK_SPREAD
    errors = (measured - known - common * free.sum(axis=1)) / measured / NETWORK_SPREAD
    normal = shares.T @ shares + np.eye(len(keys)) / FACTOR_SPREAD**2
    factors = common + np.linalg.solve(normal, shares.T @ errors)
    return {key: float(factor) for key, factor in zip(keys, np.clip(factors, LEAST, MOST), strict=True)}
