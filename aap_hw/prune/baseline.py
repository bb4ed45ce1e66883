"""The unpruned network with its latency, and the one-step plan for it: what every run and every plan begins with.

Refuses what cannot lead anywhere (a table that is not of the device or not of the network, a budget that needs no
pruning) before anything is trained or written.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from aap_hw import ranks
from aap_hw.activity import doing
from aap_hw.compile.front.domains import mixed_network
from aap_hw.compile.front.mixed import MixedNetwork
from aap_hw.compile.front.network import Network
from aap_hw.compile.front.partition import partition
from aap_hw.compile.front.removal import removable
from aap_hw.compile.keys.precision import (
    BFLOAT16,
    FP32,
    INT8,
    MIXTURES,
    NetworkPrecision,
    is_with_half,
    unpruned_in,
)
from aap_hw.device.description import MEASURED
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.graph.check.self_check import check_cutting
from aap_hw.graph.groups.blocks import Block
from aap_hw.graph.selection import require_free_group, require_whole_heads, select
from aap_hw.lut.calibrating import ALONE, Slowdown
from aap_hw.lut.enumeration import group_candidates
from aap_hw.lut.lacking import of_one_width, require_kernels
from aap_hw.lut.predicting import kernel_latencies
from aap_hw.lut.provenance import require_accepted
from aap_hw.lut.table import LatencyTable, NetworkName
from aap_hw.policy import LATENCY, MEMORY, Budget
from aap_hw.prune.costs import Costs
from aap_hw.prune.journal import Journal
from aap_hw.prune.mixture import Mixture
from aap_hw.prune.planning import Plan, Planner
from aap_hw.prune.quantised import layers_in_float32
from aap_hw.prune.scoring import dependence_of, scores_of
from aap_hw.prune.task import PruneSettings, Task

if TYPE_CHECKING:
    from aap_hw.device.boards import Boards
    from aap_hw.device.connection import Device

# What a journal calls the unpruned latency that was measured.
DENSE_MS = "dense/ms"
# In its precision and in float32, if these are two.
BOTH_MS = "dense/both_ms"


@dataclass(frozen=True)
class Baseline:
    """The unpruned network, traced, with its latency.

    Attributes
    ----------
    dense_ms : its latency on the device, if ``measured``, else what the table predicts.
    precision : what it computes in there.
    in_float32 : which layers of a network in int8 stay in float32, and why; see ``aap_hw.prune.quantised``.
    float_ms : its latency on the device if it computes in float32 alone, if that is another one and was measured.
    """

    module: nn.Module
    graph: ChannelGraph
    planner: Planner
    dense_ms: float
    measured: bool
    precision: NetworkPrecision = FP32
    in_float32: Mapping[str, Any] | None = None
    float_ms: float | None = None

    @property
    def floats(self) -> tuple[str, ...]:
        """Layers of a network in int8 that stay in float32."""
        return () if self.in_float32 is None else tuple(self.in_float32["names"])

    @property
    def provenance(self) -> str:
        """How the table's latencies came about."""
        return str(self.planner.costs.table.device["provenance"])

    @property
    def takes(self) -> dict[str, float]:
        """What the unpruned network takes of every resource, by name; its latency is ``dense_ms``."""
        return self.planner.costs.dense

    @property
    def network(self) -> Network:
        """The unpruned network's kernels."""
        return self.planner.costs.network


def baseline(
    task: Task,
    settings: PruneSettings | None = None,
    journal: Journal | None = None,
    resources: Collection[str] = (),
    drop: float | None = None,
) -> Baseline:
    """Trace the unpruned network and find its latency: measured on the device now, else from the table.

    Its planner chooses widths as the settings say, and counts memory only if that is one of ``resources``. A latency
    that the journal knows is not measured again. ``drop`` is how much accuracy may be lost in all, if that is limited.

    Raises
    ------
    UserError : the table was not measured on the device, the network has no group to prune, or its cuts could not be
        checked.
    CutMismatchError : a cut changes what the network computes otherwise.
    MissingKernelError : the table was not made for this network or not for this input size.
    """
    require_accepted(task.table, emulated=task.allow_emulated, estimated=task.allow_estimated)
    settings = settings or PruneSettings()
    module = task.origin.build()
    heads = settings.attention_cuts == "heads"
    graph = ChannelGraph.trace(module, task.origin.inputs.zeros(), task.origin.inputs.names, heads=heads)
    require_whole_heads(graph, task.origin.model)
    precision = settings.precision
    half = _half_of(precision, task)
    mixed = mixed_network(graph, precision, half) if precision in MIXTURES else None
    network = mixed.floating if mixed is not None else partition(graph, precision, half=half)
    traced = graph
    name = NetworkName(task.origin.model, task.origin.inputs, precision)
    all_kernels = network if mixed is None else mixed.everything
    graph = graph.frozen(network.fixed)
    require_free_group(graph, task.origin.model)
    # Before the user's choice, as the table's kernels are those of all groups that can be cut.
    require_kernels(all_kernels, name, task.table, heads=heads)
    graph = graph.frozen(of_one_width(all_kernels, graph, task.table, name))
    graph = select(graph, settings.only, settings.skip, renormalised=settings.cuts_renormalised(task.retrain))
    require_free_group(graph, task.origin.model)
    check_cutting(graph, module, task.few_samples)
    journal = journal or Journal()
    in_float32: Mapping[str, Any] | None = None
    floats: Sequence[str] = ()
    float_ms: float | None = None
    if precision == INT8:
        in_float32 = layers_in_float32(task, module, settings, drop, journal)
        if floats := in_float32["names"]:
            network = partition(traced, precision, floats=floats)
            require_kernels(network, name, task.table, heads=heads, floats=floats)
    how = task.table.measurement
    candidates = group_candidates(graph, how["granularity"], how["at_most"])
    blocks: Sequence[Block] = ()
    if settings.depth and mixed is not None:
        mixed, blocks = removable_in_both(mixed, traced, graph)
        network = mixed.floating
    elif settings.depth:
        network, blocks = removable(network, traced, graph, precision, floats, half)
    slowdown = task.table.slowdown(name.model, name.inputs, precision)
    depends, rounding = dependence_of(task, module, graph, settings, mixed)
    costs = Costs(
        network,
        task.table,
        slowdown,
        target=task.target if MEMORY.name in resources else None,
        mixture=None if mixed is None else Mixture(mixed, rounding, _known_slowdowns(task, mixed)),
    )
    journal.recall("network", partial(_described, graph, network, task.table))
    predicted = costs.dense[LATENCY.name]
    # The table's network is in int8 altogether.
    dense_in = unpruned_in(precision)
    measured = None if floats else task.table.dense_ms(name.model, name.inputs, precision)
    if task.device is not None:
        found = partial(_measured, task, module, task.device, dense_in, floats)
        if dense_in != FP32:
            found = partial(journal.recall, BOTH_MS, found)
            float_ms = found()["float"]
        measured = journal.recall(DENSE_MS, lambda: found()["dense"])
    dense_ms = measured or predicted
    calibration = dense_ms / predicted
    if task.device is None:
        # A table that was calibrated knows more networks than this one; what any other table predicts, and nobody will
        # measure, is never faster than the sum of its kernels.
        calibration = max(1.0, calibration) if slowdown == ALONE else 1.0
    planner = Planner(
        replace(costs, calibration=calibration, unpruned_ms=measured),
        candidates,
        blocks=tuple(block.groups for block in blocks),
        allocator=settings.allocator,
        threshold_weights=settings.threshold_weights,
        sensitivities=depends,
        limits=(
            *(f"--only {pattern}" for pattern in settings.only),
            *(f"--skip {pattern}" for pattern in settings.skip),
            *(("--no-renormalised",) if settings.renormalised is False else ()),
            *(() if settings.depth or not traced.blocks else ("--no-depth",)),
        ),
    )
    return Baseline(module, graph, planner, dense_ms, measured is not None, precision, in_float32, float_ms)


def removable_in_both(
    mixed: MixedNetwork, traced: ChannelGraph, chosen: ChannelGraph
) -> tuple[MixedNetwork, tuple[Block, ...]]:
    """The branches that can be removed from a network of mixed precisions: those that can in either precision."""
    both = (mixed.floating, mixed.precisions[-1]), (mixed.network(()), mixed.in_int8)
    found = [removable(network, traced, chosen, precision, half=mixed.half) for network, precision in both]
    of_int8 = {block.name for block in found[1][1]}
    blocks = tuple(block for block in found[0][1] if block.name in of_int8)
    groups = {group for block in blocks for group in block.groups}
    return mixed.with_branches([network for network, _ in found], groups), blocks


def _known_slowdowns(task: Task, mixed: MixedNetwork) -> dict[str, Slowdown]:
    model, inputs = task.origin.model, task.origin.inputs
    slowdowns = {each: task.table.slowdowns.get(NetworkName(model, inputs, each)) for each in mixed.precisions}
    return {precision: each for precision, each in slowdowns.items() if each is not None}


def _described(graph: ChannelGraph, network: Network, table: LatencyTable) -> dict[str, Any]:
    """The unpruned network for who wants to see it later: its groups, and its kernels by the table."""
    return {
        "groups": [
            {
                "name": group.name,
                "kind": graph.kinds[group.name],
                "width": group.width,
                "frozen": group.frozen,
                "renormalised": group.renormalised,
            }
            for group in graph.groups
        ],
        "kernels": [asdict(row) for row in kernel_latencies(network, network.dense, table)],
        "layers": [(kernel.weight or kernel.name).removesuffix(".weight") for kernel in network.kernels],
    }


@doing("measuring the unpruned network")
def _measured(
    task: Task, module: nn.Module, device: Device | Boards, precision: NetworkPrecision, floats: Sequence[str]
) -> dict[str, float]:
    from aap_hw.prune.measuring import Compilable, measure_networks  # loads TVM: two seconds that planning does without

    def measure() -> dict[str, float]:
        networks = {"dense": Compilable(module, precision, floats)}
        if precision != FP32:
            networks["float"] = Compilable(module)
        timings = measure_networks(networks, task.origin.inputs, device)
        return {name: timing.latency_us / 1e3 for name, timing in timings.items()}

    return ranks.found_by_first(measure)


class MetUnpruned(UserError):  # noqa: N818 - an answer about the budgets, not a fault
    """The unpruned network already keeps the budgets."""


def amounts(budgets: Sequence[Budget], dense: Baseline) -> dict[str, float]:
    """What each budget allows of its resource, by the resource's name; without those that are met unpruned.

    Raises
    ------
    MetUnpruned : the unpruned network already meets all budgets.
    UserError : there is no budget, or two of one resource.
    """
    names = [budget.resource.name for budget in budgets]
    if not names or len(set(names)) < len(names):
        raise UserError(f"a network is pruned to one budget of each resource or some, not to {names or 'none'}")
    allowed, met = {}, []
    for budget in budgets:
        name, unit = budget.resource.name, f" {budget.resource.unit}".rstrip()
        takes = dense.takes[name]
        wanted = budget.of(takes)
        if wanted < takes:
            allowed[name] = wanted
        else:
            what = "" if name == LATENCY.name else f" {name}"
            doubt = f" ({dense.provenance})" if name == LATENCY.name and dense.provenance != MEASURED else ""
            met.append(f"takes {takes:.4g}{unit}{doubt}{what} and the budget is {wanted:.4g}{unit}")
    if not allowed:
        raise MetUnpruned(f"nothing needs pruning: the unpruned network {', '.join(met)}; ask for less")
    return allowed


def plan_once(task: Task, budgets: Sequence[Budget], settings: PruneSettings) -> tuple[Baseline, Plan]:
    """The plan for some budgets in one step, without cutting anything."""
    dense = baseline(task, settings, resources=[budget.resource.name for budget in budgets])
    allowed = amounts(budgets, dense)
    return dense, dense.planner.plan(scores_of(task, dense.module, dense.graph, settings), allowed)


def _half_of(precision: NetworkPrecision, task: Task) -> str:
    """What half precision is on the table's device."""
    if not is_with_half(precision):
        return BFLOAT16
    from aap_hw.compile.keys.target import half_of

    return half_of(precision, task.target)
