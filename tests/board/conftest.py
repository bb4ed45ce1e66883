"""An emulated Arm board that is there for a module's tests.

Its userland is downloaded the first time. So these tests run by ``make test-board``, and not with the others.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from aap_hw.device import load_profile
from aap_hw.device.connection import Device
from tests.board.board import PATIENCE_S, PORT, SCRIPT
from tests.device.reaching import connect


@pytest.fixture(scope="module")
def where() -> Iterator[str]:
    """What to write behind --connect."""
    environment = {**os.environ, "AAP_HW_EMULATED_PORT": str(PORT)}
    subprocess.run([SCRIPT, "up"], check=True, env=environment, stdout=subprocess.DEVNULL)
    yield f"rpc://127.0.0.1:{PORT}"
    subprocess.run([SCRIPT, "down"], check=True, env=environment)


@pytest.fixture(scope="module")
def device(where: str) -> Iterator[Device]:
    """The board, as a cortex-a72."""
    profile = load_profile("rpi4").reached_by(where)
    patient = profile.connect.model_copy(update={"timeout_s": float(PATIENCE_S)})
    board = connect(profile.model_copy(update={"connect": patient}))
    yield board
    board.close()  # type: ignore[attr-defined]
