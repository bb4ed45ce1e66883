"""What a person sees of a run: its story line by line while it is pruned, its figures when it is done or deployed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from aap_hw.prune.steps import Event


def plain_console() -> Console:
    """Standard output without colours or markup: paths and operators may contain brackets."""
    return Console(highlight=False, markup=False)


def error_text(table_error: Mapping[str, Any] | None) -> str:
    """What a prediction is worth, in parentheses behind it; empty if the table was never checked on whole networks."""
    from aap_hw.lut.fidelity import Fidelity

    return "" if table_error is None else f" ({Fidelity(**table_error).sentence()})"


class PruneScreen:
    """Tells the story of a run, event by event."""

    def __init__(self) -> None:
        self._error = ""
        self._console = plain_console()

    def show(self, event: Event) -> None:
        """Show one event of the run."""
        figures = event.figures
        match event.name:
            case "start":
                self._error = error_text(figures["table_error"])
                if figures["why_predicted"]:
                    self._say(f"latencies are predicted, not measured: {figures['why_predicted']}")
                budgets = ", ".join(amount_text(name, amount) for name, amount in figures["budgets"].items())
                goal = f"budget {budgets}" if budgets else f"to keep: {figures['accuracy_wanted']:.2f} %"
                unpruned = _latency(figures["dense_ms"], figures["dense_is_measured"])
                self._say(f"unpruned {unpruned}{_accuracy(figures)}; {goal}")
            case "measured":
                self._say(
                    f"  tried a plan on the device: predicted {figures['predicted_ms']:.3f} ms{self._error}, "
                    f"measured {figures['measured_ms']:.3f} ms, "
                    + ("within the budget" if figures["budget_met"] else "over the budget")
                )
            case "cut":
                measured = figures["measured_ms"]
                latency = _latency(measured or figures["predicted_ms"], measured is not None)
                latency += self._error if measured is None else ""
                self._say(
                    f"round {figures['round']} of {figures['rounds']}: cut to {latency}, "
                    f"keeping {figures['kept_attention']:.1%} of its attention"
                )
            case "epoch":
                self._say(
                    f"  epoch {figures['epoch']} of {figures['epochs']}: "
                    f"loss {figures['loss']:.4f}{_accuracy(figures)}, {figures['seconds']:.0f} s"
                )

            case "round" if not figures.get("accuracy_kept", True):
                reason = "finds nothing left to cut" if figures["accuracy"] is None else "has too low an accuracy"
                self._say(f"round {figures['round']} {reason}: undone")

    def finish(self, path: Path, summary: Mapping[str, Any]) -> None:
        """Print the result of the run in the folder ``path`` and what to do next."""
        self._console.print(summary_table(summary))
        for sentence in budget_sentences(summary):
            self._say(sentence)
        if not summary["retrained"]:
            if summary["weights"] is None:
                self._say("the network had random weights: widths and latencies are real, which filters stay is not")
            self._say(
                "the weights were cut in one round and not retrained, so expect a useless accuracy; to go on, train "
                f"aap_hw.prune.run.RunFolder(pathlib.Path({str(path)!r})).load().module on your images, "
                "or give --data, which prunes and trains in rounds"
            )
        self._say(f"next: aap-hw deploy {path} --device {summary['device']}")

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)


def summary_table(summary: Mapping[str, Any]) -> Table:
    """Unpruned against pruned, as a table."""
    grid = Table(box=None, pad_edge=False)
    for heading in ("", "unpruned", "pruned", "share"):
        grid.add_column(heading, justify="left" if not heading else "right")

    def row(name: str, dense: float | None, pruned: float | None, form: str) -> None:
        if dense is not None and pruned is not None:
            grid.add_row(name, form.format(dense), form.format(pruned), f"{pruned / dense:.0%}" if dense else "")

    latency, how = _pruned_latency(summary)
    row(f"latency, ms, {how}", summary.get("dense_ms"), latency, "{:.3f}")
    row("accuracy, %", summary.get("accuracy_dense"), summary.get("accuracy_pruned"), "{:.2f}")
    row("parameters", summary.get("params_dense"), summary.get("params_pruned"), "{:,}")
    row("multiply-accumulates", summary.get("macs_dense"), summary.get("macs_pruned"), "{:,}")
    row("memory, bytes", summary.get("memory_dense"), summary.get("memory_pruned"), "{:,.0f}")
    return grid


def budget_sentences(summary: Mapping[str, Any]) -> list[str]:
    """For each budget, whether it is met, by how much not, and what then."""
    if (wanted := summary.get("accuracy_wanted")) is not None:
        return [f"the accuracy to keep, {wanted:.2f} %, is kept: {summary['accuracy_pruned']:.2f} %"]
    sentences = []
    latency, how = _pruned_latency(summary)
    how += error_text(summary.get("table_error")) if how == "predicted" else ""
    pruned = {"latency": latency, "parameters": summary.get("params_pruned"), "flops": summary.get("macs_pruned")}
    pruned["memory"] = summary.get("memory_pruned")
    for name, amount in {**summary.get("budgets", {}), **_latency_budget(summary)}.items():
        took = pruned[name]
        if took is None:
            continue
        reached = amount_text(name, took) + (f" {how}" if name == "latency" else "")
        if took <= amount:
            sentences.append(f"the budget of {amount_text(name, amount)} is met: {reached}")
        else:
            sentences.append(
                f"the budget of {amount_text(name, amount)} is MISSED by {took / amount - 1:.1%}: {reached}; "
                "ask for less, or profile the device again if it has changed"
            )
    return sentences


def constraints_sentence(constraints: Sequence[Mapping[str, Any]]) -> str:
    """What a plan spends of each budget, and which of them binds: the first, of which the least is left."""
    parts = [
        f"{_number(each['resource'], each['spent'])} of {amount_text(each['resource'], each['budget'])}"
        f" ({each['spent'] / each['budget']:.1%})"
        for each in constraints
    ]
    binds = f"; {constraints[0]['resource']} binds" if len(parts) > 1 else ""
    return f"spent {', '.join(parts)}{binds}"


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
    measured = summary.get("pruned_ms")
    return (summary["predicted_ms"], "predicted") if measured is None else (measured, "measured")


def _latency(milliseconds: float, measured: bool) -> str:
    return f"{milliseconds:.3f} ms {'measured' if measured else 'predicted'}"


def _accuracy(figures: Mapping[str, Any]) -> str:
    accuracy = figures.get("accuracy")
    return "" if accuracy is None else f", accuracy {accuracy:.2f} %"
