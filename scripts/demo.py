"""The main job on this machine: profile ResNet-20 in float32 and int8, prune it to 30 % of its latency, and deploy it.

One plan chooses the width and the precision of each layer. Everything is measured here; nothing is downloaded. The
results are in runs/demo. With --quick, few widths, images and epochs show in two minutes whether all of it works; what
comes out is then of no use.
"""

import argparse
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RUN = Path("runs/demo")
TABLE = Path("runs/demo-lut/x86.json")
QUICK_PROFILE = TABLE.parent / "quick.toml"
# What the pruned network is compared with.
UNPRUNED, UNPRUNED_INT8 = RUN / "unpruned", RUN / "unpruned-int8"
# What the three networks came to, written last.
COMPARED = RUN / "compared.json"
X86 = Path(__file__).parent.parent / "device_profiles" / "x86.toml"
# Of each quick run's images.
QUICK_IMAGES = 100
# The exit code of a command that Ctrl-C ended, and that of one that was still being imported then.
INTERRUPTED, INTERRUPTED_EARLY = 130, -signal.SIGINT


def steps(quick: bool) -> Iterator[list[str]]:
    """The commands, without ``aap-hw``; later ones depend on what the earlier ones wrote."""
    device, images, training = "x86", ["--data", "embedded"], ["--budget", "30%", "--rounds", "1", "--epochs", "10"]
    if quick:
        device, images = str(quick_profile(QUICK_PROFILE)), [*images, "--limit", str(QUICK_IMAGES)]
        training = ["--budget", "50%", "--rounds", "1", "--epochs", "1", "--calibration-images", "16"]
    network, mixed, deployed = ["--model", "resnet20"], ["--precision", "mixed"], ["--device", device]

    yield ["profile", *deployed, *network, *mixed, "--out", str(TABLE)]
    yield from pruning(["prune", *network, *images, "--lut", str(TABLE), *mixed, *training], RUN)
    yield ["deploy", str(RUN), *deployed, *(images if quick else [])]
    yield ["deploy", *network, *deployed, *images, "--out", str(UNPRUNED)]
    yield ["deploy", *network, *deployed, *images, "--precision", "int8", "--out", str(UNPRUNED_INT8)]


def pruning(command: list[str], run: Path) -> Iterator[list[str]]:
    """The command that brings a run to its end, unless it is there already."""
    if not (run / "config.json").exists():
        yield [*command, "--out", str(run)]
    elif not (run / "run.json").exists():
        yield ["prune", "--resume", str(run)]


def compare(quick: bool) -> None:
    """Time the three deployed networks in turn, let them classify the test images, and show and write what came out."""
    from aap_hw.device import load_profile
    from aap_hw.device.connection import LocalDevice
    from aap_hw.device.timing import LOADS, Call, time_loads_in_turn
    from aap_hw.files import write_atomic
    from aap_hw.inputs import Inputs
    from aap_hw.train.data import load_embedded

    device, data = LocalDevice(load_profile(str(QUICK_PROFILE) if quick else "x86")), load_embedded()
    chosen = data.spread("test", QUICK_IMAGES if quick else data.count("test"))
    (images,) = data.inputs("test", Inputs.of((3, 32, 32)), chosen)
    samples, classes = [image[None].numpy() for image in images], data.stored("test", chosen)[1].tolist()
    summary = json.loads((RUN / "summary.json").read_text())
    networks = {
        "float32, unpruned": (UNPRUNED, summary["params_dense"]),
        "int8, unpruned": (UNPRUNED_INT8, summary["params_dense"]),
        "mixed, pruned": (RUN / "bundle-x86", summary["params_pruned"]),
    }
    libraries = {name: [device.load(at / "model.so") for _ in range(LOADS)] for name, (at, _) in networks.items()}
    calls = {name: [Call(each, "main", samples[:1]) for each in loads] for name, loads in libraries.items()}
    timings = time_loads_in_turn(calls, device.profile.measure)
    rows = []
    for name, (bundle, parameters) in networks.items():
        library, right = libraries[name][0], 0
        for sample, label in zip(samples, classes, strict=True):
            library.set_inputs("main", [sample])
            right += int(library.run("main")[0].argmax()) == label
        rows.append(
            {
                "network": name,
                "latency_ms": timings[name][LOADS // 2].latency_us / 1e3,
                "accuracy": 100 * right / len(samples),
                "parameters": parameters,
                "library_bytes": (bundle / "model.so").stat().st_size,
            }
        )
    show(rows, len(samples))
    write_atomic(COMPARED, json.dumps({"images": len(samples), "rows": rows}, indent=1) + "\n")


def show(rows: list[dict[str, Any]], images: int) -> None:
    """Print what the networks came to, as a table; shares are of the first one."""
    from aap_hw.cli.console import PlainConsole, grid_of

    print(f"\nthe three libraries on this machine: timed in turn, accuracy on {images:,} test images, size", flush=True)
    columns = "ms", "share", "accuracy, %", "parameters", "kB"
    grid = grid_of("", *columns, right=columns)
    for row in rows:
        ms, size = row["latency_ms"], row["library_bytes"] / 1e3
        figures = (
            f"{ms:.3f}",
            f"{ms / rows[0]['latency_ms']:.1%}",
            f"{row['accuracy']:.2f}",
            f"{row['parameters']:,}",
            f"{size:,.0f}",
        )
        grid.add_row(row["network"], *figures)
    PlainConsole().print(grid)
    if rows[1]["latency_ms"] > rows[0]["latency_ms"]:
        print("int8 is slower than float32 here, so the plan uses it little: docs/precision.md says where it pays off")


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
    return TABLE.parent.exists() and QUICK_PROFILE.exists() == quick and not COMPARED.exists()


def run(command: list[str]) -> int:
    """Run a command to its end, also if Ctrl-C ends it early: the command gets that too, and says what it kept."""
    with subprocess.Popen(command) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue


def demo(quick: bool) -> Counter[str]:
    """Do all of it; the seconds that each kind of command took.

    Raises
    ------
    SystemExit : a command failed or was interrupted; the code is the command's.
    """
    took = Counter[str]()
    for step in steps(quick):
        print(f"\n$ aap-hw {' '.join(step)}", flush=True)
        began = time.monotonic()
        if (code := run([sys.executable, "-m", "aap_hw.cli.main", *step])) != 0:
            if code in (INTERRUPTED, INTERRUPTED_EARLY):
                raise KeyboardInterrupt
            raise SystemExit(code)
        took[step[0]] += time.monotonic() - began
    began = time.monotonic()
    compare(quick)
    took["compare"] += time.monotonic() - began
    return took


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="does it all work?")
    options = parser.parse_args()
    # A demo shows the whole way each time: what a finished one left behind would be reused or refused.
    if not is_ours_to_finish(options.quick):
        for left_behind in (RUN, TABLE.parent):
            shutil.rmtree(left_behind, ignore_errors=True)
    try:
        took = demo(options.quick)
    except KeyboardInterrupt:
        if is_ours_to_finish(options.quick):
            print("run the demo again, and it goes on from there", file=sys.stderr)
        return INTERRUPTED
    parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in took.items())
    print(f"\ndemo finished in {sum(took.values()) / 60:.1f} minutes ({parts}); figures in {COMPARED}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
