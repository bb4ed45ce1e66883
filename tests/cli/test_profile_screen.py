"""What is shown while a device measures, where there is no terminal: plain lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from aap_hw.cli.profile_screen import MeasuringScreen
from aap_hw.lut.progress import Progress


def test_nothing_to_measure_is_said_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    with MeasuringScreen(Path("x86.json")) as screen:
        screen.update(Progress("points", 0, 0, 41, None))
        screen.update(Progress("networks", 0, 25, 3, None))
    assert capsys.readouterr().err == (
        "all 41 points were there already\nmeasured 0 of 25 networks (3 were there already)\n"
    )
