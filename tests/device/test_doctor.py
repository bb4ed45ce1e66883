"""Proves that the doctor finds a healthy device healthy, and names the first step that fails with what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from aap_hw.device.doctor import STEPS, examine
from tests.device import servers


def test_this_machine_is_well(aap_hw: Callable[..., Any]) -> None:
    outcome = aap_hw("doctor", "--device", "x86")
    assert outcome.code == 0, outcome.out
    lines = outcome.out.splitlines()
    assert [line.split(":")[0].removeprefix("ok").strip() for line in lines] == list(STEPS)
    assert all(line.startswith("ok ") for line in lines)


def test_board_behind_a_tracker_is_well(aap_hw: Callable[..., Any]) -> None:
    with servers.tracker() as tracker, servers.board("x86", tracker) as board:
        outcome = aap_hw("doctor", "--device", "x86", "--connect", f"tracker://127.0.0.1:{tracker.port}/x86", "--json")
        assert outcome.code == 0, outcome.out
        findings = {finding["step"]: finding for finding in json.loads(outcome.out)["findings"]}
        assert list(findings) == list(STEPS)
        assert all(finding["ok"] for finding in findings.values())
        assert "1 with the key x86" in findings["address"]["text"]
        assert f"1 of 1 free; 127.0.0.1:{board.port} answers" in findings["tracker"]["text"]


@pytest.mark.parametrize(
    ("device", "where", "step", "what_to_do"),
    [
        ("rpi44", None, "profile valid", "did you mean 'rpi4'"),
        ("x86", "rpc://nowhere", "profile valid", "write local, rpc://HOST:PORT"),
        ("x86", "rpc://127.0.0.1:1", "address", "nothing listens at 127.0.0.1:1; start the server"),
        ("x86", "tracker://127.0.0.1:1/x86", "address", "start it with: python -m tvm.exec.rpc_tracker"),
    ],
)
def test_first_step_that_fails_says_what_to_do_and_ends_it(
    device: str, where: str | None, step: str, what_to_do: str
) -> None:
    findings = list(examine(device, where))
    assert [finding.step for finding in findings] == list(STEPS)
    wrong = STEPS.index(step)
    assert [finding.ok for finding in findings] == [True] * wrong + [False] + [None] * (len(STEPS) - wrong - 1)
    assert what_to_do in findings[wrong].text


def test_device_that_is_not_well_is_told_by_the_exit_code(aap_hw: Callable[..., Any]) -> None:
    outcome = aap_hw("doctor", "--device", "x86", "--connect", "rpc://127.0.0.1:1")
    assert (outcome.code, outcome.err) == (2, "")
    assert "WRONG address:" in outcome.out
