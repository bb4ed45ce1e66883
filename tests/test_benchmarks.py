"""Every benchmark still runs, in its quick form, and prints the report that all of them print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import forked

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(ROOT.glob("benchmarks/[a-z]*.py"))


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
