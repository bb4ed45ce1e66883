"""Latencies that nobody measured: who must agree to them, and what an estimate is worth.

How an estimate is made is not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from aap_hw.device.description import EMULATED, ESTIMATED, MEASURED
from aap_hw.errors import UserError
from aap_hw.lut.table import LatencyTable

# The options that accept a table of each provenance but ``measured``.
ACCEPTED_BY = {EMULATED: "--allow-emulated", ESTIMATED: "--allow-estimated"}


def require_accepted(table: LatencyTable, *, emulated: bool, estimated: bool) -> None:
    """Raise UserError if a table was not measured, and nobody said that it may be used all the same."""
    name, provenance = table.device["name"], table.device["provenance"]
    if provenance != MEASURED and not {EMULATED: emulated, ESTIMATED: estimated}[provenance]:
        raise UserError(
            f"the latencies in the table of {name} are {provenance}, not measured on the device, so a plan made with "
            f"them may be slower there; use a measured table, or add {ACCEPTED_BY[provenance]} to try things out"
        )


@dataclass(frozen=True)
class Estimate:
    """How an estimated table was made, and how far off the method was where it could be checked.

    Attributes
    ----------
    device : what it is an estimate for.
    method : in a few words, with its version.
    machine : the CPU that the method was checked on, as estimates could be compared with measurements there.
    networks : those that it was checked on, each with a method that was fitted to the others only.
    plans : how many width plans of these networks were compared.
    mean_pct, worst_pct : mean and largest of |estimated / measured - 1| of whole networks, in percent.
    kendall_tau : 1 if the estimates order plans as they were measured, -1 if the other way round.
    beside_published : least and largest share that estimates are of the latencies that others published for the
        device, by the quickest engine of each network; None if nobody did.
    """

    device: str
    method: str
    machine: str
    networks: Sequence[str]
    plans: int
    mean_pct: float
    worst_pct: float
    kendall_tau: float
    beside_published: Sequence[float] | None = None

    @classmethod
    def of(cls, table: LatencyTable) -> Self | None:
        """What an estimated table says of itself; None of any other."""
        if not table.is_estimated:
            return None
        from aap_hw.estimate.published import range_beside

        device, method = table.device["name"], table.measurement["method"]
        beside = range_beside(device, table.device["threads"], method)
        error = table.measurement["error"]
        return cls(device, method, **error, beside_published=None if beside is None else list(beside))

    def as_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return asdict(self)

    def sentence(self) -> str:
        """What the estimate is worth, for whoever reads a figure of it."""
        beside = f"nobody has checked it on {self.device}"
        if self.beside_published is not None:
            shares = " to ".join(dict.fromkeys(f"{share:.2f}" for share in self.beside_published))
            beside = f"{shares} of what the quickest published engines take on {self.device}"
        return (
            f"estimated: {beside}; off by {self.mean_pct:.1f} % on average and {self.worst_pct:.1f} % at "
            f"worst on {self.machine}, where it was checked"
        )
