"""How the terms of a kernel make its latency, and how far off estimates are: learned on a machine, kept in a file.

Arithmetic and bytes overlap, but never wholly: the latency is the root of the sum of their squares, which is close to
the larger one, and 1.4 times as long where both are alike. Memory is as quick as a benchmark found it. What is learned
are three shares, pure numbers, so that they mean something on another CPU too.

`benchmarks/estimate_error.py` learns them from measured tables, and writes the file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aap_hw.estimate.terms import Terms

FILE = Path(__file__).with_name("correction.json")
# Beyond such an error, as a share, a kernel counts less: what is wrong with it is not the shares.
USUAL_ERROR = 0.1
LEAST_SHARE, MOST_SHARE = 1e-3, 5.0


@dataclass(frozen=True)
class Shares:
    """How much of each term is seen."""

    arithmetic: float = 1.0
    caches: float = 0.5
    call: float = 1.0

    def latency_us(self, terms: Terms) -> float:
        """Latency of a kernel by its terms."""
        moved = self.caches * terms.caches + terms.memory
        return float(np.hypot(self.arithmetic * terms.arithmetic, moved) + self.call * terms.call + terms.threads)


@dataclass(frozen=True)
class Correction:
    """What was learned.

    Attributes
    ----------
    network_factor : latency of a network over the sum of its kernels.
    error : how far off estimates of networks are that were not learned from.
    """

    shares: Shares
    network_factor: float
    error: dict[str, Any]

    @classmethod
    def load(cls) -> Correction:
        """The one that is kept."""
        stored = json.loads(FILE.read_text())
        return cls(Shares(**stored["shares"]), stored["network_factor"], stored["error"])

    def save(self) -> None:
        """Keep this one."""
        FILE.write_text(json.dumps(asdict(self), indent=1) + "\n")


def fitted_shares(terms: Sequence[Terms], measured_us: Sequence[float]) -> Shares:
    """The shares with the smallest errors of kernels, relative to what was measured."""
    from scipy.optimize import least_squares

    columns = Terms(*np.array([(t.arithmetic, t.caches, t.memory, t.call, t.threads) for t in terms]).T)
    logarithms = np.log(measured_us)

    def errors(shares: np.ndarray) -> np.ndarray:
        arithmetic, caches, call = np.exp(shares)
        moved = caches * columns.caches + columns.memory
        estimated = np.hypot(arithmetic * columns.arithmetic, moved) + call * columns.call
        return np.asarray(np.log(estimated) - logarithms)

    first = Shares()
    begin = np.log([first.arithmetic, first.caches, first.call])
    bounds = np.log(LEAST_SHARE), np.log(MOST_SHARE)
    found = least_squares(errors, begin, loss="soft_l1", f_scale=USUAL_ERROR, bounds=bounds)
    return Shares(*np.exp(found.x).tolist())
