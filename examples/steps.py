"""What the recipes share: they run commands of aap-hw one after the other and show them, as one would type them."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from aap_hw.cli.main import main

QUICK_DEVICE = Path(__file__).parent / "quick.toml"


class Steps:
    """The commands of a recipe.

    Attributes
    ----------
    quick : whether it is only to be seen that all works, on few widths of this machine's kernels.
    device : what to give as ``--device``.
    table : what to give as ``--lut``, and as ``--out`` of ``profile``.
    connect : ``--connect`` and the device's address, or nothing.
    """

    def __init__(self, description: str, device: str = "x86") -> None:
        parser = argparse.ArgumentParser(description=description.splitlines()[0])
        parser.add_argument("--device", default=device, help="a device profile; default: %(default)s")
        parser.add_argument("--connect", help="the device's address, as of aap-hw's --connect")
        parser.add_argument("--quick", action="store_true", help="does it all work?")
        given = parser.parse_args()
        self.quick = given.quick
        self.device = str(QUICK_DEVICE) if given.quick else given.device
        self.table = f"lut/{Path(self.device).stem}.json"
        self.connect = ("--connect", given.connect) if given.connect else ()

    def __call__(self, *words: str) -> None:
        """Run ``aap-hw`` with these words; a command that fails ends the recipe."""
        print(f"\n$ aap-hw {shlex.join(words)}", flush=True)
        if (code := main(words)) != 0:
            sys.exit(code)
