"""What a run's figures are called in sentences and tables, on a terminal and in a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aap_hw.compile.keys.precision import INT8, in_precision
from aap_hw.device.description import MEASURED


def how_known(measured: bool, provenance: str) -> str:
    """How a time is known, of a network that was timed or not, by whatever made the table of that provenance."""
    if provenance != "measured":
        return f"{provenance}: no latency of the device"
    return "measured" if measured else "predicted"


def quantity(provenance: str) -> str:
    """What a time of a table is: a latency only if a device took it."""
    return "latency" if provenance == MEASURED else "time"


def estimate_sentence(figures: Mapping[str, Any]) -> str:
    """What the times of a run or a plan are worth if they are estimated; empty if they are not."""
    if (estimate := figures.get("estimate")) is None:
        return ""
    from aap_hw.lut.provenance import Estimate

    return Estimate(**estimate).sentence()


def time_text(milliseconds: float, measured: bool, provenance: str) -> str:
    """A time and how it is known, see ``how_known``."""
    how = how_known(measured, provenance)
    return f"{milliseconds:.3f} ms " + (how if provenance == "measured" else f"({how})")


def error_text(table_error: Mapping[str, Any] | None) -> str:
    """What a prediction is worth, in parentheses behind it; empty if the table was never checked on whole networks."""
    from aap_hw.lut.fidelity import Fidelity

    return "" if table_error is None else f" ({Fidelity(**table_error).sentence()})"


def slow_sentence(slow_path: str, share: float | None) -> str:
    """Kernels without a schedule (`Network.slow_path`), with their share of the time where that was measured."""
    return slow_path if share is None else f"{slow_path}; without a schedule, they take {share:.0%} of the time"


def figure_rows(summary: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """What a run comes to: rows of a name, the unpruned and the pruned network, and the share."""
    rows: list[tuple[str, str, str, str]] = []

    def row(name: str, dense: float | None, pruned: float | None, form: str) -> None:
        if pruned is not None:
            share = f"{pruned / dense:.0%}" if dense else ""
            rows.append((name, "" if dense is None else form.format(dense), form.format(pruned), share))

    provenance = summary.get("provenance", "measured")
    measured = summary.get("pruned_ms")
    if measured is not None:
        # Timed on the device itself, and the unpruned network beside it, whatever the table is.
        row("latency, ms, measured", summary["dense_ms"], measured, "{:.3f}")
    row(
        f"{quantity(provenance)}, ms, {how_known(False, provenance)}",
        None if measured is not None else summary.get("dense_ms"),
        summary.get("predicted_ms"),
        "{:.3f}",
    )
    if (in_float32 := summary.get("dense_float_ms")) is not None:
        rows.append(("the same in float32, ms", f"{in_float32:.3f}", "", ""))
    dense, pruned = summary.get("accuracy_dense"), summary.get("accuracy_pruned")
    pruned_float = summary.get("accuracy_pruned_float")
    if dense is not None and pruned is not None:
        computed = in_precision(summary.get("precision", INT8))
        name = "accuracy, %" if pruned_float is None else f"accuracy{computed} (unpruned: float32), %"
        rows.append((name, f"{dense:.2f}", f"{pruned:.2f}", f"{pruned - dense:+.2f}"))
    if dense is not None and pruned_float is not None:
        rows.append(("accuracy in float32, %", f"{dense:.2f}", f"{pruned_float:.2f}", f"{pruned_float - dense:+.2f}"))
    row("parameters", summary.get("params_dense"), summary.get("params_pruned"), "{:,}")
    row("multiply-accumulates", summary.get("macs_dense"), summary.get("macs_pruned"), "{:,}")
    for name, key in (("memory, MB", "memory"), ("weights, MB", "bytes")):
        sizes = summary.get(f"{key}_dense"), summary.get(f"{key}_pruned")
        if sizes[0] is not None and sizes[1] is not None:
            row(name, sizes[0] / 1e6, sizes[1] / 1e6, "{:.2f}")
    return rows


def budget_sentences(summary: Mapping[str, Any]) -> list[str]:
    """For each budget, whether it is met, by how much not, and what then.

    A latency that was measured is that of the middle one of some loads. If the quickest of them is within the budget
    and the middle one is not, the budget lies within what two timings of one network differ by.
    """
    sentences = []
    if (wanted := summary.get("accuracy_wanted")) is not None:
        reached = summary.get("accuracy_val_pruned", summary["accuracy_pruned"])
        kept = "kept" if reached >= wanted - 1e-9 else "MISSED, so train longer or allow a larger drop"
        where = " on the validation split" if "accuracy_val_pruned" in summary else ""
        sentences.append(f"the accuracy to keep{where}, {wanted:.2f} %, is {kept}: {reached:.2f} %")
    latency, latency_text = _pruned_latency(summary)
    pruned = {"latency": latency, "parameters": summary.get("params_pruned"), "flops": summary.get("macs_pruned")}
    pruned["memory"] = summary.get("memory_pruned")
    for name, amount in {**summary.get("budgets", {}), **_latency_budget(summary)}.items():
        took = pruned[name]
        if took is None:
            continue
        reached = latency_text if name == "latency" else amount_text(name, took)
        loads = summary.get("ms_of_loads", []) if name == "latency" else []
        if took <= amount:
            sentences.append(f"the budget of {amount_text(name, amount)} is met: {reached}")
        elif min(loads, default=took) <= amount:
            sentences.append(
                f"the budget of {amount_text(name, amount)} is met within what timings differ by: {reached}, "
                f"{min(loads):.4g} to {max(loads):.4g} ms when loaded {len(loads)} times"
            )
        else:
            sentences.append(
                f"the budget of {amount_text(name, amount)} is MISSED by {took / amount - 1:.1%}: {reached}; "
                "ask for less, or profile the device again if it has changed"
            )
    return sentences


def chosen_by_sentence(summary: Mapping[str, Any]) -> str:
    """What a run was decided by, and so what its accuracy is worth; empty if no accuracy decided anything."""
    match summary.get("chosen_by"):
        case "test":
            return "the test split guides decisions, so the reported accuracy is optimistic"
        case "val":
            return (
                f"the validation split guides decisions (there {summary['accuracy_val_dense']:.2f} % unpruned and "
                f"{summary['accuracy_val_pruned']:.2f} % pruned); the test split was looked at once, at the end"
            )
        case _:
            return ""


def float_layers_sentence(chosen: Mapping[str, Any]) -> str:
    """Which layers stay in float32, as `aap_hw.prune.quantised` found it; empty if none does."""
    if not chosen["names"]:
        return ""
    listed, unit = ", ".join(chosen["names"]), chosen["unit"]
    return (
        f"layers that stay in float32: {listed}; with them int8 loses {chosen['lost']:.2f} {unit} "
        f"({chosen['allowed']:.2f} allowed), without them it would lose {chosen['lost_by_all']:.2f}"
    )


def constraints_sentence(constraints: Sequence[Mapping[str, Any]], provenance: str = MEASURED) -> str:
    """What a plan spends of each budget, and which of them binds: the first, of which the least is left."""

    def part(resource: str, spent: float, budget: float) -> str:
        doubt = f", {provenance}" if resource == "latency" and provenance != MEASURED else ""
        return f"{_number(resource, spent)} of {amount_text(resource, budget)}{doubt} ({spent / budget:.1%})"

    parts = [part(each["resource"], each["spent"], each["budget"]) for each in constraints]
    if len(parts) == 1:
        return f"spent {parts[0]}"
    tightest = constraints[0]["resource"]
    return f"spent {', '.join(parts)}; {tightest} bind{'' if tightest.endswith('s') else 's'}"


def amount_text(resource: str, amount: float) -> str:
    """An amount of a resource with its unit."""
    unit = {"latency": "ms", "memory": "MB of memory"}.get(resource, resource)
    return f"{_number(resource, amount)} {unit}"


def _number(resource: str, amount: float) -> str:
    if resource == "memory":
        return f"{amount / 1e6:.3f}"
    return f"{amount:.3f}" if resource == "latency" else f"{amount:,.0f}"


def _latency_budget(summary: Mapping[str, Any]) -> dict[str, float]:
    # A share of the unpruned latency is another time on each day that the device is measured.
    return {} if summary.get("budget_ms") is None else {"latency": summary["budget_ms"]}


def _pruned_latency(summary: Mapping[str, Any]) -> tuple[float, str]:
    """The best known latency of the pruned network in milliseconds, and in words."""
    if (measured := summary.get("pruned_ms")) is not None:
        return measured, time_text(measured, True, "measured")
    predicted, provenance = summary["predicted_ms"], summary.get("provenance", "measured")
    error = error_text(summary.get("table_error")) if provenance == "measured" else ""
    return predicted, time_text(predicted, False, provenance) + error


MADE_UP = (
    "no inputs were given, so filters were ranked on stand-ins (pictures of clothes for a network of images, else "
    "random numbers), which say little about yours: give those with --data, or with --example FILE.npz"
)
