"""Every benchmark still runs, in its quick form, and prints the report that all of them print.

Of those that keep rows in a journal: it gives back only what was made in the same way.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from tests import forked

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(ROOT.glob("benchmarks/[a-z]*.py"))


@pytest.fixture
def isolated(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
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
