"""What int8 gives you, and then a network that is pruned and quantised.

python examples/int8/run.py [--quick]
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # what recipes share

from steps import Steps

RUN = "runs/int8"


def main() -> None:
    aap_hw = Steps(__doc__, run=RUN)
    model = ("--model", "resnet20", "--data", "embedded", *(("--limit", "64") if aap_hw.quick else ()))
    latencies = {}
    for precision in ("fp32", "int8"):
        bundle = f"runs/resnet20-{precision}"
        aap_hw.deploy(*model, "--precision", precision, "--out", bundle)
        manifest = json.loads((Path(bundle) / "manifest.json").read_text())
        latencies[precision] = manifest["latency"]["measured"]["ms"]
    print(f"\nint8 takes {latencies['int8'] / latencies['fp32']:.0%} of float32's time on this device, unpruned")
    if aap_hw.quick:
        return
    aap_hw.profile("--model", "resnet20", "--precision", "int8")
    aap_hw.prune(*model, "--precision", "int8", budget="60%")
    aap_hw.deploy(RUN)


if __name__ == "__main__":
    main()
