"""A bundle for an NVIDIA Jetson that is not at hand: compiled to its GPU's machine code, and not run.

python examples/jetson/run.py [--device MINE.toml] [--quick]
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # what recipes share

from steps import Steps

HERE = Path(__file__).parent
BUNDLE = Path("runs/jetson")


def main() -> None:
    aap_hw = Steps(__doc__, device="jetson-orin", reaches=False)
    own = ("--model", str(HERE.parent / "user_net.py:make"), "--input", "3x96x96")
    model = own if aap_hw.quick else ("--model", "mobilenetv2")
    aap_hw.deploy(*model, "--no-run", "--out", str(BUNDLE))
    manifest = json.loads((BUNDLE / "manifest.json").read_text())
    assert manifest["latency"]["measured"] is None, "nothing was run"
    for name in sorted(manifest["sha256"]):
        print(f"  {name}: {(BUNDLE / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
