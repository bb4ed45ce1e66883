"""A plan made better by small steps, as long as one can be taken within the limits."""

from collections.abc import Mapping

from aap_hw.policy.problem import GroupChoice, Plan, Problem


def improved(problem: Problem, plan: Plan, limits: Mapping[str, float]) -> Plan:
    """The plan with groups given better labels, one at a time, as long as one can be without overspending.

    Better is what is worth more, or as much and wider. A search may stop anywhere within its gap, and at equal value
    it does not care for width. A small reward for channels in its objective would not help: to be sure not to outweigh
    any value it would have to be far below the gap, where no search looks.
    """
    block_of = {group: block for block in problem.together for group in block}
    while True:
        steps: list[tuple[float, int, Plan]] = []
        for group, choice in enumerate(problem.choices):
            now = plan[group]
            if choice.widths[now] == 0 and len(block := block_of.get(group, ())) > 1:
                # What was removed together comes back together, each group at its narrowest.
                step = _step(problem, plan, dict.fromkeys(block, 1))
                # Rounding may cost more than the removal.
                if step[0] >= 0:
                    steps.append(step)
                continue
            better = _better(choice, now)
            if not better:
                continue
            along = {resource: problem.spent_along(resource, group, plan) for resource in limits}
            for i in better:
                # Rounding only: whether it fits is checked below, on the exact sum.
                if all(along[r][i] <= limit + 1e-9 * abs(limit) for r, limit in limits.items()):
                    steps.append(_step(problem, plan, {group: i}))
        wider = (candidate for _, _, candidate in sorted(steps, reverse=True) if problem.is_consistent(candidate))
        found = next((candidate for candidate in wider if problem.fits(candidate, limits)), None)
        if found is None:
            return plan
        plan = found


def _better(choice: GroupChoice, now: int) -> list[int]:
    """Labels that are worth more than one, or as much and are wider."""
    labels = [(float(value), width) for value, width in zip(choice.value, choice.widths, strict=True)]
    return [i for i, each in enumerate(labels) if each > labels[now]]


def _step(problem: Problem, plan: Plan, changes: Mapping[int, int]) -> tuple[float, int, Plan]:
    """What a plan gains in value and in channels by some changes, and the plan after them."""
    wider = list(plan)
    gain, channels = 0.0, 0
    for group, i in changes.items():
        choice = problem.choices[group]
        gain += float(choice.value[i] - choice.value[plan[group]])
        channels += choice.widths[i] - choice.widths[plan[group]]
        wider[group] = i
    return gain, channels, tuple(wider)
