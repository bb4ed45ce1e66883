"""From run folders to a report file: one run in full, or several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aap_hw.device.description import MEASURED
from aap_hw.errors import UserError
from aap_hw.files import make_folder, write_atomic
from aap_hw.lut.fidelity import table_error
from aap_hw.prune.sentences import (
    MADE_UP,
    budget_sentences,
    chosen_by_sentence,
    estimate_sentence,
    figure_rows,
    float_layers_sentence,
)
from aap_hw.report.chart import Page
from aap_hw.report.charts import charts_of, comparison_of
from aap_hw.report.page import html_of
from aap_hw.report.story import Story, read_story


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of a run, or the comparison of several.

    Parameters
    ----------
    folders
        Finished runs.
    out
        Where to write it; default: ``report.html`` in the first run's folder, ``comparison.html`` beside it.

    Returns
    -------
    The file.

    Raises
    ------
    UserError : a folder holds no finished run or is given twice, or the file cannot be written.
    """
    if not folders:
        raise UserError("there is nothing to report on: give at least one run folder")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("a run is given twice; give each folder once")
    stories = [read_story(folder) for folder in folders]
    one = len(stories) == 1
    out = out or (folders[0] / "report.html" if one else folders[0].resolve().parent / "comparison.html")
    make_folder(out.parent)
    write_atomic(out, html_of(page_of_run(stories[0]) if one else page_of_runs(stories)))
    return out


def page_of_run(story: Story) -> Page:
    """The page of one run."""
    s = story.summary
    return Page(
        title=f"{s['model']} on {s['device']}",
        subtitle=f"{story.name}: {story.inputs.described}, round {story.chosen} of {len(story.rounds)} kept. "
        + " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in budget_sentences(s)),
        columns=("unpruned", "pruned", "share"),
        facts=[(name, cells) for name, *cells in figure_rows(s)],
        notes=_notes([story]),
        charts=charts_of(story),
        footer=_footer([story]),
    )


def page_of_runs(stories: Sequence[Story]) -> Page:
    """The page that compares runs."""

    def row(name: str, cells: Sequence[str]) -> tuple[str, Sequence[str]]:
        return name, cells

    summaries = [story.summary for story in stories]
    rows = [
        row("network", [f"{story.summary['model']} at {story.inputs.text}" for story in stories]),
        row("device", [s["device"] for s in summaries]),
        row("precision", [s.get("precision", "fp32") for s in summaries]),
        row("unpruned", [f"{story.unpruned[0]:.3f} ms {story.unpruned[1]}" for story in stories]),
        row("pruned", [f"{story.latency[0]:.3f} ms {story.latency[1]}" for story in stories]),
        row("share", [f"{story.latency[0] / story.summary['dense_ms']:.0%}" for story in stories]),
        row("accuracy, unpruned", [_percent(s["accuracy_dense"]) for s in summaries]),
        row("accuracy, pruned", [_percent(s["accuracy_pruned"]) for s in summaries]),
        row(
            "parameters", [f"{s['params_pruned']:,} ({s['params_pruned'] / s['params_dense']:.0%})" for s in summaries]
        ),
        row(
            "multiply-accumulates",
            [f"{s['macs_pruned']:,} ({s['macs_pruned'] / s['macs_dense']:.0%})" for s in summaries],
        ),
        row("score", [s.get("score", "attention") for s in summaries]),
        row("rounds", [str(len(story.rounds)) for story in stories]),
    ]
    return Page(
        title=f"{len(stories)} runs compared",
        subtitle=", ".join(story.name for story in stories),
        columns=[story.name for story in stories],
        facts=rows,
        notes=_notes(stories),
        charts=comparison_of(stories),
        footer=_footer(stories),
    )


def _notes(stories: Sequence[Story]) -> list[str]:
    notes = []
    for story in stories:
        name = f"{story.name}: " if len(stories) > 1 else ""
        if story.provenance != MEASURED:
            but = " But the pruned network was timed on the device afterwards: only that is called measured."
            worth = estimate_sentence(story.summary) or "they say nothing about a real one"
            notes.append(
                f"{name}the latencies of this run come from a table that was {story.provenance}, not measured on the "
                f"device: {worth}.{but if story.is_timed else ''}"
            )
        elif not story.is_timed:
            started = next((event for event in story.events if event["event"] == "start"), {})
            why = started.get("why_predicted")
            notes.append(f"{name}the pruned latency is predicted, not measured{f': {why}' if why else ''}.")
        if (layers := story.summary.get("float_layers")) and (sentence := float_layers_sentence(layers)):
            notes.append(f"{name}{sentence}.")
        if sentence := chosen_by_sentence(story.summary):
            notes.append(f"{name}{sentence}.")
        if story.summary.get("made_up_inputs"):
            notes.append(f"{name}{MADE_UP}.")
        if not story.summary["retrained"]:
            notes.append(f"{name}the run trained nothing: there is no accuracy to show.")
    if len({(story.summary["device"], story.table.device["cpu"]) for story in stories}) > 1:
        notes.append("These runs are of different devices: their latencies are no comparison of the networks.")
    # With several runs, a note begins with the name of one.
    return [f"{note[0].upper()}{note[1:]}" for note in notes] if len(stories) == 1 else notes


def _footer(stories: Sequence[Story]) -> list[str]:
    lines = []
    for story in stories:
        device = story.table.device
        lines.append(
            f"{story.folder}: table of {device['name']} ({device['provenance']} {device['date']} on {device['cpu']}, "
            f"{device['threads']} thread{'s' if device['threads'] > 1 else ''}, TVM {device['tvm']})"
        )
        name = story.network_name
        if (error := table_error(story.table, name.model, name.inputs, name.precision)) is not None:
            lines[-1] += f"; {error.sentence()}"
    return lines


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} %"
