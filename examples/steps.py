"""What the recipes share: they run commands of aap-hw one after the other and show them, as one would type them."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from pathlib import Path

from aap_hw.cli.main import main
from aap_hw.device import load_profile
from aap_hw.prune.run import RunFolder

QUICK_DEVICE = Path(__file__).parent / "quick.toml"


class Steps:
    """The commands of a recipe: `profile`, `prune` and `deploy` for its device; a call runs any other.

    Parameters
    ----------
    run : folder of its run, if it makes one.
    reaches : whether it looks for its device where the user says. If not, the quick form is for the same device.

    Attributes
    ----------
    quick : whether it is only to be seen that all works, on few widths of this machine's kernels.
    goes_on : whether the run was interrupted. Then what it began with is there, and `prune` goes on with it.
    bundle : where `deploy` puts the run's bundle.
    """

    def __init__(self, description: str, device: str = "x86", run: str = "", *, reaches: bool = True) -> None:
        parser = argparse.ArgumentParser(description=description.splitlines()[0])
        parser.add_argument("--device", help=f"a device profile; default: {device}")
        if reaches:
            parser.add_argument("--connect", help="the device's address, as of aap-hw's --connect")
        parser.set_defaults(connect=None)
        parser.add_argument("--quick", action="store_true", help="does it all work?")
        given = parser.parse_args()
        if given.quick and reaches and given.device:
            parser.error("--quick measures few widths on this machine, so --device would do nothing; leave one out")
        self.quick: bool = given.quick
        device = str(QUICK_DEVICE) if self.quick and reaches else given.device or device
        name = load_profile(device).name
        self._device = ("--device", device)
        self._connect = ("--connect", given.connect) if given.connect else ()
        self._table = f"lut/{name}.json"
        self._run, folder = run, RunFolder(Path(run))
        if run and self.quick:
            begin_in(Path(f"{run}-quick"))
        elif run and folder.is_finished:
            sys.exit(f"{run} already holds a run; delete it, or go on with the commands that come after 'prune'")
        self.goes_on = bool(run) and folder.is_begun
        self.bundle = folder.path / f"bundle-{name}"

    def doctor(self, *words: str) -> None:
        """Check every step of the device, unless it is to be quick."""
        if not self.quick:
            self("doctor", *self._device, *self._connect, *words)

    def profile(self, *words: str) -> None:
        """Measure a network on the device."""
        self("profile", *self._device, *self._connect, *words)

    def prune(self, *words: str, budget: str) -> None:
        """Prune a network to a budget, or to little less than it takes if it is to be quick."""
        if self.goes_on:
            self("prune", "--resume", self._run, *self._connect)
            return
        # A table names its device; a profile of one's own is not found by that name.
        own = self._device if self._device[1].endswith(".toml") else ()
        budget = "90%" if self.quick else budget
        self("prune", *own, *self._connect, *words, "--lut", self._table, "--budget", budget, "--out", self._run)

    def deploy(self, *words: str) -> None:
        """Deploy a run or a network on the device."""
        self("deploy", *words, *self._device, *self._connect)

    def __call__(self, *words: str) -> None:
        """Run ``aap-hw`` with these words; a command that fails ends the recipe."""
        print(f"\n$ aap-hw {shlex.join(words)}", flush=True)
        if (code := main(words)) != 0:
            sys.exit(code)


def begin_in(folder: Path) -> None:
    """Work in a folder without what was there, so that nothing of a full recipe is touched."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    print(f"$ cd {shlex.quote(str(folder))}", flush=True)
    os.chdir(folder)
