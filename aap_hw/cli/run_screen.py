"""What a person sees of a run: its story line by line while it is pruned, its figures when it is done or deployed."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.text import Text

from aap_hw.cli.console import grid_of
from aap_hw.cli.profile_screen import beside_bar, duration
from aap_hw.compile.keys.precision import INT8, in_precision, unpruned_in
from aap_hw.device.description import ESTIMATED
from aap_hw.prune.sentences import (
    MADE_UP,
    amount_text,
    budget_sentences,
    chosen_by_sentence,
    error_text,
    estimate_sentence,
    figure_rows,
    float_layers_sentence,
    time_text,
)

if TYPE_CHECKING:
    from rich.table import Table

    from aap_hw.prune.events import Event
    from aap_hw.prune.job import Pruned

SECONDS_BETWEEN_LINES = 30.0


class _BarAndFigures(Progress):
    """A bar, and below it what a terminal of 80 columns has no room for beside it."""

    def get_renderables(self) -> Iterator[RenderableType]:
        """All that is shown."""
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            yield Text(task.fields["told"])


class PruneScreen:
    """Tells the story of a run, event by event: lines, and below them on a terminal how far it is."""

    def __init__(self, console: Console) -> None:
        self._console, self._error, self._provenance = console, "", "measured"
        self._round, self._rounds, self._predicted_ms = 1, 1, 0.0
        self._epoch_seconds: list[float] = []
        self._last_line = float("-inf")
        self._bar = _BarAndFigures(
            SpinnerColumn("dots" if console.encoding.startswith("utf") else "line"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
            disable=not console.is_interactive or console.quiet,
        )
        self._telling = beside_bar(console, self._bar)
        self._task = self._bar.add_task("measuring and scoring the unpruned network", total=None, left="", told="")

    def __enter__(self) -> Self:
        self._bar.start()
        self._telling.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._telling.__exit__(None, None, None)
        self._bar.stop()

    def show(self, event: Event) -> None:
        """Show one event of the run."""
        self._tell(event)
        self._advance(event)
        if event.name == "epoch":
            self._epoch_seconds.append(event.figures["seconds"])

    def _advance(self, event: Event) -> None:
        """Bring the bar up to date."""
        figures = event.figures
        match event.name:
            case "cut":
                self._round, self._rounds = figures["round"], figures["rounds"]
                self._predicted_ms = figures["measured_ms"] or figures["predicted_ms"]
                self._bar.update(self._task, description=f"round {self._round} of {self._rounds}: training")
            case "step" | "epoch":
                done, total, left = self._progress(figures)
                source = "" if self._provenance == "measured" else f" {self._provenance}"
                self._bar.update(
                    self._task,
                    description=f"round {self._round} of {self._rounds}, "
                    f"epoch {figures['epoch']} of {figures['epochs']}",
                    completed=done,
                    total=total,
                    left=f"at most {duration(left)} left",
                    told=f"loss {figures['loss']:.3f}{_accuracy(figures)}, {self._predicted_ms:.3f} ms{source}",
                )
            case "round":
                self._bar.update(self._task, description=f"round {self._round} of {self._rounds}: done")
            case "start":
                self._bar.update(self._task, description="planning")

    def _progress(self, figures: Mapping[str, Any]) -> tuple[float, int, float]:
        """Epochs done and epochs in all rounds, and the seconds left if each takes as long as those that were."""
        share, total = figures.get("share", 1.0), self._rounds * figures["epochs"]
        done = (self._round - 1) * figures["epochs"] + figures["epoch"] - 1 + share
        seconds = sum(self._epoch_seconds) + figures["seconds"]
        return done, total, (total - done) * seconds / (len(self._epoch_seconds) + share)

    def _tell(self, event: Event) -> None:
        """Print what is worth a line."""
        figures = event.figures
        match event.name:
            case "start":
                self._error, self._provenance = error_text(figures["table_error"]), figures["provenance"]
                if figures.get("made_up_inputs"):
                    self._say(MADE_UP)
                if figures["why_predicted"]:
                    self._say(f"latencies are predicted, not measured: {figures['why_predicted']}")
                if sentence := estimate_sentence(figures):
                    self._say(sentence)
                budgets = ", ".join(amount_text(name, amount) for name, amount in figures["budgets"].items())
                goals = [f"budget {budgets}"] if budgets else []
                if "accuracy_wanted" in figures:
                    goals.append(f"to keep: {figures['accuracy_wanted']:.2f} %")
                goal = ", ".join(goals)
                unpruned = time_text(figures["dense_ms"], figures["dense_is_measured"], self._provenance)
                if figures.get("dense_float_ms") is not None:
                    computed = unpruned_in(figures["precision"])
                    unpruned = f"in {computed} {unpruned} (in float32 {figures['dense_float_ms']:.3f} ms)"
                accuracy = _accuracy(figures)
                if accuracy and "precision" in figures:  # the unpruned network is evaluated in float32
                    accuracy += " in float32"
                self._say(f"unpruned {unpruned}{accuracy}; {goal}")
                if (layers := figures.get("float_layers")) and (sentence := float_layers_sentence(layers)):
                    self._say(sentence)
            case "waiting":
                self._say(f"  {figures['reason']}")
            case "measured":
                self._say(
                    f"  tried a plan on the device: predicted {figures['predicted_ms']:.3f} ms{self._error}, "
                    f"measured {figures['measured_ms']:.3f} ms, "
                    + ("within the budget" if figures["budget_met"] else "over the budget")
                )
            case "cut":
                measured = figures["measured_ms"]
                latency = time_text(measured or figures["predicted_ms"], measured is not None, self._provenance)
                latency += self._error if measured is None else ""
                self._say(
                    f"round {figures['round']} of {figures['rounds']}: cut to {latency}, "
                    f"keeping {figures['kept_attention']:.1%} of its attention{_in_int8(figures)}"
                )
            case "step" if self._bar.disable and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
                self._say(
                    f"  epoch {figures['epoch']} of {figures['epochs']}, {figures['share']:.0%} of it: "
                    f"loss {figures['loss']:.4f}, at most {duration(self._progress(figures)[2])} left"
                )
            case "epoch":
                self._say(
                    f"  epoch {figures['epoch']} of {figures['epochs']}: "
                    f"loss {figures['loss']:.4f}{_accuracy(figures)}, {figures['seconds']:.0f} s"
                )
            case "quantised":
                in_float32 = f"in float32 {figures['accuracy_float']:.2f} %"
                self._say(f" {in_precision(figures.get('precision', INT8))}{_accuracy(figures)}; {in_float32}")
            case "tested":
                self._say(
                    f"on the test split: accuracy {figures['accuracy_pruned']:.2f} %, unpruned "
                    f"{figures['accuracy_dense']:.2f} %"
                )
            case "round" if not figures.get("accuracy_kept", True):
                reason = "finds nothing left to cut" if figures["accuracy"] is None else "has too low an accuracy"
                self._say(f"round {figures['round']} {reason}: undone")

    def finish(self, pruned: Pruned) -> None:
        """Print the result of a run and what to do next."""
        path, summary = pruned.folder, pruned.summary
        self._console.print(summary_table(summary))
        for sentence in budget_sentences(summary):
            self._say(sentence)
        if sentence := chosen_by_sentence(summary):
            self._say(sentence)
        if not summary["retrained"]:
            if summary["untrained"]:
                real = "widths and latencies" if summary.get("provenance", "measured") == "measured" else "widths"
                self._say(f"the network had random weights: {real} are real, but the choice of filters means nothing")
            from aap_hw.models.source import runs_code  # loads PyTorch

            is_code = runs_code(summary["model"])
            if is_code and pruned.network.origin.weights is None:
                self._say(f"no --weights were given: filters were ranked by the weights that {summary['model']} sets")
            trust = ", trust_source=True" if is_code else ""
            self._say(
                "the network was cut once and not retrained, so expect a useless accuracy: train "
                f"aap_hw.load({str(path)!r}{trust}) on your data and deploy the checkpoint with --weights FILE, or "
                "prune in rounds that train, with --data and without --no-training"
            )
        folder = shlex.quote(str(path))
        self._say(f"look at it: aap-hw report {folder}")
        where = "" if pruned.connect_to is None else f" --connect {shlex.quote(pruned.connect_to)}"
        where += " --no-run" if summary.get("provenance") == ESTIMATED else ""
        self._say(f"next: aap-hw deploy {folder} --device {shlex.quote(pruned.device)}{where}")

    def _say(self, line: str) -> None:
        self._last_line = time.monotonic()
        self._console.print(line, soft_wrap=True)


def summary_table(summary: Mapping[str, Any]) -> Table:
    """Unpruned against pruned, as a table."""
    columns = "unpruned", "pruned", "share"
    grid = grid_of("", *columns, right=columns)
    for row in figure_rows(summary):
        grid.add_row(*row)
    return grid


def _in_int8(figures: Mapping[str, Any]) -> str:
    """How much of a plan of mixed precisions is in int8."""
    if (precisions := figures.get("precisions")) is None:
        return ""
    return f", {sum(each == INT8 for each in precisions.values())} of {len(precisions)} values in int8"


def _accuracy(figures: Mapping[str, Any]) -> str:
    accuracy = figures.get("accuracy")
    return "" if accuracy is None else f", accuracy {accuracy:.2f} %"
