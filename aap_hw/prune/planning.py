"""One decision of the latency policy: how many filters each group keeps, by the table, and which, by attention.

Pure but for its inputs: nothing is trained, compiled or written here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aap_hw.compile.network import Network
from aap_hw.errors import UserError
from aap_hw.lut.predicting import KernelLatency, kernel_latencies, latency_costs
from aap_hw.lut.table import LatencyTable
from aap_hw.policy import GroupChoice, Infeasible, allocate, best_channels, kept_share

Scores = Mapping[str, NDArray[np.float64]]
# A group that keeps next to nothing would be worth minus infinity.
LEAST_SHARE = 1e-6
# A budget is converted to the table's unit and its cost back: what rounding may add to it on the way.
ROUNDING = 1e-12


class Unreachable(UserError):  # noqa: N818 - an answer about the budget, not a fault
    """No plan meets the budget.

    Attributes
    ----------
    smallest_ms : the smallest latency that a plan reaches.
    """

    def __init__(self, budget_ms: float, smallest_ms: float, dense_ms: float) -> None:
        self.smallest_ms = smallest_ms
        super().__init__(
            f"no plan reaches {budget_ms:.4g} ms: the smallest reachable latency is {_up(smallest_ms)} ms "
            f"({_up(100 * smallest_ms / dense_ms)}% of the unpruned network); allow at least that"
        )


@dataclass(frozen=True)
class Plan:
    """A width plan, the channel plan that follows from attention, and what the table predicts for it.

    Attributes
    ----------
    widths : channels kept of every group, frozen ones included.
    keep : for each group that is cut, the channels kept, counted in the network that was scored.
    predicted_ms : calibrated sum of ``kernels``.
    kept_attention : geometric mean over the free groups of the share of attention kept.
    gap : how far the choice may be from the best, as a share of its value; proven by the solver.
    """

    widths: dict[str, int]
    keep: dict[str, list[int]]
    predicted_ms: float
    kept_attention: float
    gap: float
    seconds: float
    kernels: list[KernelLatency]


@dataclass(frozen=True)
class LatencyPlanner:
    """Chooses widths for one network on one device.

    Attributes
    ----------
    network : the unpruned network's kernels.
    candidates : widths that each group may take, ascending.
    calibration : latency measured on the device over the table's sum; 1 if nothing was measured.
    """

    network: Network
    candidates: Mapping[str, tuple[int, ...]]
    table: LatencyTable
    calibration: float = 1.0

    @property
    def dense_ms(self) -> float:
        """Predicted latency of the unpruned network."""
        return self.predict_ms(self.network.dense)

    def predict_ms(self, widths: Mapping[str, int]) -> float:
        """Predicted latency at the given widths."""
        return self._calibrated(kernel_latencies(self.network, widths, self.table))

    def _calibrated(self, kernels: list[KernelLatency]) -> float:
        # Summed as the policy sums, so that both agree on which plans meet a budget.
        return math.fsum(row.latency_us for row in kernels) * self.calibration / 1e3

    def plan(self, scores: Scores, budget_ms: float, at_most: Mapping[str, int] | None = None) -> Plan:
        """The plan with the most attention kept that is predicted to meet the budget.

        The value of a plan is the sum over groups of log(share of attention kept): groups work in series, so that
        what reaches the output is the product of what each lets through.

        Parameters
        ----------
        scores
            Attention of every channel that is still there, by group.
        budget_ms
            Predicted latency allowed.
        at_most
            Widths that an earlier round left; none is exceeded.

        Raises
        ------
        Unreachable : no plan meets the budget; the smallest reachable latency is named.
        MissingKernelError : the table lacks a kernel of the network.
        """
        limits = {**self.network.dense, **(at_most or {})}
        allowed = {name: tuple(w for w in widths if w <= limits[name]) for name, widths in self.candidates.items()}
        free = [name for name, widths in allowed.items() if len(widths) > 1]
        choices = [
            GroupChoice(name, allowed[name], np.log(np.maximum(kept_share(scores[name], allowed[name]), LEAST_SHARE)))
            for name in free
        ]
        costs = latency_costs(self.network, allowed, self.table)
        try:
            budget_us = budget_ms * 1e3 / self.calibration * (1 - ROUNDING)
            found = allocate(choices, {"latency": costs}, {"latency": budget_us})
        except Infeasible as problem:
            smallest_ms = problem.smallest * self.calibration / 1e3 * (1 + 3 * ROUNDING)
            raise Unreachable(budget_ms, smallest_ms, self.dense_ms) from problem
        widths = {name: found.widths.get(name, widths[-1]) for name, widths in allowed.items()}
        kernels = kernel_latencies(self.network, widths, self.table)
        shares = [float(kept_share(scores[name], [widths[name]])[0]) for name in free]
        return Plan(
            widths=widths,
            keep={
                name: best_channels(scores[name], widths[name]).tolist() for name in free if widths[name] < limits[name]
            },
            predicted_ms=self._calibrated(kernels),
            kept_attention=float(np.exp(np.mean(np.log(np.maximum(shares, LEAST_SHARE))))) if free else 1.0,
            gap=found.gap,
            seconds=found.seconds,
            kernels=kernels,
        )


def _up(value: float) -> str:
    """Three significant digits, rounded up, so that the figure given can be asked for."""
    digits = max(0, 2 - math.floor(math.log10(value)))
    return f"{math.ceil(value * 10**digits) / 10**digits:.{digits}f}"
