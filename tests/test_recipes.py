"""Every recipe in examples/ goes the whole way in its quick form, on this machine's real device; the notebook too."""

from __future__ import annotations

import json
import os
from pathlib import Path

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
        assert list(tmp_path.glob("runs/*/manifest.json")) or list(tmp_path.glob("runs/*/bundle-*/manifest.json"))
    readme = (script.parent / "README.md").read_text("utf-8")
    assert all(f"\naap-hw {command}" in readme for command in commands), "the README has the commands of the script"


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
