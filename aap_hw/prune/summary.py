"""The figures of a run: those that are known when it begins, and the summary that it ends with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from aap_hw.compile.front.network import Network
from aap_hw.compile.front.precision import weights_in_int8
from aap_hw.compile.keys.precision import FP32, NetworkPrecision
from aap_hw.lut.fidelity import table_error
from aap_hw.lut.provenance import Estimate
from aap_hw.policy import LATENCY, MEMORY
from aap_hw.prune.baseline import Baseline
from aap_hw.prune.run import PrunedNetwork
from aap_hw.prune.samples import are_made_up
from aap_hw.prune.steps import State
from aap_hw.prune.task import PruneSettings, Task


def begun(task: Task, dense: Baseline, wanted: Mapping[str, float], settings: PruneSettings) -> dict[str, Any]:
    """Figures of a run that are known when it begins; ``wanted`` is what its budgets allow."""
    error = table_error(task.table, task.origin.model, task.origin.inputs, settings.precision)
    estimate = Estimate.of(task.table)
    return {
        "dense_ms": dense.dense_ms,
        "dense_is_measured": dense.measured,
        "provenance": task.table.device["provenance"],
        "budget_ms": wanted.get(LATENCY.name),
        "budgets": dict(wanted),
        "score": settings.scored_by,
        "table_error": None if error is None else error.as_json(),
        **({} if estimate is None else {"estimate": estimate.as_json()}),
        "made_up_inputs": are_made_up(task.data),
        **({} if settings.precision == FP32 else {"precision": settings.precision, "dense_float_ms": dense.float_ms}),
        **({} if dense.in_float32 is None else {"float_layers": dense.in_float32}),
    }


def as_computed(task: Task, settings: PruneSettings, state: State) -> dict[str, Any]:
    """What a run's record says of the precision that it was planned in, and of its network's form in int8."""
    record: dict[str, Any] = {} if settings.precision == FP32 else {"precision": settings.precision}
    if state.int8 is None:
        return record
    count, made_up = settings.images_for(task.origin.inputs), are_made_up(task.data)
    return {**record, "quantisation": state.int8, "calibration_images": count, "made_up_inputs": made_up}


def finished(
    task: Task,
    dense: Baseline,
    state: State,
    known: Mapping[str, Any],
    accuracies: Mapping[str, Any],
    last: Mapping[str, Any],
    record: dict[str, Any],
) -> tuple[PrunedNetwork, dict[str, Any]]:
    """The pruned network and the run's summary.

    Given are what was ``known`` at the start, what is known of accuracy, and the figures of the round that was kept.
    """
    summary = {
        **task.origin.as_json(),
        "untrained": task.origin.is_untrained,
        "device": task.table.device["name"],
        "provenance": task.table.device["provenance"],
        **known,
        "round": last["round"],
        "predicted_ms": last["predicted_ms"],
        "pruned_ms": last["measured_ms"],
        **accuracies,
        "retrained": task.retrain,
        **_sizes(dense, state),
    }
    if MEMORY.name in dense.takes:
        took = dense.planner.costs.spent({**dense.network.dense, **state.widths}, state.floats)
        summary |= {"memory_dense": dense.takes[MEMORY.name], "memory_pruned": took[MEMORY.name]}
    return PrunedNetwork(task.origin, state.kept, task.table.device["name"], state.module, record), summary


# Figures of a summary that hold in any precision that the network is deployed in.
_IN_ANY_PRECISION = (
    *("model", "weights", "input", "classes", "untrained", "device", "budgets", "score", "made_up_inputs", "precision"),
    *("round", "chosen_by", "retrained", "params_dense", "params_pruned", "macs_dense", "macs_pruned"),
)


def of_another_precision(summary: Mapping[str, Any], deployed_in: NetworkPrecision) -> dict[str, Any]:
    """Those of a run's figures that hold in a precision that the run was not pruned in: no times and no bytes.

    Accuracies are among them only in float32, in which a run in any precision measures them, too.
    """
    kept = {name: summary[name] for name in _IN_ANY_PRECISION if name in summary}
    if "budgets" in kept:
        kept["budgets"] = {name: kept["budgets"][name] for name in ("parameters", "flops") if name in kept["budgets"]}
    if deployed_in == FP32 and (in_float32 := summary.get("accuracy_pruned_float")) is not None:
        kept |= {"accuracy_dense": summary["accuracy_dense"], "accuracy_pruned": in_float32}
    return kept


def _sizes(dense: Baseline, state: State) -> dict[str, int]:
    def macs(network: Network, plan: Mapping[str, int]) -> int:
        return sum(kernel.multiply_accumulates(plan) for kernel in network.kernels)

    def stored(module: nn.Module, network: Network) -> int:
        in_bytes = weights_in_int8(network)
        sizes = {name: (1 if name in in_bytes else t.element_size()) for name, t in module.state_dict().items()}
        return sum(t.numel() * sizes[name] for name, t in module.state_dict().items())

    before, after = dense.network, state.planner.costs.network_of(state.floats)
    return {
        "params_dense": sum(p.numel() for p in dense.module.parameters()),
        "params_pruned": sum(p.numel() for p in state.module.parameters()),
        "macs_dense": macs(before, before.dense),
        "macs_pruned": macs(after, state.widths),
        "bytes_dense": stored(dense.module, before),
        "bytes_pruned": stored(state.module, after),
    }
