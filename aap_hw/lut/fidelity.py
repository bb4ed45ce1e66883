"""How well a table's predictions of whole networks agree with what these networks took on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from aap_hw.compile.keys.precision import FP32, NetworkPrecision
from aap_hw.inputs import Inputs
from aap_hw.lut.table import LatencyTable, NetworkName, Validation

# Plans that were drawn at random are called this, followed by seed and number.
RANDOM = "random-"


@dataclass(frozen=True)
class Fidelity:
    """Agreement of predicted and measured latencies of several plans.

    Attributes
    ----------
    plans : how many plans there are.
    mean_pct, worst_pct : mean and largest of |predicted / measured - 1|, in percent.
    kendall_tau : 1 if the predictions order the plans as they are measured, -1 if the other way round; None for
        fewer than two plans.
    """

    plans: int
    mean_pct: float
    worst_pct: float
    kendall_tau: float | None

    def sentence(self) -> str:
        """Such as ``table error on 20 random plans: mean 2.1 %, worst 6.3 %``."""
        plans = f"{self.plans} random plan{'s' if self.plans > 1 else ''}"
        return f"table error on {plans}: mean {self.mean_pct:.1f} %, worst {self.worst_pct:.1f} %"

    def order(self) -> str:
        """Such as ``, Kendall tau 0.984``; empty for one plan."""
        return "" if self.kendall_tau is None else f", Kendall tau {self.kendall_tau:.3f}"

    def as_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return asdict(self)


def fidelity_of(entries: Sequence[Validation]) -> Fidelity | None:
    """Agreement over the given plans; None without any."""
    if not entries:
        return None
    predicted = np.array([entry.predicted_us for entry in entries])
    measured = np.array([entry.measured_us for entry in entries])
    errors = np.abs(predicted / measured - 1) * 100
    return Fidelity(len(entries), float(errors.mean()), float(errors.max()), kendall_tau(predicted, measured))


def table_error(table: LatencyTable, model: str, inputs: Inputs, precision: NetworkPrecision = FP32) -> Fidelity | None:
    """How far off the table was for random plans of a network; None if it never was compared."""
    network = NetworkName(model, inputs, precision)
    return fidelity_of([entry for entry in table.validation if entry.network == network and is_random(entry)])


def is_random(entry: Validation) -> bool:
    """Whether an entry is of a plan that was drawn at random."""
    return entry.plan.startswith(RANDOM)


def kendall_tau(one: Sequence[float] | np.ndarray, other: Sequence[float] | np.ndarray) -> float | None:
    """Share of pairs in the same order minus share of pairs in opposite order; ties count as neither.

    None for fewer than two values.
    """
    a, b = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if a.size < 2:
        return None
    agreement = np.sign(a[:, None] - a) * np.sign(b[:, None] - b)
    return float(agreement.sum() / (a.size * (a.size - 1)))
