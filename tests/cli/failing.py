"""What the tests of wrong inputs share: a network that is there, and how every mistake of the user must end."""

from __future__ import annotations

import re
from typing import Any

RESNET20 = ("--model", "resnet20", "--weights", "embedded", "--calibration-images", "8")


def fails(outcome: Any, sentence: str) -> None:
    assert (outcome.code, outcome.out) == (2, ""), outcome
    assert outcome.err.startswith("aap-hw: error: ")
    assert outcome.err.count("\n") == 1, outcome.err
    assert "Traceback" not in outcome.err
    assert re.search(sentence, outcome.err), outcome.err
