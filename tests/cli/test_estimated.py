"""An estimated table is used only by who asks for it, and no figure of it is shown as anything else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aap_hw.lut.file import load_table
from aap_hw.lut.finding import find_file
from aap_hw.prune.run import RunFolder
from tests.synthetic import write_table

pytestmark = pytest.mark.usefixtures("quick")
RESNET20 = ("--model", "resnet20", "--weights", "embedded", "--calibration-images", "8")
WORTH = (
    "estimated: nobody has checked it on rpi4; off by 14.2 % on average and 38.0 % at worst on a CPU at "
    "hand, where it was checked"
)


@pytest.fixture
def estimated(tmp_path: Path) -> Path:
    """The estimated table of a board that is not there."""
    return write_table(tmp_path / "rpi4.json", name="rpi4", provenance="estimated")


def times(text: str) -> Iterator[str]:
    """The lines of an output that tell a time."""
    return (line for line in text.splitlines() if re.search(r"\d ms\b|\bms\b.*\d\.\d{3}", line))


@pytest.mark.parametrize("budget", ["60%", "0.9ms", "50%,70%"])
def test_plan_shows_estimates_as_estimates(aap_hw: Callable[..., Any], estimated: Path, budget: str) -> None:
    command = ("plan", *RESNET20, "--lut", str(estimated), "--budget", budget)
    refused = aap_hw(*command, "--allow-emulated")
    assert (refused.code, refused.out) == (2, "")
    assert "are estimated, not measured on the device" in refused.err
    assert refused.err.rstrip().endswith("add --allow-estimated to try things out")
    shown = aap_hw(*command, "--allow-estimated")
    assert (shown.code, shown.err) == (0, "")
    told = list(times(shown.out))
    assert told
    assert all("estimated" in line for line in told), told
    assert WORTH in shown.out.splitlines()
    assert "measured" not in shown.out
    if "," not in budget:
        assert shown.out.rstrip().endswith("--allow-estimated")
    document = json.loads(aap_hw(*command, "--allow-estimated", "--json", "-").out)
    plans = [point["plan"] for point in document] if "," in budget else [document]
    for plan in plans:
        assert (plan["provenance"], plan["dense_is_measured"]) == ("estimated", False)
        assert (plan["estimate"]["mean_pct"], plan["estimate"]["networks"]) == (14.2, ["a", "b"])


@pytest.mark.parametrize(
    ("budget", "sentence"),
    [
        ("20ms", r"takes \d\.\d+ ms \(estimated\) and the budget is 20 ms"),
        ("1%", r"the smallest reachable latency is 0\.\d+ ms estimated \("),
    ],
)
def test_refusals_say_that_their_figures_are_estimates(
    aap_hw: Callable[..., Any], estimated: Path, budget: str, sentence: str
) -> None:
    outcome = aap_hw("plan", *RESNET20, "--lut", str(estimated), "--budget", budget, "--allow-estimated")
    assert outcome.code == 2
    assert re.search(sentence, outcome.err), outcome.err


@pytest.mark.parametrize("budget", ["60%", "0.9ms"])
def test_prune_goes_by_estimates_and_every_figure_says_so(
    aap_hw: Callable[..., Any], estimated: Path, tmp_path: Path, budget: str
) -> None:
    out = tmp_path / "run"
    command = ("prune", *RESNET20, "--lut", str(estimated), "--budget", budget, "--out", str(out))
    assert aap_hw(*command).code == 2
    assert not out.exists()
    pruned = aap_hw(*command, "--allow-estimated")
    assert (pruned.code, pruned.err) == (0, "")
    lines = pruned.out.splitlines()
    assert lines[0].startswith("no inputs were given, so filters were ranked on stand-ins ")
    assert lines[1] == "latencies are predicted, not measured: the table's latencies are estimated"
    assert lines[2] == WORTH
    told = list(times(pruned.out))
    assert len(told) >= 4
    assert all("estimated" in line for line in told), told
    assert lines[-1] == f"next: aap-hw deploy {out} --device rpi4 --no-run"
    summary = RunFolder(out).summary()
    assert (summary["provenance"], summary["pruned_ms"], summary["dense_is_measured"]) == ("estimated", None, False)
    assert summary["estimate"]["device"] == "rpi4"
    assert load_table(out / "table.json").is_estimated
    assert aap_hw("report", str(out)).code == 0
    assert WORTH in (out / "report.html").read_text()


def test_commands_on_tables_say_what_an_estimate_is_worth(
    aap_hw: Callable[..., Any], estimated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = aap_hw("lut", "show", str(estimated), "--points")
    assert (shown.code, shown.err) == (0, "")
    lines = shown.out.splitlines()
    assert WORTH in lines
    assert "estimated for resnet20 3x32x32" in lines
    assert "reference kernel" not in shown.out
    assert "±" not in shown.out
    assert aap_hw("lut", "plot", str(estimated), "--out", str(tmp_path / "stairs.html")).code == 0
    assert f"Each is {WORTH}" in (tmp_path / "stairs.html").read_text()
    measured = write_table(tmp_path / "measured.json", name="rpi4")
    refused = aap_hw("lut", "merge", str(measured), str(estimated), "--out", str(tmp_path / "both.json"))
    assert refused.code == 2
    assert "are estimated and those of" in refused.err
    assert not (tmp_path / "both.json").exists()
    unvalidated = aap_hw("lut", "validate", "--device", "rpi4", "--model", "resnet20", "--lut", str(estimated))
    assert unvalidated.code == 2
    assert "is estimated, and nothing that is measured may be mixed into it" in unvalidated.err
    (tmp_path / "lut").mkdir()
    estimated.rename(tmp_path / "lut" / "rpi4.estimated.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("aap_hw.resources.resource_dirs", lambda kind: [tmp_path / "lut"] if kind == "lut" else [])
    (row,) = json.loads(aap_hw("lut", "list", "--json", "-").out)
    assert (row["provenance"], row["networks"]) == ("estimated", ["resnet20 at 3x32x32"])
    assert find_file(row["table"]).samefile(tmp_path / "lut" / "rpi4.estimated.json")
