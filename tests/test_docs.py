"""Every Python snippet of the README and of docs/ runs as it stands, or at least compiles where it takes minutes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPET = re.compile(r"(<!-- not run: [^>]+ -->\n)?```python\n(.*?)```", re.DOTALL)
WITH_PYTHON = [page for page in PAGES if "```python" in page.read_text("utf-8")]


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.name)
def test_snippets_of_a_page_run_one_after_the_other(page: Path, tmp_path: Path) -> None:
    snippets = SNIPPET.findall(page.read_text("utf-8"))
    assert snippets
    program = []
    for number, (not_run, text) in enumerate(snippets):
        compile(text, f"{page.name}, snippet {number + 1}", "exec")
        if not not_run:
            program.append(text)
    if not program:
        return
    # In a folder of their own, as what they write is theirs; tables and profiles are found in the package.
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(program)],
        cwd=tmp_path, capture_output=True, text=True, timeout=280, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def test_pages_link_to_files_that_are_there() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_commands_of_the_pages_exist() -> None:
    from aap_hw.cli.main import COMMANDS

    for page in PAGES:
        for command in re.findall(r"^aap-hw +([a-z]+)", page.read_text("utf-8"), re.MULTILINE):
            assert command in COMMANDS, f"{page.name} names aap-hw {command}"


def test_every_page_of_docs_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert f"docs/{page.name}" in readme, page.name
