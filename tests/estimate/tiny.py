"""The tiny network's table, estimated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aap_hw.device import load_profile
from aap_hw.lut.estimating import estimate_model
from aap_hw.lut.subject import Workload
from aap_hw.lut.table import LatencyTable
from tests.lut.tiny import INPUT, Tiny


def estimated(path: Path, name: str = "tiny", kernel: int = 1, **options: Any) -> LatencyTable:
    """The table of the tiny network for a Raspberry Pi 4."""
    return estimate_model(Workload(name, Tiny(kernel), INPUT), load_profile("rpi4"), path, **options)
