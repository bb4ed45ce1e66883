"""The emulated board of `scripts/emulated_board.sh`, and how programs are run on it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "emulated_board.sh"
PORT = 9110
PATIENCE_S = 1200
"""What takes seconds in an emulator may take minutes on a machine that does other things, too."""


def on_board(*command: str | Path, **variables: str) -> str:
    """What a program prints that runs on the board."""
    done = subprocess.run(
        [SCRIPT, "run", *command],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
