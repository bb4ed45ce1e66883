"""Every recipe in examples/ goes the whole way in its quick form, on this machine's real device; the notebook too.

Which runs the scripts begin, go on with and leave alone is tried without a device.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import forked
from tests.needs import needs_cross_compiler

EXAMPLES = Path(__file__).parent.parent / "examples"
RECIPES = [
    # A Jetson's CPU is an Arm one.
    pytest.param(script, id=script.parent.name, marks=[needs_cross_compiler] if script.parent.name == "jetson" else [])
    for script in sorted(EXAMPLES.glob("*/run.py"))
]
# Two whole networks calibrate each table instead of two dozen.
QUICK = """
import functools, runpy, sys
from aap_hw.lut import profiling
profiling.profile_model = functools.partial(profiling.profile_model, networks=2)
sys.argv[:] = [{script!r}, "--quick"]
sys.path[0] = {folder!r}
runpy.run_path({script!r}, run_name="__main__")
"""


@pytest.fixture
def environment() -> dict[str, str]:
    """That of a user; kernels that one recipe has compiled are there for the next."""
    return {**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "MPLBACKEND": "agg"}


@pytest.mark.slow
@pytest.mark.parametrize("script", RECIPES)
def test_recipe_goes_the_whole_way(script: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    program = QUICK.format(script=str(script), folder=str(script.parent))
    done = forked.run(program, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    commands = [line.split()[2] for line in done.stdout.splitlines() if line.startswith("$ aap-hw ")]
    assert commands, "a recipe shows the commands that it runs"
    if "deploy" in commands:
        assert list(tmp_path.rglob("runs/*/manifest.json")) or list(tmp_path.rglob("runs/*/bundle-*/manifest.json"))
    readme = (script.parent / "README.md").read_text("utf-8")
    assert all(f"\naap-hw {command}" in readme for command in commands), "the README has the commands of the script"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, ...]]]:
    """Prunes as a recipe does that is started with these words in a temporary folder; the commands that this runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    steps = importlib.import_module("steps")

    def start(*words: str, **named: Any) -> list[tuple[str, ...]]:
        commands: list[tuple[str, ...]] = []
        monkeypatch.setattr(sys, "argv", ["run.py", *words])
        monkeypatch.setattr(steps, "main", lambda words: commands.append(words) or 0)
        steps.Steps("A recipe.", run="runs/tried", **named).prune(budget="60%")
        return commands

    return start


def begun(folder: Path, *files: str) -> None:
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).touch()


def test_quick_form_leaves_the_files_of_the_full_recipe_alone(recipe: Callable[..., Any], tmp_path: Path) -> None:
    begun(tmp_path / "runs" / "tried", "config.json", "run.json")
    begun(tmp_path / "runs" / "tried-quick", "left")
    ((*_, out),) = recipe("--quick")
    assert (Path.cwd(), out) == (tmp_path / "runs" / "tried-quick", "runs/tried")
    assert list(Path.cwd().iterdir()) == [], "it begins anew"
    assert len(list((tmp_path / "runs" / "tried").iterdir())) == 2


def test_full_recipe_goes_on_with_an_interrupted_run(recipe: Callable[..., Any], tmp_path: Path) -> None:
    begun(tmp_path / "runs" / "tried", "config.json")
    assert recipe("--connect", "rpc://h:1") == [("prune", "--resume", "runs/tried", "--connect", "rpc://h:1")]


def test_full_recipe_refuses_a_finished_run_before_it_does_anything(recipe: Callable[..., Any], tmp_path: Path) -> None:
    begun(tmp_path / "runs" / "tried", "config.json", "run.json")
    with pytest.raises(SystemExit, match="runs/tried already holds a run; delete it"):
        recipe()


@pytest.mark.parametrize(
    ("words", "named"), [(["--quick", "--device", "rpi5"], {}), (["--connect", "rpc://h:1"], {"reaches": False})]
)
def test_option_that_would_do_nothing_is_refused(
    recipe: Callable[..., Any], words: list[str], named: dict[str, bool], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        recipe(*words, **named)
    assert words[-2] in capsys.readouterr().err


@pytest.mark.slow
def test_cells_of_the_notebook_run_one_after_the_other(tmp_path: Path, environment: dict[str, str]) -> None:
    notebook = json.loads((EXAMPLES / "notebook" / "first_look.ipynb").read_text("utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    done = forked.run("\n".join(cells), cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "runs" / "notebook" / "report.html").exists()
    assert "10%: " in done.stdout


def test_every_example_is_listed() -> None:
    listed = (EXAMPLES / "README.md").read_text("utf-8")
    folders = [path.name for path in EXAMPLES.iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert [name for name in folders if f"({name}/" not in listed] == []
