"""What a device must install to run a bundle, with run.py and with run.cc, and how long a cold start takes.

Sizes are those of this machine's packages; a board's wheels differ a little. A start is a new process that checks the
bundle, loads it and computes one output: "warm" with all files in memory, "cold" after the kernel was asked to forget
the bundle and what was installed for it, though not Python and the C library. This machine stands in for the board.

Example: python benchmarks/deploy_size.py --model mobilenetv2 --json -
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _report import benchmark_device, print_report, say

from aap_hw.compile.library.lowering import compile_network
from aap_hw.deploy.bundle import Bundle, write_bundle
from aap_hw.deploy.requirements import Requirements
from aap_hw.deploy.runners import build_command
from aap_hw.models import zoo

# What pip installs for run.py.
PACKAGES = ("numpy", "apache-tvm", "apache-tvm-ffi", "ml_dtypes", "typing_extensions")
LIBRARIES = ("tvm/lib/libtvm_runtime.so", "tvm_ffi/lib/libtvm_ffi.so")
MB = 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mobilenetv2")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", help="write JSON to this file, or to standard output for -")
    parser.add_argument("--quick", action="store_true", help="two starts of a small network: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.model, options.runs = "resnet20", 1
    with tempfile.TemporaryDirectory(prefix="aap-hw-deploy-size-") as folder:
        root = Path(folder)
        bundle, packages = make_bundle(options.model, root / "bundle"), install(root / "packages")
        runner = build(root)
        starts = {
            "run.py": [sys.executable, "-S", "-E", "-c", _with_packages(packages, bundle)],
            "run.cc": [str(runner), str(bundle)],
        }
        needs = {
            "run.py": [packages / file for name in PACKAGES for file in _files(name)],
            "run.cc": [runner, *[packages / file for file in LIBRARIES]],
        }
        sizes = {name: sum(file.stat().st_size for file in files) / MB for name, files in needs.items()}
        rows = [
            {"kind": "package", "name": name, "mb": sum((packages / f).stat().st_size for f in _files(name)) / MB}
            for name in PACKAGES
        ]
        for name, command in starts.items():
            warm = [timed(command) for _ in range(options.runs + 1)][1:]
            # With what Python keeps of the modules that it has compiled: in their place, it reads these.
            files = [*needs[name], *packages.rglob("*.pyc"), *bundle.iterdir()]
            cold = [timed(command, files) for _ in range(options.runs)]
            seconds = {"warm_s": statistics.median(warm), "cold_s": statistics.median(cold)}
            rows.append({"kind": "runner", "name": name, "mb": sizes[name], **seconds, "runs": options.runs})
        size = sum(file.stat().st_size for file in bundle.iterdir()) / MB
    summary: dict[str, Any] = {"model": options.model, "bundle_mb": size, "threads": 1}
    for row in rows:
        if row["kind"] == "runner":
            summary |= {f"{row['name']}_{key}": row[key] for key in ("mb", "warm_s", "cold_s")}
    print_report(rows, summary, options.json)


def make_bundle(model: str, folder: Path) -> Path:
    """A bundle with one reference vector: the time of a whole run is then that of one output."""
    say(f"compiling {model}")
    device, made = benchmark_device("x86", quick=False), zoo.build(model)
    image = torch.randn(1, *made.input_shape, generator=torch.Generator().manual_seed(0))
    library = folder.with_suffix(".so")
    compile_network(made.module, image, device.target, library)
    with torch.no_grad():
        outputs = made.module(image).numpy()
    how, latency = (
        {"scale": 1.0, "mean": [0.0] * 3, "std": [1.0] * 3, "in_network": False},
        {"predicted": None, "measured": None},
    )
    requires = Requirements.of(library, device.target)
    facts = device.describe().as_json()
    named, tolerances = {"logits": outputs[:, None]}, {"logits": 1e-3}
    bundle = Bundle(model, facts, requires, {"image": image.numpy()}, named, tolerances, (), how, latency)
    write_bundle(folder, library, bundle)
    return folder


def _files(package: str) -> list[Path]:
    files = importlib.metadata.files(package) or []
    installed = [Path(file) for file in files if ".." not in file.parts and Path(file.locate()).is_file()]
    return [file for file in installed if "__pycache__" not in file.parts]


def install(folder: Path) -> Path:
    """The packages that a board has, and no others, copied from this environment."""
    source = Path(sysconfig.get_paths()["purelib"])
    for file in [file for package in PACKAGES for file in _files(package)]:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / file, folder / file)
    return folder


def build(folder: Path) -> Path:
    """Compile run.cc, without the symbols that only a debugger reads."""
    say("compiling run.cc")
    shutil.copy(folder / "bundle" / "run.cc", folder)
    subprocess.run([*build_command(folder / "packages"), "-s"], cwd=folder, check=True)
    return folder / "run"


def _with_packages(packages: Path, bundle: Path) -> str:
    script = str(bundle / "run.py")
    return f"import runpy, sys; sys.path.append({str(packages)!r}); sys.argv = [{script!r}]; " + (
        f"runpy.run_path({script!r}, run_name='__main__')"
    )


def timed(command: list[str], forget: list[Path] = []) -> float:  # noqa: B006 - only read
    """Seconds of one run; the files of ``forget`` are read from disk again."""
    for file in forget:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())  # only what is on the disk can be forgotten
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
