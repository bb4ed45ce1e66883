"""What is shown while a device measures, where there is no terminal: plain lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from aap_hw.cli.profile_screen import MeasuringScreen
from aap_hw.lut.progress import Progress


@pytest.mark.parametrize("forced", [{}, {"FORCE_COLOR": "1"}], ids=["plain", "forced"])
def test_nothing_to_measure_is_said_in_words(
    forced: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in forced.items():  # which asks for colours, and not for a bar in a file
        monkeypatch.setenv(name, value)
    with MeasuringScreen(Path("x86.json")) as screen:
        screen.update(Progress("points", 0, 0, 41, None))
        screen.update(Progress("networks", 0, 25, 3, None))
    assert capsys.readouterr().err == (
        "all 41 points were there already\nmeasured 0 of 25 networks (3 were there already)\n"
    )


@pytest.mark.parametrize(
    ("steps", "kept"),
    [
        ([Progress("points", 2, 38, 3, None)], "5 measured points are kept beside x86.json"),
        # Points are in the table once networks are timed.
        (
            [Progress("points", 38, 38, 3, None), Progress("networks", 0, 25, 0, None)],
            "41 measured points are kept in x86.json",
        ),
        (
            [Progress("points", 38, 38, 3, None), Progress("networks", 2, 25, 0, None)],
            "41 measured points and 2 measured networks are kept in x86.json",
        ),
    ],
)
def test_interrupted_measuring_says_all_that_is_kept(steps: list[Progress], kept: str) -> None:
    with pytest.raises(KeyboardInterrupt) as stopped:
        _interrupted_after(steps)
    assert str(stopped.value) == f"{kept}; the same command goes on from there"


def _interrupted_after(steps: list[Progress]) -> None:
    with MeasuringScreen(Path("x86.json"), quiet=True) as screen:
        for step in steps:
            screen.update(step)
        raise KeyboardInterrupt
