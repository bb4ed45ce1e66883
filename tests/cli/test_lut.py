"""`aap-hw lut show` says what is in a table, and `aap-hw lut validate` how well it predicts whole networks."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aap_hw import resources
from aap_hw.errors import UserError
from aap_hw.inputs import Inputs
from aap_hw.lut.file import load_table, save_table
from aap_hw.lut.finding import find_file, shipped_tables
from aap_hw.lut.progress import Progress, ProgressCallback
from aap_hw.lut.table import Validation


def test_text_names_device_measurement_kernels_and_validation(
    aap_hw: Callable[..., Any], table_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    outcome = aap_hw("lut", "show", str(table_file))
    assert (outcome.code, outcome.err) == (0, "")
    table, lines = load_table(table_file), outcome.out.splitlines()
    assert lines[0] == "x86: a CPU elsewhere, 1 thread, measured 2026-01-01"
    assert f"{len(table)} points of {len(table.points)} kernels" in lines[2]
    assert "the machine's speed changed by up to 1.0% meanwhile, which is taken out of every point" in outcome.out
    assert re.search(
        r"are interpolated \(\d+ of \d+ pairs of .* were measured\); wider layers are refused", outcome.out
    )
    lonely = replace(table, points={key: dict([next(iter(rows.items()))]) for key, rows in table.points.items()})
    save_table(lonely, tmp_path / "lonely.json")
    shown = aap_hw("lut", "show", str(tmp_path / "lonely.json")).out
    assert "are interpolated (no kernel of this one has a grid of widths); wider layers are refused" in shown
    shipped = aap_hw("lut", "show", "x86").out
    assert re.search(r"are interpolated \(\d+ of \d+ pairs of input and output width were measured\)", shipped)
    for key, rows in table.points.items():
        (line,) = [line for line in lines if line.startswith(f"{key} ")]
        values = [point.latency_us for point in rows.values()]
        assert line.split()[-4] == str(len(rows))
        assert line.split()[-1].split("-")[0] == f"{min(values):.4g}"
        assert line.split()[-1].split("-")[-1] == f"{max(values):.4g}"
    assert re.match(r"resnet20 3x32x32, dense: predicted 1\.\d+ ms, measured 1\.\d+ ms \(-20\.0%\)", lines[-1])


def test_tables_are_listed_by_what_names_them(
    aap_hw: Callable[..., Any], table_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work" / "lut").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("COLUMNS", "200")
    shutil.copy(table_file, "lut/mine.json")
    Path("lut/broken.json").write_text("{")
    lines = aap_hw("lut", "list").out.splitlines()
    *shipped, mine, broken = lines[1:]
    assert [line.split()[:2] for line in shipped] == [[name, name] for name in sorted(shipped_tables())]
    assert "lut/broken.json" in broken
    assert re.match(r"lut/mine.json +x86 +a CPU elsewhere +1 +measured 2026-01-01 .*resnet20 at 3x32x32 *$", mine)
    rows = json.loads(aap_hw("lut", "list", "--json").out)
    assert [row["table"] for row in rows] == [*sorted(shipped_tables()), "lut/broken.json", "lut/mine.json"]
    assert rows[-1]["networks"] == ["resnet20 at 3x32x32"]
    assert rows[-1]["points"] == len(load_table(table_file))


def test_points_are_printed_when_asked_for(
    aap_hw: Callable[..., Any], table_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    brief, full = aap_hw("lut", "show", str(table_file)).out, aap_hw("lut", "show", str(table_file), "--points").out
    assert len(full.splitlines()) - len(brief.splitlines()) == len(load_table(table_file))
    assert "±" in full


def test_narrow_terminal_loses_nothing(
    aap_hw: Callable[..., Any], table_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    for columns in ("300", "50"):
        monkeypatch.setenv("COLUMNS", columns)
        shown.append(aap_hw("lut", "show", str(table_file)).out)
    assert len(shown[1].splitlines()) > len(shown[0].splitlines())
    # What does not fit goes on in the next line, so that the letters stand in another order.
    wide, narrow = (sorted("".join(text.split())) for text in shown)
    assert narrow == wide


def test_json_is_alone_on_standard_output(aap_hw: Callable[..., Any], table_file: Path) -> None:
    outcome = aap_hw("lut", "show", str(table_file), "--json")
    assert (outcome.code, outcome.err) == (0, "")
    shown, table = json.loads(outcome.out), load_table(table_file)
    assert shown["device"] == table.device
    assert shown["points"] == len(table) == sum(kernel["points"] for kernel in shown["kernels"].values())
    assert shown["kernels"].keys() == {str(key) for key in table.points}
    assert shown["validation"][0]["input"] == [1, 3, 32, 32]


def test_help_of_every_level_ends_with_an_example(aap_hw: Callable[..., Any]) -> None:
    examples = {
        ("lut", "--help"): "aap-hw lut show lut/x86.json",
        ("lut", "show", "--help"): "aap-hw lut show lut/x86.json",
        ("lut", "validate", "--help"): "aap-hw lut validate --device x86 --model resnet20 --plans 20",
    }
    for arguments, example in examples.items():
        outcome = aap_hw(*arguments)
        assert outcome.code == 0
        assert outcome.out.rstrip().splitlines()[-1] == f"    {example}"


RANDOM_PLANS = [
    Validation("resnet20", Inputs.of((3, 32, 32)), "random-0-0", {"conv1": 8}, 980.0, 1000.0),
    Validation("resnet20", Inputs.of((3, 32, 32)), "random-0-1", {"conv1": 16}, 1260.0, 1200.0),
]


@pytest.fixture
def checked_file(table_file: Path) -> Path:
    """The table with two random plans measured: errors of 2 and 5 %."""
    table = load_table(table_file)
    table.validation += RANDOM_PLANS
    save_table(table, table_file)
    return table_file


def test_random_plans_are_summed_up_in_one_line(aap_hw: Callable[..., Any], checked_file: Path) -> None:
    lines = aap_hw("lut", "show", str(checked_file)).out.splitlines()
    assert lines[-2].startswith("resnet20 3x32x32, dense: predicted")
    assert lines[-1] == ("resnet20 3x32x32: table error on 2 random plans: mean 3.5 %, worst 5.0 %, Kendall tau 1.000")
    shown = json.loads(aap_hw("lut", "show", str(checked_file), "--json").out)
    (error,) = shown["table_error"]
    assert error == {
        "model": "resnet20",
        "input": [1, 3, 32, 32],
        "precision": "fp32",
        "plans": 2,
        "mean_pct": pytest.approx(3.5),
        "worst_pct": pytest.approx(5.0),
        "kendall_tau": 1.0,
    }


def test_plans_in_int8_are_summed_up_apart(aap_hw: Callable[..., Any], checked_file: Path) -> None:
    table = load_table(checked_file)
    table.validation.append(replace(RANDOM_PLANS[1], precision="int8"))
    save_table(table, checked_file)
    lines = aap_hw("lut", "show", str(checked_file)).out.splitlines()
    assert lines[-2].startswith("resnet20 3x32x32: table error on 2 random plans: mean 3.5 %")
    assert lines[-1] == "resnet20 3x32x32 in int8: table error on 1 random plan: mean 5.0 %, worst 5.0 %"
    errors = json.loads(aap_hw("lut", "show", str(checked_file), "--json").out)["table_error"]
    assert [(error["precision"], error["plans"]) for error in errors] == [("fp32", 2), ("int8", 1)]


def test_clock_and_heat_are_shown_where_they_are_known(aap_hw: Callable[..., Any], table_file: Path) -> None:
    assert "°C" not in aap_hw("lut", "show", str(table_file)).out
    table = load_table(table_file)
    table.measurement |= {"governor": "ondemand", "temperature_c": [48.3, 61.0]}
    save_table(table, table_file)
    lines = aap_hw("lut", "show", str(table_file)).out.splitlines()
    assert "governor ondemand, 48 °C at the start, 61 °C at the end" in lines


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What validating is asked for; it answers with two plans without measuring anything."""
    given: dict[str, Any] = {}

    def validate_model(*what: Any, **how: Any) -> list[Validation]:
        workload, _, path = what
        given.update(vars(workload) | {"path": path, **how})
        how["on_progress"](Progress("networks", 2, 2, 0, 0.0))
        return RANDOM_PLANS

    monkeypatch.setattr("aap_hw.lut.validating.validate_model", validate_model)
    return given


VALIDATE = ("lut", "validate", "--device", "x86", "--model", "resnet20", "--plans", "2", "--seed", "3")


def test_validate_prints_each_plan_and_the_summary(
    aap_hw: Callable[..., Any], table_file: Path, asked: dict[str, Any]
) -> None:
    outcome = aap_hw(*VALIDATE, "--lut", str(table_file))
    assert outcome.code == 0, outcome.err
    assert (asked["name"], asked["inputs"], asked["path"]) == ("resnet20", Inputs.of("3x32x32"), table_file)
    assert (asked["plans"], asked["seed"]) == (2, 3)
    lines = outcome.out.splitlines()
    assert lines[1].split() == ["random-0-0", "0.980", "1.000", "-2.0%"]
    assert lines[2].split() == ["random-0-1", "1.260", "1.200", "+5.0%"]
    assert lines[3].startswith("resnet20 at 3x32x32: table error on 2 random plans: mean 3.5 %, worst 5.0 %")
    assert outcome.err == "measured 2 of 2 networks\n"


def test_validate_prints_json_alone(aap_hw: Callable[..., Any], table_file: Path, asked: dict[str, Any]) -> None:
    document = json.loads(aap_hw(*VALIDATE, "--lut", str(table_file), "--json", "-").out)
    assert document["plans"][1] == {"plan": "random-0-1", "predicted_ms": 1.26, "measured_ms": 1.2}
    assert document["summary"]["worst_pct"] == pytest.approx(5.0)
    assert (asked["seed"], asked["precision"], document["precision"]) == (3, "fp32", "fp32")


def test_validate_in_int8_says_so(aap_hw: Callable[..., Any], table_file: Path, asked: dict[str, Any]) -> None:
    outcome = aap_hw(*VALIDATE, "--lut", str(table_file), "--precision", "int8")
    assert asked["precision"] == "int8"
    assert outcome.out.splitlines()[3].startswith("resnet20 at 3x32x32 in int8: table error on 2 random plans")


def test_validate_keeps_to_the_default_table_of_the_device(
    aap_hw: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = aap_hw(*VALIDATE)
    assert outcome.code == 2
    assert "cannot read the latency table lut/x86.json" in outcome.err


def test_validate_finds_the_table_of_a_bare_name_as_plan_does(
    aap_hw: Callable[..., Any],
    table_file: Path,
    asked: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    real, shipped = resources.resource_dirs, tmp_path / "shipped"
    shipped.mkdir()
    table_file.rename(shipped / "x86.json")
    monkeypatch.setattr("aap_hw.resources.resource_dirs", lambda kind: [shipped] if kind == "lut" else real(kind))
    monkeypatch.chdir(tmp_path)
    assert aap_hw(*VALIDATE, "--lut", "x86").code == 0
    assert asked["path"] == shipped / "x86.json"
    refused = aap_hw(*VALIDATE, "--lut", "x68")
    assert refused.code == 2
    assert "there is no latency table 'x68'" in refused.err


def test_folder_of_the_name_is_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("x86", "runs"):
        Path(name).mkdir()
    assert find_file("x86") == shipped_tables()["x86"]
    with pytest.raises(UserError, match=r"there is no latency table 'runs' \(there are tables for "):
        find_file("runs")


def test_interrupted_validation_says_what_was_kept(
    aap_hw: Callable[..., Any], table_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, on_progress: ProgressCallback, **__: object) -> None:
        on_progress(Progress("networks", 4, 20, 1, 60.0))
        raise KeyboardInterrupt

    monkeypatch.setattr("aap_hw.lut.validating.validate_model", interrupted)
    outcome = aap_hw(*VALIDATE, "--lut", str(table_file))
    assert outcome.code == 130
    assert outcome.err.splitlines()[-1] == (
        f"aap-hw: interrupted; 5 measured networks are kept in {table_file}; the same command goes on from there"
    )
