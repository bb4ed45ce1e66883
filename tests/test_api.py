"""The functions of the package do what the commands do, are quick to import, and share names with its packages."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import aap_hw as package
from aap_hw.policy import PARAMETERS
from aap_hw.prune.events import Event
from tests.synthetic import quick, quick_baseline, table, table_file, write_table

__all__ = ["quick", "quick_baseline", "table_file"]

SETTINGS = ("--calibration-images", "8", "--score", "weight-l1")


def settings() -> Any:
    return package.PruneSettings(calibration_images=8, score="weight-l1")


def test_importing_the_package_loads_neither_torch_nor_tvm() -> None:
    code = "import sys, aap_hw; print([name for name in ('torch', 'tvm', 'numpy', 'plotly') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


def test_every_public_name_is_there_and_in_the_documentation() -> None:
    page = (Path(__file__).parent.parent / "docs" / "api.md").read_text("utf-8")
    for name in package.__all__:
        assert getattr(package, name) is not None
        assert name == "__version__" or re.search(rf"\b{name}\b", page), name
    assert set(package.__all__) <= set(dir(package))


def test_a_value_of_another_type_is_refused_or_taken_for_its_text(tmp_path: Path) -> None:
    with pytest.raises(package.UserError, match="and not by a PosixPath"):
        package.plan("resnet20", "x86", "50%", data=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(package.UserError, match=f"there are no weights '{tmp_path}/none.pt'"):
        package.plan("resnet20", "x86", "50%", weights=tmp_path / "none.pt")


@pytest.mark.parametrize("name", ["prune", "deploy", "report"])
def test_function_that_shares_its_name_with_a_package_can_be_called_whatever_was_imported(name: str) -> None:
    code = (
        f"import aap_hw, aap_hw.api, inspect\naap_hw.api.{name} = lambda *a, x=1: (a, x)\n"
        f"print(aap_hw.{name}(1, x=2))\nimport aap_hw.{name}\nprint(aap_hw.{name}(1, x=2))\n"
        f"print(inspect.signature(aap_hw.{name}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "((1,), 2)\n" * 2 + "(*a, x=1)\n"


@pytest.mark.usefixtures("quick")
def test_plan_is_that_of_the_command(aap_hw: Callable[..., Any], table_file: Path) -> None:
    told = aap_hw(
        "plan", "--model", "resnet20", "--weights", "embedded", *SETTINGS, "--lut", str(table_file), "--budget", "60%",
        "--json",
    )  # fmt: skip
    proposal = package.plan("resnet20", table_file, "60%", weights="embedded", settings=settings())
    expected = json.loads(told.out)
    found = json.loads(json.dumps(proposal.as_json()))
    assert {k: v for k, v in found.items() if k != "solver_seconds"} == {
        k: v for k, v in expected.items() if k != "solver_seconds"
    }
    assert proposal.plan.predicted_ms <= 0.6 * proposal.dense.dense_ms


def test_table_of_another_machine_stays_where_it_is_when_the_network_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lut").mkdir()
    before = write_table(tmp_path / "lut" / "x86.json").read_bytes()
    with pytest.raises(package.UserError, match="no kernel in it"):
        package.profile("x86", "torch.nn:Identity", input_shape=(3, 8, 8))
    assert {file.name: file.read_bytes() for file in (tmp_path / "lut").iterdir()} == {"x86.json": before}


@pytest.mark.usefixtures("quick")
def test_run_is_that_of_the_command_and_tells_its_events(
    aap_hw: Callable[..., Any], table_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = aap_hw(
        "prune", "--model", "resnet20", "--weights", "embedded", *SETTINGS, "--lut", str(table_file), "--budget",
        "60%", "--out", "told", "--json",
    )  # fmt: skip
    events: list[Event] = []
    run = package.prune("resnet20", table(), "60%", weights="embedded", settings=settings(), on_event=events.append)
    assert run.folder == Path("runs/resnet20-x86-60pct-weight-l1")
    assert {"run": "told", **run.summary} == json.loads(told.out)
    assert [event.name for event in events] == ["start", "cut", "round"]
    assert package.report(run.folder) == run.folder / "report.html"
    with pytest.raises(package.UserError, match="is finished, so there is nothing to resume"):
        package.resume(run.folder)


@pytest.mark.parametrize("model", [nn.Identity(), nn.Identity, None], ids=["module", "class", "none"])
def test_network_that_is_no_text_is_refused_with_how_to_name_it(model: Any, table_file: Path) -> None:
    named = rf"not by a {type(model).__name__}; write a function that returns it and name that: 'FILE\.py:FUNCTION'"
    for call in (
        lambda: package.profile("x86", model, input_shape=(3, 8, 8)),
        lambda: package.plan(model, table_file, "60%"),
        lambda: package.prune(model, table_file, "60%"),
    ):
        with pytest.raises(package.UserError, match=named):
            call()


def test_nothing_to_prune_to_is_a_user_error(table_file: Path) -> None:
    with pytest.raises(package.UserError, match="there is nothing to prune to"):
        package.plan("resnet20", table_file)


@pytest.mark.parametrize("function", ["plan", "prune"])
def test_budget_of_another_resource_than_it_is_given_for_is_refused(function: str, table_file: Path) -> None:
    share = package.Budget(0.4, True)
    with pytest.raises(
        package.UserError, match=r"parameters is given a budget of latency; .* for example '2M' or '55%'"
    ):
        getattr(package, function)("resnet20", table_file, max_params=share)
    with pytest.raises(package.UserError, match="memory is given a budget of latency"):
        getattr(package, function)("resnet20", table_file, share, max_memory=share)


@pytest.mark.usefixtures("quick")
def test_budget_is_a_text_or_a_value(table_file: Path) -> None:
    texts = package.plan("resnet20", table_file, "70%", max_params="60%", weights="embedded", settings=settings())
    latency, parameters = package.Budget(0.7, True), package.Budget(0.6, True, PARAMETERS)
    values = package.plan(
        "resnet20", table_file, latency, max_params=parameters, weights="embedded", settings=settings()
    )
    assert values.plan.widths == texts.plan.widths
