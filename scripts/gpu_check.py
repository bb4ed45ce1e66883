#!/usr/bin/env python3
"""Check whether a GPU that is elsewhere computes what PyTorch does, and how quickly.

    python scripts/gpu_check.py pack FOLDER --arch sm_90   here, without a GPU
    python3 FOLDER/run.py                                  there: NumPy, apache-tvm, and PyTorch to compare with
    aap-hw lut merge FOLDER/results.json ... --out FILE    here again: results.json is a latency table

``pack`` compiles kernels of every family, MobileNetV2, ResNet-18 and a pruned ResNet-18, in fp32 and half precision.
``run FOLDER`` is the same as FOLDER/run.py. With ``--device PROFILE`` it is another device that is checked, a CPU too.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aap_hw.device.profile import DeviceProfile

MODELS = ["mobilenetv2", "resnet18"]
LIMIT_MB = 60


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    pack = commands.add_parser("pack", help="compile what is to be checked into a new folder")
    pack.add_argument("folder", type=Path)
    pack.add_argument("--arch", default="sm_90", help="the GPU's architecture, such as sm_87; default: sm_90")
    pack.add_argument("--device", metavar="PROFILE", help="a device profile instead of an architecture")
    pack.add_argument("--models", nargs="+", default=MODELS, help=f"networks of the zoo; default: {' '.join(MODELS)}")
    run = commands.add_parser("run", help="check and time on the machine that this is")
    run.add_argument("folder", type=Path)
    options = parser.parse_args()
    if options.command == "run":
        # The folder brings all it needs, as this package is not on the machine that it travels to.
        if not (options.folder / "run.py").is_file():
            print(f"gpu_check: {options.folder} is no folder that 'gpu_check.py pack' made", file=sys.stderr)
            return 2
        return subprocess.run([sys.executable, options.folder / "run.py"], check=False).returncode
    return packed(options)


def packed(options: argparse.Namespace) -> int:
    from aap_hw.cli.profile_screen import MeasuringScreen
    from aap_hw.errors import Fault, UserError
    from aap_hw.pack.checks import pack_check

    began = time.monotonic()
    try:
        with MeasuringScreen(options.folder, doing="compiling") as screen:
            made = pack_check(options.folder, profile_of(options), options.models, on_progress=screen.update)
    except (UserError, Fault) as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt as interrupt:
        print(f"gpu_check: {interrupt}", file=sys.stderr)
        return 130
    megabytes = made.bytes / 1e6
    print(
        f"{made.folder}: {made.points} kernels and {made.networks} networks, {megabytes:.1f} MB, "
        f"in {time.monotonic() - began:.0f} s"
    )
    if megabytes > LIMIT_MB:
        print(f"that is more than {LIMIT_MB} MB; name fewer --models")
    print(f"next: carry it to the device, run 'python3 {made.folder.name}/run.py' there, and carry it back")
    return 0


def profile_of(options: argparse.Namespace) -> DeviceProfile:
    """The device to compile for: a GPU of an architecture that serves any x86-64 CPU, or a profile's."""
    from aap_hw.device import load_profile
    from aap_hw.device.profile import TargetSpec
    from aap_hw.validation import validated

    if options.device is not None:
        return load_profile(options.device)
    if options.arch == "sm_87":  # the only boards of this architecture
        return load_profile("jetson-orin")
    fields = {"kind": "cuda", "arch": options.arch, "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v2"}
    return load_profile("cuda").model_copy(update={"target": validated(TargetSpec, fields, f"--arch {options.arch}")})


if __name__ == "__main__":
    sys.exit(main())
