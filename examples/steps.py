"""What the recipes share: they run commands of aap-hw one after the other and show them, as one would type them."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from aap_hw.cli.main import main
from aap_hw.device import load_profile

QUICK_DEVICE = Path(__file__).parent / "quick.toml"


class Steps:
    """The commands of a recipe: `profile`, `prune` and `deploy` for its device; a call runs any other.

    Attributes
    ----------
    quick : whether it is only to be seen that all works, on few widths of this machine's kernels.
    """

    def __init__(self, description: str, device: str = "x86") -> None:
        parser = argparse.ArgumentParser(description=description.splitlines()[0])
        parser.add_argument("--device", default=device, help="a device profile; default: %(default)s")
        parser.add_argument("--connect", help="the device's address, as of aap-hw's --connect")
        parser.add_argument("--quick", action="store_true", help="does it all work?")
        given = parser.parse_args()
        self.quick: bool = given.quick
        device = str(QUICK_DEVICE) if self.quick else given.device
        self._device = ("--device", device)
        self._connect = ("--connect", given.connect) if given.connect else ()
        self._table = f"lut/{load_profile(device).name}.json"

    def doctor(self, *words: str) -> None:
        """Check every step of the device, unless it is to be quick."""
        if not self.quick:
            self("doctor", *self._device, *self._connect, *words)

    def profile(self, *words: str) -> None:
        """Measure a network on the device."""
        self("profile", *self._device, *self._connect, *words)

    def prune(self, *words: str, budget: str, out: str) -> None:
        """Prune a network to a budget, or to little less than it takes if it is to be quick."""
        # A table names its device; a profile of one's own is not found by that name.
        own = self._device if self._device[1].endswith(".toml") else ()
        budget = "90%" if self.quick else budget
        self("prune", *own, *self._connect, *words, "--lut", self._table, "--budget", budget, "--out", out)

    def deploy(self, *words: str) -> None:
        """Deploy a run or a network on the device."""
        self("deploy", *words, *self._device, *self._connect)

    def __call__(self, *words: str) -> None:
        """Run ``aap-hw`` with these words; a command that fails ends the recipe."""
        print(f"\n$ aap-hw {shlex.join(words)}", flush=True)
        if (code := main(words)) != 0:
            sys.exit(code)
