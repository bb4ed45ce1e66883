"""What is shown of a run: a bar on a terminal, plain lines elsewhere, JSON alone if asked for, nothing if quiet."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from aap_hw.cli.run_screen import PruneScreen, summary_table
from aap_hw.prune.events import Event
from aap_hw.prune.job import Pruned
from aap_hw.prune.run import PrunedNetwork
from aap_hw.prune.sentences import budget_sentences, chosen_by_sentence, figure_rows
from aap_hw.prune.summary import of_another_precision

RESNET20 = ("--model", "resnet20", "--weights", "embedded", "--calibration-images", "8", "--budget", "50%")
CUT = {"round": 2, "rounds": 3, "measured_ms": None, "predicted_ms": 0.5, "kept_attention": 0.75}
EPOCH = {"epoch": 1, "epochs": 4, "loss": 0.25, "accuracy": 91.5, "seconds": 30.0}


def shown(terminal: bool, quiet: bool = False) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=80, quiet=quiet, highlight=False, markup=False)
    with PruneScreen(console) as screen:
        screen.show(Event("cut", CUT))
        screen.show(Event("epoch", EPOCH))
    return text.getvalue()


def test_terminal_has_a_bar_with_round_epoch_loss_accuracy_latency_and_time_left() -> None:
    text = shown(terminal=True)
    # Five of twelve epochs are done, of 30 s each; a terminal of 80 columns cuts nothing off.
    assert "round 2 of 3, epoch 1 of 4" in text
    assert "at most 3 min 30 s left" in text
    assert "loss 0.250, accuracy 91.50 %, 0.500 ms" in text
    assert "…" not in text


def test_elsewhere_there_are_plain_lines_alone() -> None:
    assert shown(terminal=False) == (
        "round 2 of 3: cut to 0.500 ms predicted, keeping 75.0% of its attention\n"
        "  epoch 1 of 4: loss 0.2500, accuracy 91.50 %, 30 s\n"
    )


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_accuracy_of_the_unpruned_network_says_that_it_is_in_float32_where_the_run_is_not(precision: str) -> None:
    text = io.StringIO()
    rounded = {"precision": precision, "dense_float_ms": 2.0}
    start = {"table_error": None, "provenance": "measured", "why_predicted": None, "budgets": {"latency": 0.5}}
    start |= {"dense_ms": 1.0, "dense_is_measured": True, "accuracy": 91.5, **(rounded if precision != "fp32" else {})}
    with PruneScreen(Console(file=text, width=140, highlight=False, markup=False)) as screen:
        screen.show(Event("start", start))
    assert (
        text.getvalue()
        == {
            "fp32": "unpruned 1.000 ms measured, accuracy 91.50 %; budget 0.500 ms\n",
            "int8": "unpruned in int8 1.000 ms measured (in float32 2.000 ms), accuracy 91.50 % in float32; "
            "budget 0.500 ms\n",
        }[precision]
    )


def test_long_epochs_tell_how_far_they_are_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("aap_hw.cli.run_screen.time.monotonic", lambda: clock[0])
    text = io.StringIO()
    with PruneScreen(Console(file=text, width=140, highlight=False, markup=False)) as screen:
        screen.show(Event("cut", {**CUT, "round": 1, "rounds": 1}))
        for step in range(1, 9):
            clock[0] += 10
            figures = {"epoch": 1, "epochs": 2, "share": step / 8, "loss": 1 / step, "seconds": 10.0 * step}
            screen.show(Event("step", figures))
    # One epoch takes 80 s, so that at three eighths of it 130 s are left of two.
    assert text.getvalue().splitlines()[1:] == [
        "  epoch 1 of 2, 38% of it: loss 0.3333, at most 2 min 10 s left",
        "  epoch 1 of 2, 75% of it: loss 0.1667, at most 1 min 40 s left",
    ]


def test_quiet_is_silent() -> None:
    assert shown(terminal=True, quiet=True) == shown(terminal=False, quiet=True) == ""


@pytest.mark.usefixtures("quick")
def test_json_is_alone_on_standard_output_and_the_story_beside_it(
    aap_hw: Callable[..., Any], table_file: Path, tmp_path: Path
) -> None:
    told = aap_hw("prune", *RESNET20, "--lut", str(table_file), "--out", str(tmp_path / "told"), "--json")
    assert told.code == 0
    document = json.loads(told.out)
    assert document.pop("run") == str(tmp_path / "told")
    assert document == json.loads((tmp_path / "told" / "summary.json").read_text())
    assert "round 1 of 1: cut to" in told.err
    silent = aap_hw("prune", *RESNET20, "--lut", str(table_file), "--out", str(tmp_path / "silent"), "--quiet")
    assert (silent.code, silent.out, silent.err) == (0, "", "")


SUMMARY = {
    "provenance": "measured", "dense_ms": 2.0, "predicted_ms": 0.99, "pruned_ms": 1.0, "accuracy_dense": 92.0,
    "accuracy_pruned": 91.5, "params_dense": 1000, "params_pruned": 500, "macs_dense": 4000, "macs_pruned": 1000,
    "bytes_dense": 4_000_000, "bytes_pruned": 2_000_000,
}  # fmt: skip


@pytest.mark.parametrize("where", [None, "rpc://127.0.0.1:9090"])
def test_what_to_do_next_is_to_deploy_to_the_device_where_it_was(where: str | None) -> None:
    text = io.StringIO()
    pruned = Pruned(Path("runs/my pi"), cast("PrunedNetwork", None), {**SUMMARY, "retrained": True}, "rpi4", where)
    PruneScreen(Console(file=text, width=140, highlight=False, markup=False)).finish(pruned)
    connect = "" if where is None else f" --connect {where}"
    assert text.getvalue().splitlines()[-1] == f"next: aap-hw deploy 'runs/my pi' --device rpi4{connect}"


def test_what_decided_is_said_and_the_accuracy_to_keep_is_that_of_the_split_that_decided() -> None:
    assert chosen_by_sentence({**SUMMARY, "chosen_by": None}) == chosen_by_sentence(SUMMARY) == ""
    assert chosen_by_sentence({**SUMMARY, "chosen_by": "test"}) == (
        "the test split guides decisions, so the reported accuracy is optimistic"
    )
    three = {**SUMMARY, "chosen_by": "val", "accuracy_val_dense": 93.0, "accuracy_val_pruned": 92.6}
    assert chosen_by_sentence(three) == (
        "the validation split guides decisions (there 93.00 % unpruned and 92.60 % pruned); the test split was looked "
        "at once, at the end"
    )
    assert budget_sentences({**three, "accuracy_wanted": 92.5})[0] == (
        "the accuracy to keep on the validation split, 92.50 %, is kept: 92.60 %"
    )
    assert "MISSED" in budget_sentences({**SUMMARY, "accuracy_wanted": 92.5})[0]


def test_a_budget_between_the_quickest_and_the_middle_load_is_met_within_what_timings_differ_by() -> None:
    asked = {**SUMMARY, "budgets": {"latency": 1.0}, "budget_ms": 1.0}
    (met,) = budget_sentences({**asked, "ms_of_loads": [0.99, 1.0, 1.2]})
    assert met == "the budget of 1.000 ms is met: 1.000 ms measured"
    (near,) = budget_sentences({**asked, "pruned_ms": 1.004, "ms_of_loads": [0.999, 1.004, 1.01]})
    assert near == (
        "the budget of 1.000 ms is met within what timings differ by: 1.004 ms measured, 0.999 to 1.01 ms when loaded "
        "3 times"
    )
    for loads in ({"ms_of_loads": [1.003, 1.004, 1.01]}, {}):
        (missed,) = budget_sentences({**asked, "pruned_ms": 1.004, **loads})
        assert missed.startswith("the budget of 1.000 ms is MISSED by 0.4%: 1.004 ms measured; ")


def test_a_run_in_another_precision_has_neither_the_times_nor_the_accuracy_nor_the_memory_of_its_own() -> None:
    budgets = {"latency": 1.0, "memory": 2.1e6, "parameters": 600}
    known = {**SUMMARY, "accuracy_wanted": 90.5, "budgets": budgets, "memory_dense": 4e6, "memory_pruned": 2e6}
    assert len(budget_sentences({**known, "budget_ms": 1.0})) == 4
    measured = {"pruned_ms": 0.25, "dense_ms": 0.5}
    shown = {**of_another_precision({**known, "ms_of_loads": [0.99], "dense_is_measured": True}, "int8"), **measured}
    assert [row[0] for row in figure_rows(shown)] == ["latency, ms, measured", "parameters", "multiply-accumulates"]
    assert budget_sentences(shown) == ["the budget of 600 parameters is met: 500 parameters"]
    assert not {"predicted_ms", "accuracy_dense", "bytes_pruned", "ms_of_loads", "dense_is_measured"} & shown.keys()
    in_int8 = {**known, "precision": "int8", "accuracy_pruned": 90.8, "accuracy_pruned_float": 91.5}
    assert ("accuracy, %", "92.00", "91.50", "-0.50") in figure_rows(of_another_precision(in_int8, "fp32"))
    assert "accuracy_dense" not in of_another_precision(in_int8, "half")


def test_final_table_has_both_latencies_accuracy_and_sizes() -> None:
    text = io.StringIO()
    Console(file=text, width=100).print(summary_table(SUMMARY))
    rows = {line[:24].strip(): line[24:].split() for line in text.getvalue().splitlines()[1:]}
    assert rows == {
        "latency, ms, measured": ["2.000", "1.000", "50%"],
        "latency, ms, predicted": ["0.990"],
        "accuracy, %": ["92.00", "91.50", "-0.50"],
        "parameters": ["1,000", "500", "50%"],
        "multiply-accumulates": ["4,000", "1,000", "25%"],
        "weights, MB": ["4.00", "2.00", "50%"],
    }
