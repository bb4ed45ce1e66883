"""What was typed to one command can be typed again to the next one, and means the same there."""

from __future__ import annotations

import shlex
from types import SimpleNamespace

import pytest

from aap_hw.cli.options import table
from aap_hw.cli.options.typed import retyped, typed
from aap_hw.cli.plan import command as plan
from aap_hw.cli.profile import command as profile
from aap_hw.cli.prune import command as prune

MODEL = ("--model", "my net.py:make", "--input", "ids:int64:128,mask:bool:128", "--weights", "none", "--classes", "3")


@pytest.mark.parametrize(
    "words",
    [
        ("--lut", "my table.json", "--budget", "0.02s", "--max-params", "40%", "--max-flops", "1.2G"),
        ("--lut", "x86", "--max-memory", "800kB", "--data", "embedded", "--limit", "9", "--normalise", "0.5,0/1,2"),
        ("--lut", "x86", "--budget", "60%", "--only", "layer[12].*", "--only", "kind:mlp", "--skip", "a'b"),
        ("--lut", "x86", "--budget", "60%", "--no-depth", "--renormalised", "--allow-estimated", "--score", "taylor"),
        ("--lut", "x86", "--no-renormalised", "--precision", "mixed:half,int8", "--calibration-images", "8"),
    ],
    ids=lambda words: words[-2],
)
def test_prune_gets_what_plan_was_given(words: tuple[str, ...]) -> None:
    planned = plan.make_context("plan", [*MODEL, *words, "--plot", "curve.png"])
    again = shlex.split(retyped(planned, prune))
    pruned = prune.make_context("prune", again)
    assert "--plot" in typed(planned)
    assert typed(pruned).keys() == typed(planned).keys() - {"--plot"}
    for name, value in planned.params.items():
        assert name in ("plot", "json_to") or pruned.params[name] == value, name


def test_defaults_and_what_is_left_out_are_not_typed_again() -> None:
    given = ("--device", "rpi4", "--float-layer", "a", "--float-layer", "b c", "--out", "t.json", "--pack", "there")
    profiled = profile.make_context("profile", [*MODEL[:2], *given])
    assert retyped(profiled, plan) == "--model 'my net.py:make'"
    again = retyped(profiled, profile, but=["--pack"])
    assert again == "--device rpi4 --model 'my net.py:make' --out t.json --float-layer a --float-layer 'b c'"


def test_command_that_makes_a_table_anew_can_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    outdated = SimpleNamespace(device={"name": "x86"}, is_outdated=True, is_estimated=True)
    said: list[str] = []
    monkeypatch.setattr(table, "read_table", lambda _: outdated)
    monkeypatch.setattr(table, "notice", said.append)
    table.read_table_to_predict("x86.json", "my nets/net.py:make", "int8")
    words = shlex.split(said[0].partition("anew with '")[2].removesuffix("'"))
    assert words[2:] == ["--device", "x86", "--model", "my nets/net.py:make", "--estimate", "--precision", "int8"]
