"""The trade-off curve of a network: what several budgets of latency would leave of it, from one trace and one table.

Nothing is cut, trained or compiled. One budget is `aap_hw.prune.baseline.plan_once`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aap_hw.errors import UserError
from aap_hw.policy import Budget
from aap_hw.policy.allocation import Undecided
from aap_hw.prune.baseline import Baseline, amounts, baseline, scores_of
from aap_hw.prune.planning import Plan
from aap_hw.prune.proposal import Proposal
from aap_hw.prune.task import PruneSettings, Task
from aap_hw.prune.unreachable import Unreachable


@dataclass(frozen=True)
class CurvePoint:
    """What a budget of latency comes to.

    Attributes
    ----------
    budget : as it was asked for.
    proposal : the plan that keeps it; None if no plan does, or none was found in time.
    refusal : why there is none, with the smallest amount that a plan keeps; empty if there is one.
    """

    budget: Budget
    proposal: Proposal | None
    refusal: str = ""

    def as_json(self) -> dict[str, Any]:
        """The point as JSON values; see `Proposal.as_json` for the plan."""
        plan = None if self.proposal is None else self.proposal.as_json()
        return {"budget": str(self.budget), "plan": plan, "refusal": self.refusal}


def plans_for(
    task: Task, latencies: Sequence[Budget], others: Sequence[Budget], settings: PruneSettings
) -> tuple[Baseline, list[Plan | UserError]]:
    """For each budget of latency the plan that keeps it and the other budgets, or why there is none.

    Raises
    ------
    UserError : there is a plan for none of them, and the reason is that of the largest; the network meets one of them
        unpruned, or cannot be planned for at all.
    """
    dense = baseline(task, settings, resources=[budget.resource.name for budget in (*latencies[:1], *others)])
    allowed = [amounts([latency, *others], dense) for latency in latencies]
    scores = scores_of(task, dense.module, dense.graph, settings)
    found: list[Plan | UserError] = []
    for each in allowed:
        try:
            found.append(dense.planner.plan(scores, each))
        except (Unreachable, Undecided) as refusal:
            found.append(refusal)
    refusals = [each for each in found if isinstance(each, UserError)]
    if len(refusals) == len(found):
        largest = max(range(len(found)), key=lambda place: latencies[place].of(dense.dense_ms))
        raise refusals[largest]
    return dense, found
