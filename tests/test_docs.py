"""Python snippets of pages and examples of docstrings run as they stand, or compile where they take minutes."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import click
import pytest

from tests import forked

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
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
    done = forked.run("\n".join(program), cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-2000:]


def test_pages_link_to_files_that_are_there() -> None:
    links = [
        (page, target)
        for page in PAGES
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text("utf-8"))
    ]
    assert len(links) > 30
    for page, target in links:
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_commands_of_the_pages_exist_and_have_the_options_that_they_are_given() -> None:
    from aap_hw.cli.main import group

    found = 0
    for page in PAGES:
        text = page.read_text("utf-8").replace("\\\n", " ")
        # In blocks of code, also of a list; a sentence may begin with the name, too.
        blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
        commands = "".join(block for language, block in blocks if not language)
        lines = re.findall(r"^ *(?:torchrun .*/)?aap-hw +([a-z].*)", commands, re.MULTILINE)
        inline = re.findall(r"`aap-hw ([a-z][^`]*)`", text)
        for typed in (*lines, *inline):
            command: click.Command = group
            words = shlex.split(typed, comments=True)
            context = click.Context(command)
            while isinstance(command, click.Group) and words:
                known = command.get_command(context, words.pop(0))
                assert known is not None, f"{page.name} names aap-hw {typed}"
                command = known
            try:
                command.make_parser(context).parse_args(words)
            except click.UsageError as problem:
                pytest.fail(f"{page.parent.name}/{page.name} names aap-hw {typed}: {problem.format_message()}")
            found += 1
    assert found > 30


def test_every_page_of_docs_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert f"docs/{page.name}" in readme, page.name


def test_examples_of_docstrings_are_true() -> None:
    modules = [path for path in (ROOT / "aap_hw").rglob("*.py") if "    >>> " in path.read_text("utf-8")]
    tried = 0
    for path in modules:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        outcome = doctest.testmod(importlib.import_module(name))
        assert outcome.failed == 0, name
        tried += outcome.attempted
    assert tried > 5


def test_readme_can_be_read_in_a_sitting() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


def test_picture_of_the_readme_is_drawn_from_the_stored_run_in_both_themes(tmp_path: Path) -> None:
    done = forked.run(ROOT / "scripts" / "readme_pictures.py", ["--out", str(tmp_path)], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert drawn == ["overview-dark.svg", "overview-light.svg"]
    readme = (ROOT / "README.md").read_text("utf-8")
    assert all(f"docs/images/{name}" in readme and (ROOT / "docs" / "images" / name).exists() for name in drawn)
    assert (tmp_path / drawn[0]).read_bytes() != (tmp_path / drawn[1]).read_bytes()


def test_commands_of_stored_runs_are_of_no_single_machine() -> None:
    results = sorted((ROOT / "docs" / "results").rglob("*.json"))
    commands = {path: str(json.loads(path.read_text("utf-8")).get("command", "")) for path in results}
    assert sum(map(bool, commands.values())) > 10
    for path, command in commands.items():
        assert not re.search(r"[ =]/", command), f"{path.name} names a folder of one machine: {command}"
