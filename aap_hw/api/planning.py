"""``aap_hw.plan`` and ``aap_hw.plan_curve``: what pruning would choose, without a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aap_hw.errors import UserError
from aap_hw.given import StrPath, budgets_of, origin_of, source_of, table_of, tell_of_published

if TYPE_CHECKING:
    from aap_hw.inputs import Given
    from aap_hw.lut.table import LatencyTable
    from aap_hw.policy import Budget
    from aap_hw.prune.baseline import Baseline
    from aap_hw.prune.curve import CurvePoint
    from aap_hw.prune.planning import Plan
    from aap_hw.prune.proposal import Proposal
    from aap_hw.prune.task import PruneSettings, Task
    from aap_hw.train.sources import ImageSource


def plan(
    model: str,
    lut: StrPath | LatencyTable,
    budget: str | Budget | None = None,
    *,
    max_params: str | Budget | None = None,
    max_flops: str | Budget | None = None,
    max_memory: str | Budget | None = None,
    input_shape: Given | None = None,
    example: str | None = None,
    data: str | ImageSource | None = None,
    weights: StrPath | None = None,
    classes: int | None = None,
    settings: PruneSettings | None = None,
    allow_emulated: bool = False,
    allow_estimated: bool = False,
) -> Proposal:
    """The widths that ``prune`` would choose in one step, without anything being cut.

    The parameters are those of ``prune``. Latencies, and budgets that are shares, are those of the network in
    ``settings.precision``.

    Raises
    ------
    UserError : the network, the table or the images cannot be used, or no plan keeps the budgets.
    """
    from aap_hw.prune.baseline import plan_once
    from aap_hw.prune.task import PruneSettings

    budgets = budgets_of(budget, max_params, max_flops, max_memory)
    task = _task_of(
        model,
        lut,
        input_shape=input_shape,
        example=example,
        data=data,
        weights=weights,
        classes=classes,
        allow_emulated=allow_emulated,
        allow_estimated=allow_estimated,
    )
    settings = settings or PruneSettings()
    dense, chosen = plan_once(task, budgets, settings)
    if weights is None:
        tell_of_published(task.origin)
    return _proposal(task, dense, chosen, budgets, settings)


def plan_curve(
    model: str,
    lut: StrPath | LatencyTable,
    budgets: Sequence[str | Budget],
    *,
    max_params: str | Budget | None = None,
    max_flops: str | Budget | None = None,
    max_memory: str | Budget | None = None,
    input_shape: Given | None = None,
    example: str | None = None,
    data: str | ImageSource | None = None,
    weights: StrPath | None = None,
    classes: int | None = None,
    settings: PruneSettings | None = None,
    allow_emulated: bool = False,
    allow_estimated: bool = False,
) -> list[CurvePoint]:
    """What ``plan`` would choose for each of several budgets of latency: the network is traced and scored once.

    Parameters
    ----------
    budgets
        Budgets of latency, such as ``["20%", "40%", "60%"]`` or ``["5ms", "8ms"]``; the points keep their order. The
        other budgets hold for every point.

    Raises
    ------
    UserError : none of the budgets can be kept, all are kept unpruned, or as for ``plan``.
    """
    from aap_hw.prune.curve import CurvePoint, plans_for
    from aap_hw.prune.planning import Plan
    from aap_hw.prune.task import PruneSettings

    if not budgets:
        raise UserError("a curve needs budgets of latency; give some, such as ['20%', '40%', '60%']")
    others = budgets_of(None, max_params, max_flops, max_memory, needed=False)
    latencies = [budgets_of(each, None, None, None)[0] for each in budgets]
    task = _task_of(
        model,
        lut,
        input_shape=input_shape,
        example=example,
        data=data,
        weights=weights,
        classes=classes,
        allow_emulated=allow_emulated,
        allow_estimated=allow_estimated,
    )
    settings = settings or PruneSettings()
    dense, found = plans_for(task, latencies, others, settings)
    if weights is None:
        tell_of_published(task.origin)
    return [
        CurvePoint(latency, _proposal(task, dense, each, [latency, *others], settings))
        if isinstance(each, Plan)
        else CurvePoint(latency, None, str(each or ""))
        for latency, each in zip(latencies, found, strict=True)
    ]


def _task_of(
    model: str,
    lut: StrPath | LatencyTable,
    *,
    input_shape: Given | None,
    example: str | None,
    data: str | ImageSource | None,
    weights: StrPath | None,
    classes: int | None,
    allow_emulated: bool,
    allow_estimated: bool,
) -> Task:
    from aap_hw.prune.samples import samples_for
    from aap_hw.prune.task import Task

    table, source = table_of(lut), source_of(data)
    origin = origin_of(model, input_shape, example, weights, classes, source)
    # The same samples as `prune` takes, which trains on those of a source.
    samples, allowed = samples_for(origin, source, example), (allow_emulated, allow_estimated)
    return Task(origin, table, samples, source is not None, None, *allowed)


def _proposal(
    task: Task, dense: Baseline, chosen: Plan, budgets: Sequence[Budget], settings: PruneSettings
) -> Proposal:
    from aap_hw.lut.fidelity import table_error
    from aap_hw.lut.provenance import Estimate
    from aap_hw.prune.proposal import Proposal
    from aap_hw.prune.samples import are_made_up

    error = table_error(task.table, task.origin.model, task.origin.inputs, settings.precision)
    made_up = are_made_up(task.data)
    estimate, precision = Estimate.of(task.table), settings.precision
    return Proposal(task.origin.model, dense, chosen, budgets, task.table.device, error, made_up, precision, estimate)
