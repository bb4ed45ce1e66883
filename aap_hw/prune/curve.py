"""The trade-off curve of a network: what several budgets of latency would leave of it, from one trace and one table.

Nothing is cut, trained or compiled. One budget is `aap_hw.prune.baseline.plan_once`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aap_hw.errors import UserError
from aap_hw.policy import Budget
from aap_hw.prune.baseline import Baseline, MetUnpruned, amounts, baseline
from aap_hw.prune.planning import Plan
from aap_hw.prune.proposal import Proposal
from aap_hw.prune.scoring import scores_of
from aap_hw.prune.task import PruneSettings, Task


@dataclass(frozen=True)
class CurvePoint:
    """What a budget of latency comes to.

    Attributes
    ----------
    budget : as it was asked for.
    proposal : the plan that keeps it; None if no plan does, or none was found in time.
    refusal : why there is none, with the smallest amount that a plan keeps; empty if there is one, or if the network
        keeps the budgets unpruned.
    """

    budget: Budget
    proposal: Proposal | None
    refusal: str = ""

    @property
    def met_unpruned(self) -> bool:
        """Whether the network keeps the budgets as it is, so that there is nothing to plan."""
        return self.proposal is None and not self.refusal

    def as_json(self) -> dict[str, Any]:
        """The point as JSON values; see `Proposal.as_json` for the plan."""
        plan = None if self.proposal is None else self.proposal.as_json()
        return {"budget": str(self.budget), "plan": plan, "refusal": self.refusal, "met_unpruned": self.met_unpruned}


def plans_for(
    task: Task, latencies: Sequence[Budget], others: Sequence[Budget], settings: PruneSettings
) -> tuple[Baseline, list[Plan | UserError | None]]:
    """For each budget of latency the plan that keeps it and the other budgets, or why there is none.

    It is None where the network keeps all of them unpruned.

    Raises
    ------
    UserError : there is a plan for none of them, and the reason is that of the largest that is not met unpruned; all
        are met so; or the network cannot be planned for at all.
    """
    dense = baseline(task, settings, resources=[budget.resource.name for budget in (*latencies[:1], *others)])
    allowed: list[Mapping[str, float] | MetUnpruned] = []
    for latency in latencies:
        try:
            allowed.append(amounts([latency, *others], dense))
        except MetUnpruned as met:
            allowed.append(met)
    wanted = [each for each in allowed if not isinstance(each, MetUnpruned)]
    if not wanted:
        raise next(each for each in allowed if isinstance(each, MetUnpruned))
    plans = iter(dense.planner.curve(scores_of(task, dense.module, dense.graph, settings), wanted))
    found = [None if isinstance(each, MetUnpruned) else next(plans) for each in allowed]
    if not any(isinstance(each, Plan) for each in found):
        refused = {
            latency.of(dense.dense_ms): each
            for latency, each in zip(latencies, found, strict=True)
            if isinstance(each, UserError)
        }
        raise refused[max(refused)]
    return dense, found
