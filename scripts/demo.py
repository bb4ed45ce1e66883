"""The main job on this machine: profile ResNet-20, prune it to half its latency, deploy it.

Everything is measured here; nothing is downloaded. The result is in runs/demo. With --quick, few widths, images and
epochs show in a minute whether all of it works; what comes out is then of no use.
"""

import argparse
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

RUN = Path("runs/demo")
TABLE = Path("runs/demo-lut/x86.json")
X86 = Path(__file__).parent.parent / "device_profiles" / "x86.toml"
# The exit code of a command that Ctrl-C ended.
INTERRUPTED = 130


def steps(quick: bool) -> list[list[str]]:
    """The commands, without ``aap-hw``."""
    device, images, training = "x86", ["--data", "embedded"], ["--budget", "50%", "--rounds", "2"]
    if quick:
        device, images = str(quick_profile(TABLE.parent / "quick.toml")), [*images, "--limit", "100"]
        training = ["--budget", "80%", "--rounds", "1", "--epochs", "1", "--calibration-images", "16"]
    prune = ["prune", "--model", "resnet20", *images, "--lut", str(TABLE), *training, "--out", str(RUN)]
    if (RUN / "config.json").exists():
        prune = ["prune", "--resume", str(RUN)]
    return [
        ["profile", "--device", device, "--model", "resnet20", "--out", str(TABLE)],
        prune,
        ["deploy", str(RUN), "--device", device, *(images if quick else [])],
    ]


def quick_profile(path: Path) -> Path:
    """This machine with two widths a channel group, each timed a few times."""
    text = X86.read_text()
    for key, value in {"granularity": 16, "at_most": 2, "repeats": 3, "copies": 2}.items():
        text = re.sub(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def is_ours_to_finish(quick: bool) -> bool:
    """Whether an earlier demo of this kind was interrupted, which is then gone on with."""
    begun, was_quick = TABLE.parent.exists(), (TABLE.parent / "quick.toml").exists()
    return begun and was_quick == quick and not (RUN / "run.json").exists()


def run(command: list[str]) -> int:
    """Run a command to its end, also if Ctrl-C ends it early: the command gets that too, and says what it kept."""
    with subprocess.Popen(command) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="does it all work?")
    options = parser.parse_args()
    # A demo shows the whole way each time: what a finished one left behind would be reused or refused.
    if not is_ours_to_finish(options.quick):
        for left_behind in (RUN, TABLE.parent):
            shutil.rmtree(left_behind, ignore_errors=True)
    took = {}
    for step in steps(options.quick):
        print(f"\n$ aap-hw {' '.join(step)}", flush=True)
        began = time.monotonic()
        if (code := run([sys.executable, "-m", "aap_hw.cli.main", *step])) != 0:
            if code == INTERRUPTED and is_ours_to_finish(options.quick):
                print("run the demo again, and it goes on from there", file=sys.stderr)
            return code
        took[step[0]] = time.monotonic() - began
    parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in took.items())
    print(f"\ndemo finished in {sum(took.values()) / 60:.1f} minutes ({parts}); figures in {RUN / 'summary.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
