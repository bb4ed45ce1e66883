"""What is printed is what was said, whatever brackets and colons are in it, and however long it is."""

from __future__ import annotations

import re

import pytest

from aap_hw.cli.console import PlainConsole, grid_of

SAID = f"runs/[bold]a:dog:{'x' * 200}"


def test_sentences_and_tables_are_printed_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    console, grid = PlainConsole(), grid_of("path", "ms", right=("ms",))
    console.say(SAID)
    grid.add_row(SAID, "1")
    console.print(grid)
    assert capsys.readouterr().out == f"{SAID}\npath{' ' * (len(SAID) - 4)}  ms\n{SAID}   1\n"


def test_forced_colour_makes_headings_bold_in_a_file_and_cuts_no_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    grid = grid_of("path", "ms", right=("ms",))
    grid.add_row(SAID, "1")
    PlainConsole().print(grid)
    plain = capsys.readouterr().out
    monkeypatch.setenv("FORCE_COLOR", "1")
    PlainConsole().print(grid)
    forced = capsys.readouterr().out
    assert re.findall(r"\x1b\[1m(\w+)", forced) == ["path", "ms"]
    assert re.sub(r"\x1b\[\d*m", "", forced) == plain


def test_quiet_says_nothing_and_json_gets_standard_output_for_itself(capsys: pytest.CaptureFixture[str]) -> None:
    PlainConsole(quiet=True).say(SAID)
    PlainConsole(stderr=True).say("told")
    assert capsys.readouterr() == ("", "told\n")
