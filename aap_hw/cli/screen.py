"""What a person sees while a command works: for a profile a bar with an estimate, or plain lines where standard error is not a terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

if TYPE_CHECKING:
    from aap_hw.lut.profiling import ProfileProgress
    from aap_hw.prune.rounds import Event
    from aap_hw.prune.run import RunFolder

SECONDS_BETWEEN_LINES = 10.0


class ProfileScreen:
    """Shows a profile's progress while it is entered; Ctrl-C becomes a sentence that says what was kept."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("measuring"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("points", total=None, left="")
        self._kept = 0
        self._last_line = float("-inf")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if kind is KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"{self._kept} measured points are kept beside {self._path}; the same command goes on from there"
            )

    def update(self, progress: ProfileProgress) -> None:
        """Show how far the profile is."""
        self._kept = progress.kept + progress.measured
        left = "" if progress.seconds_left is None else f"about {duration(progress.seconds_left)} left"
        if not self._bar.disable:
            self._bar.update(self._task, completed=progress.measured, total=progress.total, left=left)
            return
        now, ends = time.monotonic(), progress.measured in (0, progress.total)
        if ends or now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            kept = f" ({progress.kept} were there already)" if progress.measured == 0 and progress.kept else ""
            tail = f", {left}" if left and not ends else ""
            self._console.print(f"measured {progress.measured} of {progress.total} points{kept}{tail}", soft_wrap=True)


def duration(seconds: float) -> str:
    """Seconds as ``40 s`` or ``3 min 20 s``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class PruneScreen:
    """Tells a run's story line by line, and keeps it in the run's log."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._console = Console(highlight=False)

    def event(self, event: Event) -> None:
        """Show and log one event of the run."""
        self._run.append_event({"event": event.name, **event.figures})
        figures = event.figures
        match event.name:
            case "start":
                self._say(
                    f"unpruned {figures['dense_ms']:.3f} ms{_accuracy(figures)}; budget {figures['budget_ms']:.3f} ms"
                )
            case "measured":
                self._say(
                    f"  compiled and measured: {figures['measured_ms']:.3f} ms (predicted {figures['predicted_ms']:.3f})"
                )
            case "cut":
                self._say(
                    f"round {figures['round']}/{figures['rounds']}: cut to {figures['predicted_ms']:.3f} ms predicted, "
                    f"{figures['kept_attention']:.1%} of the attention kept"
                )
            case "epoch":
                self._say(
                    f"  epoch {figures['epoch']}/{figures['epochs']}: loss {figures['loss']:.4f}{_accuracy(figures)}, "
                    f"{figures['seconds']:.0f} s"
                )

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Print the run's result and the next command."""
        self._console.print(summary_table(summary))
        if not summary["retrained"]:
            self._say(
                "The weights were cut and not retrained: expect a useless accuracy until you train. "
                f"Load {self._run.path}, train it on your images, or prune with --data."
            )
        self._say(f"next: aap-hw deploy {self._run.path} --device {summary['device']}")

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)


def summary_table(summary: Mapping[str, Any]) -> Table:
    """Dense against pruned, as a table."""
    grid = Table(box=None, pad_edge=False)
    for heading in ("", "unpruned", "pruned", "share"):
        grid.add_column(heading, justify="left" if not heading else "right")

    def row(name: str, dense: float | None, pruned: float | None, form: str) -> None:
        if dense is not None and pruned is not None:
            grid.add_row(name, form.format(dense), form.format(pruned), f"{pruned / dense:.0%}")

    measured = summary.get("pruned_ms")
    row(
        "latency, ms, measured" if measured else "latency, ms, predicted",
        summary["dense_ms"],
        measured or summary["predicted_ms"],
        "{:.3f}",
    )
    row("accuracy, %", summary.get("accuracy_dense"), summary.get("accuracy_pruned"), "{:.2f}")
    row("parameters", summary.get("params_dense"), summary.get("params_pruned"), "{:,}")
    row("multiply-accumulates", summary.get("macs_dense"), summary.get("macs_pruned"), "{:,}")
    return grid


def _accuracy(figures: Mapping[str, Any]) -> str:
    accuracy = figures.get("accuracy")
    return "" if accuracy is None else f", accuracy {accuracy:.2f} %"
