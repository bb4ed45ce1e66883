"""Time what this folder holds on the machine that it lies on, and write results.json into it.

Needs NumPy and TVM's run time, in the versions that pack.json names:

    python3 -m pip install numpy apache-tvm==VERSION apache-tvm-ffi==VERSION
    python3 run.py

Interrupt it at any time: the same command goes on where it ended. Then carry results.json back.

Exits with 0 if everything was timed and all outputs that can be checked are right, 1 if one is wrong, 2 if the folder
is damaged or does not fit this machine; then nothing of it has been loaded.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
PACK, RESULTS = "pack.json", "results.json"
# One machine goes by two names.
MACHINES = {"arm64": "aarch64", "amd64": "x86_64"}


class Refused(Exception):  # noqa: N818 - it is the pack that is refused
    """The pack is damaged or does not fit this machine; the message is one sentence."""


def digest_of(document: dict[str, Any]) -> str:
    """What tells a pack from all others: the SHA-256 of its document without this digest."""
    rest = {name: value for name, value in document.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_document(folder: Path, name: str, what: str) -> dict[str, Any]:
    """A JSON file of the folder, of which only the version has been checked.

    Raises
    ------
    Refused : it cannot be read, or is of another version.
    """
    path = folder / name
    try:
        document = json.loads(path.read_bytes(), parse_constant=_refuse)
    except OSError as problem:
        raise Refused(f"cannot read {path} ({problem.strerror}); {what}") from problem
    except (ValueError, RecursionError) as problem:
        raise Refused(f"{path} is damaged or cut short; copy it again") from problem
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise Refused(
            f"{path} has version {version!r} and this program reads {SCHEMA_VERSION}; use the aap-hw that packed it"
        )
    return dict(document)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number")


def read_pack(folder: Path) -> dict[str, Any]:
    """The document of a pack that arrived whole.

    Raises
    ------
    Refused : it is damaged, or a file of it is missing or another one.
    """
    pack = read_document(folder, PACK, f"is {folder} a pack?")
    if pack.get("digest") != digest_of(pack):
        raise Refused(f"{folder / PACK} is not what was packed (its checksum differs); copy the folder again")
    for name, digest in pack["sha256"].items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise Refused(f"{folder / PACK} names the file {name!r}, which is outside of its folder; do not use it")
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as problem:
            raise Refused(f"cannot read {path} ({problem.strerror}); copy the folder again") from problem
        if found != digest:
            raise Refused(f"{path} is not what was packed (its checksum differs); copy the folder again")
    return pack


def require_this_machine(requires: dict[str, Any]) -> None:
    """Refuse a pack for another kind of processor, or another version of TVM."""
    here = MACHINES.get(platform.machine(), platform.machine())
    if requires["machine"] != here:
        raise Refused(f"the pack is for {requires['machine']} and this machine is {here}; carry it to the right one")
    present = _cpu_features(here)
    lacking = [feature for feature in requires["cpu_features"] if present and feature not in present]
    if lacking:
        raise Refused(f"the pack was compiled for a CPU with {', '.join(lacking)}, and this one has none of it")
    _require_packages(requires["tvm"], requires["tvm_ffi"])


def _cpu_features(machine: str) -> list[str]:
    """What Linux says that the CPU can do; nothing where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    title = "Features" if machine == "aarch64" else "flags"
    return next((line.partition(":")[2].split() for line in lines if line.startswith(title)), [])


def _require_packages(tvm: str, ffi: str) -> None:
    from importlib.metadata import PackageNotFoundError, version

    pip = f"{Path(sys.executable).name} -m pip"
    install = f"install it with: {pip} install numpy apache-tvm=={tvm} apache-tvm-ffi=={ffi}"
    for package, wanted in (("numpy", None), ("apache-tvm", tvm)):
        try:
            found = version(package)
        except PackageNotFoundError:
            raise Refused(f"{package} is needed and not installed; {install}") from None
        if wanted not in (None, found):
            raise Refused(f"the pack was compiled with TVM {wanted} and this is TVM {found}; {install}")


def _comparisons(results: dict[str, Any]) -> list[str]:
    """How long each network took, and in PyTorch if that was timed, too."""
    lines = []
    for name, (us, *_) in results["networks"].items():
        beside = [
            f"{way} {value / 1e3:.3f}" if isinstance(value, (int, float)) else f"{way} failed ({value})"
            for way, value in results["beside"].get(name, {}).items()
            if way not in ("torch", "tf32")
        ]
        lines.append(f"{name}: {us / 1e3:.3f} ms" + (f"; PyTorch: {', '.join(beside)} ms" if beside else ""))
    return lines


def main() -> int:
    """Check the folder, then time what it holds."""
    parser = argparse.ArgumentParser(description="Time the kernels and networks of a folder that aap-hw has packed.")
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path(__file__).parents[2], help="the pack; default: ours"
    )
    options = parser.parse_args()
    try:
        pack = read_pack(options.folder)
        require_this_machine(pack["requires"])
        # Only the run time: what compiles is far larger, and not needed here.
        os.environ["TVM_USE_RUNTIME_LIB"] = "1"
        from aap_hw.pack.timing import time_pack

        results = time_pack(options.folder, pack)
    except Refused as refusal:
        print(f"refused: {refusal}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"\ninterrupted; what was timed is in {options.folder / RESULTS}, and the same command goes on from there"
        )
        return 130
    wrong = [check for check in results["checks"] if not check["right"]]
    for check in wrong:
        print(f"WRONG: {check['name']} differs by {check['difference']:.3g}, more than {check['tolerance']:.3g}")
    if results["checks"]:
        print(f"{len(results['checks']) - len(wrong)} of {len(results['checks'])} outputs are right")
    if pack["purpose"] == "check" and not results["facts"]["emulated"]:
        for line in _comparisons(results):
            print(line)
    print(f"everything is timed; carry {options.folder / RESULTS} back")
    return 1 if wrong else 0
