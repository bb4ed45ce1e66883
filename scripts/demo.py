"""The main job on this machine: profile ResNet-20, prune it to half its latency, deploy it.

Everything is measured here; nothing is downloaded. The result is in runs/demo.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path

RUN = Path("runs/demo")
TABLE = Path("runs/demo-lut/x86.json")
STEPS = (
    ("profile", "--device", "x86", "--model", "resnet20", "--out", str(TABLE)),
    (
        "prune",
        "--model",
        "resnet20",
        "--data",
        "embedded",
        "--lut",
        str(TABLE),
        "--budget",
        "50%",
        "--out",
        str(RUN),
    ),
    ("deploy", str(RUN), "--device", "x86"),
)


def main() -> int:
    began = time.monotonic()
    # A demo shows the whole way each time: what an earlier one left behind would be reused or refused.
    for left_behind in (RUN, TABLE.parent):
        shutil.rmtree(left_behind, ignore_errors=True)
    for step in STEPS:
        print(f"\n$ aap-hw {' '.join(step)}", flush=True)
        code = subprocess.call([sys.executable, "-m", "aap_hw.cli.main", *step])
        if code != 0:
            return code
    print(f"\ndemo finished in {(time.monotonic() - began) / 60:.1f} minutes; figures in {RUN / 'summary.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
