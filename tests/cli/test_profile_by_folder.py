"""``aap-hw profile --pack`` and ``--unpack``: what a person types and reads between here and the device."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aap_hw.lut import networks

MODEL = """
from torch import nn

def small():
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(16, 4)).eval()
"""


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """A small network and this machine, and few networks to calibrate by."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(networks, "FIRST_NETWORKS", 1)
    monkeypatch.setattr(networks, "WELL_KNOWN", float("inf"))
    Path("small.py").write_text(MODEL)
    return "profile", "--device", "x86", "--model", "small.py:small", "--input", "3x8x8"


@pytest.mark.slow
def test_from_here_to_the_device_and_back(aap_hw: Callable[..., Any], there: tuple[str, ...]) -> None:
    (Path(".to there.partial") / "of a process that was killed").mkdir(parents=True)
    packed = aap_hw(*there, "--pack", "to there")
    assert packed.code == 0, packed.err
    assert {path.name for path in Path().iterdir()} == {"small.py", "to there"}
    lines = packed.out.splitlines()
    assert lines[0] == "packing small.py:small at 3x8x8 on x86 -> to there"
    assert re.fullmatch(r"to there: \d+ points and 2 networks, \d+\.\d MB", lines[1])
    assert lines[2].startswith("next: carry it to the device, run 'python3 run.py' in it, carry it back, and then: ")
    assert not Path("lut").exists()
    assert aap_hw(*there, "--pack", "to there").code == 2
    early = aap_hw(*there, "--unpack", "to there")
    assert early.code == 2
    assert "cannot read to there/results.json (No such file or directory); run 'python3 run.py' in" in early.err
    subprocess.run([sys.executable, "to there/run.py"], check=True, stdout=subprocess.DEVNULL)
    unpacked = aap_hw(*shlex.split(lines[2].partition("and then: aap-hw ")[2]), "--json")
    assert unpacked.code == 0, unpacked.err
    figures = json.loads(unpacked.out)
    assert figures["table"] == "lut/x86.json"
    assert figures["pack"] is None
    assert figures["provenance"] == "measured"
    assert "unpruned small.py:small" in unpacked.err
    assert "next: aap-hw plan --model small.py:small --input 3x8x8 --lut lut/x86.json --budget 60%" in unpacked.err
    again = aap_hw(*there, "--pack", "again", "--json")
    assert (again.code, json.loads(again.out)) == (0, {"pack": None})
    assert "the table lacks nothing of this network; nothing was packed" in again.err
    assert not Path("again").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--pack", "a", "--unpack", "b"), "give one of them"),
        (("--pack", "a", "--connect", "rpc://127.0.0.1:1"), "leave --connect out"),
        (("--unpack", "."), "is . a pack?"),
        (("--pack", "small.py/inner"), "small.py is not a folder"),
    ],
)
def test_what_does_not_go_together_is_said(
    aap_hw: Callable[..., Any], there: tuple[str, ...], options: tuple[str, ...], sentence: str
) -> None:
    done = aap_hw(*there, *options)
    assert (done.code, done.out) == (2, "")
    assert sentence in done.err
    assert done.err.count("\n") == 1
