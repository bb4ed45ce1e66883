"""A plan beside the network that it is for and the budgets that it keeps: what ``aap-hw plan`` shows, as values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aap_hw.compile.keys.precision import FP32, NetworkPrecision
from aap_hw.device.description import MEASURED
from aap_hw.graph import ChannelGroup
from aap_hw.lut.fidelity import Fidelity
from aap_hw.lut.predicting import slow_share
from aap_hw.lut.provenance import Estimate
from aap_hw.policy import Budget
from aap_hw.prune.baseline import Baseline
from aap_hw.prune.planning import Plan


@dataclass(frozen=True)
class Proposal:
    """What ``prune`` would choose, without anything being cut.

    Attributes
    ----------
    model : canonical text of where the network comes from.
    dense : the unpruned network, with its channel groups and latency.
    plan : what it keeps of each group, and what is predicted for that.
    budgets : those that the plan keeps.
    device : facts of the table's device.
    error : how far off the table was for other plans of the network; None if it was never checked.
    made_up : whether the network was shown inputs that were made up.
    precision : what the network will compute in.
    estimate : what the table's latencies are worth, if they were estimated.
    """

    model: str
    dense: Baseline
    plan: Plan
    budgets: Sequence[Budget]
    device: Mapping[str, Any]
    error: Fidelity | None
    made_up: bool = False
    precision: NetworkPrecision = FP32
    estimate: Estimate | None = None

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values.

        ``heads_left`` says of which attention whole heads were asked for and cannot be cut, and why. ``slow_share`` is
        the share of the planned network's time that kernels without a schedule take, if times were measured.
        ``constraints`` holds each budget with what is spent of it, the tightest first. Of each kernel ``table_us`` is
        the table's entry, and ``latency_us`` that times the calibration: what adds up to the predicted latency.
        Of a plan of mixed precisions each group has its ``precision``, ``others_in`` holds that of what is read of no
        group, and ``float_layers`` the layers that stay in float32.
        """
        dense, plan = self.dense, self.plan
        takes = dense.takes
        allowed = {budget.resource.name: budget.of(takes[budget.resource.name]) for budget in self.budgets}
        constraints = [
            {"resource": name, "dense": takes[name], "budget": amount, "spent": plan.spent[name]}
            for name, amount in sorted(allowed.items(), key=lambda one: one[1] / plan.spent[one[0]])
        ]
        in_network = plan.predicted_ms * 1e3 / math.fsum(row.latency_us for row in plan.kernels)
        return {
            "device": self.device["name"],
            "provenance": self.device["provenance"],
            "precision": self.precision,
            "dense_ms": dense.dense_ms,
            "dense_is_measured": dense.measured,
            "budget_ms": allowed.get("latency"),
            "constraints": constraints,
            "predicted_ms": plan.predicted_ms,
            "table_error": None if self.error is None else self.error.as_json(),
            **({} if self.estimate is None else {"estimate": self.estimate.as_json()}),
            "calibration": in_network,
            "kept_attention": plan.kept_attention,
            "gap": plan.gap,
            "solver_seconds": plan.seconds,
            "slow_path": dense.network.slow_path,
            "slow_share": slow_share(plan.kernels) if self.device["provenance"] == MEASURED else None,
            "made_up_inputs": self.made_up,
            "interpolated_kernels": sum(row.interpolated for row in plan.kernels),
            "groups": [
                {
                    "name": g.name,
                    "kind": dense.graph.kinds[g.name],
                    "width": g.width,
                    "kept": plan.widths[g.name],
                    "frozen": g.frozen,
                    "renormalised": g.renormalised,
                    **({} if plan.precisions is None else {"precision": _read_in(dense, plan, g)}),
                }
                for g in dense.graph.groups
            ],
            **(
                {} if plan.precisions is None else {"others_in": _of_no_group(dense, plan), "float_layers": plan.floats}
            ),
            "heads_left": {} if dense.graph.heads is None else dict(dense.graph.heads.left),
            "kernels": [
                {
                    "kernel": row.key,
                    "width_in": row.width_in,
                    "width_out": row.width_out,
                    "latency_us": row.latency_us * in_network,
                    "table_us": row.latency_us,
                    "interpolated": row.interpolated,
                }
                for row in plan.kernels
            ],
        }


def _read_in(dense: Baseline, plan: Plan, group: ChannelGroup) -> str | None:
    """What a group is read in, also one that may not be cut; None if no layer reads it that could be in int8."""
    known, mixture = plan.precisions or {}, dense.planner.costs.mixture
    if group.name in known or mixture is None:
        return known.get(group.name)
    network = mixture.network
    readers = [axis.parameter.removesuffix(".weight") for axis in group.axes if axis.role == "in"]
    domains = [network.domains[network.read[layer][0]] for layer in readers if layer in network.read]
    return next((known[(domain.groups or (domain.name,))[0]] for domain in domains), None)


def _of_no_group(dense: Baseline, plan: Plan) -> dict[str, str]:
    """The precision of what is read of no channel group, such as the network's input."""
    groups = {group.name for group in dense.graph.groups}
    return {name: precision for name, precision in (plan.precisions or {}).items() if name not in groups}
