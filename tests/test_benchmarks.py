"""Every benchmark still runs, in its quick form, and prints the report that all of them print.

Of those that keep rows in a journal: it gives back only what was made in the same way. And what is stored of the
accuracy benchmark's runs still says what its log says.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests import forked

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(ROOT.glob("benchmarks/[a-z]*.py"))
RUNS = sorted(path.parent for path in ROOT.glob("docs/results/accuracy_latency/**/results.json"))


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture
def isolated() -> ModuleType:
    return __import__("_isolated")


def test_a_journal_gives_back_the_rows_of_the_same_settings(isolated: ModuleType, tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    one, two = {"threads": 1, "machine": {"cpu": "A"}}, {"threads": 2, "machine": {"cpu": "A"}}
    isolated.append(journal, one, {"model": "m5", "ratio": 0.5})
    isolated.append(journal, two, {"model": "m5", "ratio": 0.7})
    isolated.append(journal, one, {"model": "m5", "ratio": 0.6})
    journal.write_text(journal.read_text() + '{"settings": {"thre')  # killed while it wrote
    assert isolated.journalled(journal, one) == {"m5": {"model": "m5", "ratio": 0.6}}
    assert isolated.journalled(journal, two) == {"m5": {"model": "m5", "ratio": 0.7}}
    assert isolated.journalled(journal, {**one, "machine": {"cpu": "B"}}) == {}
    assert isolated.journalled(None, one) == isolated.journalled(tmp_path / "none", one) == {}


def test_a_network_that_the_system_kills_has_not_run_out_of_time(isolated: ModuleType) -> None:
    killed = isolated.in_its_own_process(["-c", "import os; os.kill(os.getpid(), 9)"], 60)
    assert killed == "killed: was there too little memory?"
    assert isolated.in_its_own_process(["-c", "while True: pass"], 1) == "no answer in 1 s"
    assert isolated.in_its_own_process(["-c", "1 // 0"], 60).startswith("crashed: ZeroDivisionError")


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_the_quick_form_of_a_benchmark_prints_one_report(script: Path) -> None:
    done = forked.run(script, ["--quick", "--json", "-"], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report) == {"machine", "command", "rows", "summary"}
    assert report["rows"]
    assert all(not isinstance(value, dict | list) for row in report["rows"] for value in row.values())
    assert report["summary"]
    if without := report["summary"].get("skipped"):
        pytest.skip(f"needs an emulated board with peers: scripts/emulated_board.sh peers ({without})")


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: folder.name)
def test_the_stored_log_of_accuracies_gives_the_stored_results(folder: Path) -> None:
    from _accuracy_rows import report
    from _cells import Journal

    stored = json.loads((folder / "results.json").read_text("utf-8"))["rows"]
    rows = list(report({stage: Journal(folder / f"{stage}.jsonl") for stage in ("plan", "measure", "train")}))
    assert len(rows) == len(stored)
    assert all(row.items() >= each.items() for row, each in zip(rows, stored, strict=True))


def test_accuracies_of_trainings_with_other_settings_are_not_mixed(tmp_path: Path) -> None:
    from _accuracy_rows import report
    from _cells import Journal

    what = {"model": "tiny", "method": "exact", "kept": {"a": [0]}, "precision": "fp32", "floats": []}
    journals = {stage: Journal(tmp_path / stage) for stage in ("plan", "measure", "train")}
    journals["plan"].add({**what, "budget": 0.5, "predicted_ms": 1.0, "dense_ms": 2.0})
    for seed, epochs, accuracy in ((0, 1, 10.0), (1, 1, 20.0), (0, 30, 90.0)):
        how = {"seed": seed, "settings": {"epochs": epochs}}
        journals["train"].add({**what, **how, "accuracy": accuracy, "epochs": epochs})
    (row,) = (row for row in report(journals) if row["method"] == "exact")
    assert (row["accuracy"], row["seeds"], row["epochs"]) == (90.0, 1, 30)


def test_every_method_is_drawn_and_looks_the_same_in_each_panel(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from _methods import LABELS
    from _plots import accuracy_against_latency

    figures = {"accuracy": 90.0, "lowest_accuracy": 89.0, "highest_accuracy": 91.0, "measured_ms": 1.0}
    rows: list[dict[str, Any]] = [{"model": "one", "method": method, **figures} for method in LABELS]
    rows.append({"model": "other", "method": list(LABELS)[9], **figures})
    accuracy_against_latency(rows, {name: name for name in LABELS}, tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text("utf-8")
    assert [name for name in LABELS if f"<!-- {name} -->" not in drawn] == []
    ninth, tenth = (drawn.count(colour) for colour in ("#bcbd22", "#17becf"))  # matplotlib's
    assert tenth > ninth > 0
