"""Code for Arm boards judged by its instructions: ours beside ONNX Runtime's and LiteRT's, on an emulated CPU.

No board is needed. QEMU runs each engine's own code for aarch64 with one thread and counts what one inference executes:
vector multiply-adds, loads and stores of vectors, and the rest. Counts are facts about the code and no latencies.
``ratio`` is ours over those of the better peer; LiteRT's kernels are XNNPACK's. ``fma_share`` is the share of
multiply-adds in our dense convolutions. LLVM's model of a pipeline tells how near to its peak the heaviest loops can
come, with all data in the first cache (``share_of_peak``).

Get what it needs (Debian, 1 GB of downloads) with: scripts/emulated_board.sh peers

    python benchmarks/arm_code.py --folder runs/arm_code --json docs/results/arm_code.json

All networks take some hours. With ``--folder`` a run that was stopped goes on where it was; to count one engine again,
remove its folders there (``rm -r runs/arm_code/*/ours_int8_*``).
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from _settings import Case

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "emulated_board.sh"
BOARD = Path(os.environ.get("AAP_HW_EMULATED_BOARD") or Path.home() / ".cache" / "aap-hw" / "emulated-board")
HERE = Path(__file__).parent

MODELS = "mobilenet_v2,resnet18,mobilenet_v3_large,efficientnet_b0"
PROFILES = {"cortex-a72": "rpi4", "cortex-a76": "rpi5"}
PEERS = ("onnxruntime", "litert")
PRECISIONS = ("fp32", "int8")
HEAVIEST = 10
"""Kernels of a network whose loops are looked at."""
LIMIT_S = 1500


def main() -> None:
    options = _options()
    os.environ["OMP_NUM_THREADS"] = os.environ["TVM_NUM_THREADS"] = "1"
    from _report import print_report, say

    if missing := _missing():
        say(f"arm_code: {missing}; get what is needed with: scripts/emulated_board.sh peers")
        if not options.quick:
            sys.exit(2)
        print_report([{"skipped": missing}], {"skipped": missing}, options.json)
        return
    from _settings import Case

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        counter = _counter(Path(temporary))
        for name in options.models.split(","):
            case = Case(name, options.size, folder / name)
            case.folder.mkdir(parents=True, exist_ok=True)
            if (size := _size_kept(case.folder)) not in (None, options.size):
                say(f"arm_code: {case.folder} has counts of images of {size} pixels; take another --folder")
                sys.exit(2)
            case.prepare()
            for precision, cpu in product(options.precisions.split(","), options.cpus.split(",")):
                rows += _rows(case, precision, cpu, list(filter(None, options.engines.split(","))), counter)
    print_report(rows, {**summary_of(rows), **_tools()}, options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=MODELS, help="torchvision names, separated by commas")
    parser.add_argument("--engines", default=",".join(PEERS), help="peers, of onnxruntime,litert")
    parser.add_argument("--precisions", default="fp32,int8", help="of fp32,int8")
    parser.add_argument("--cpus", default=",".join(PROFILES), help=f"of {','.join(PROFILES)}")
    parser.add_argument("--size", type=int, default=224, help="height and width of the image")
    parser.add_argument(
        "--folder", help="keep each engine's counts here; those that are there already are not made again"
    )
    parser.add_argument("--json", help="write JSON to this file, or to standard output for -")
    parser.add_argument("--quick", action="store_true", help="one network, a small image: does it run?")
    options = parser.parse_args()
    for option, known in (("engines", PEERS), ("precisions", PRECISIONS), ("cpus", PROFILES)):
        if unknown := {*filter(None, getattr(options, option).split(","))} - {*known}:
            parser.error(f"--{option}: there is no {min(unknown)}; there are {', '.join(known)}")
    if options.quick:
        options.models, options.size, options.precisions, options.cpus = "mobilenet_v2", 64, "fp32", "cortex-a72"
    return options


def _missing() -> str:
    """What is needed and not there."""
    from _arm_blocks import found_tool

    if not (BOARD / "peers").is_dir() or not (BOARD / "include" / "qemu-plugin.h").is_file():
        return f"there is no emulated board with peers in {BOARD}"
    try:
        for name in ("llvm-mc", "llvm-mca", "llvm-objdump", "llvm-nm"):
            found_tool(name)
    except FileNotFoundError as problem:
        return f"{problem} is not installed"
    return ""


def _tools() -> dict[str, str]:
    """Versions of what counts, and of the peers on the board."""
    from _arm_blocks import found_tool

    said = subprocess.run(["qemu-aarch64", "--version"], capture_output=True, text=True, check=True).stdout
    peers = [path.name.removesuffix(".dist-info").split("-") for path in (BOARD / "peers").glob("*.dist-info")]
    versions = {"onnxruntime": "onnxruntime", "ai_edge_litert": "litert"}
    return {
        "qemu": said.splitlines()[0].removeprefix("qemu-aarch64 version "),
        "llvm": Path(found_tool("llvm-mca")).parent.parent.name.removeprefix("llvm-"),
        **{f"{versions[name]}_version": version for name, version in peers if name in versions},
    }


def _size_kept(folder: Path) -> int | None:
    """The height of the image that the networks and counts in a folder are of, if there are any."""
    image = folder / "image.npy"
    return int(np.load(image).shape[2]) if image.exists() else None


def _counter(folder: Path) -> Path:
    """The plugin that counts, compiled for the QEMU that is here."""
    made = folder / "count_blocks.so"
    command = ["gcc", "-O2", "-shared", "-fPIC", f"-I{BOARD / 'include'}", "-o", str(made)]
    subprocess.run([*command, str(HERE / "_count_blocks.c")], check=True)
    return made


@dataclass(frozen=True)
class Run:
    """One inference by one engine, and the folder with what is known of it."""

    engine: str
    folder: Path
    network: Path
    correlation: float | None


def _rows(case: Case, precision: str, cpu: str, peers: Sequence[str], counter: Path) -> list[dict[str, Any]]:
    """The counts of a network in a precision for a CPU, and the heaviest loops."""
    from _report import say

    where = {"model": case.name, "precision": precision, "cpu": cpu}
    row: dict[str, Any] = {"kind": "network", **where}
    loops: list[dict[str, Any]] = []
    for engine in ("ours", *peers):
        say(f"{case.name} {precision} {cpu}: {engine}")
        found = _counts(case, precision, cpu, engine, counter)
        row |= {f"{engine}_{name}": value for name, value in found["counts"].items()}
        loops += [{"kind": "loop", **where, "engine": engine, **each} for each in found["loops"]]
    row |= compared(row, peers)
    if "ratio" in row:
        say(f"{case.name} {precision} {cpu}: {row['ratio']:.2f} of {row['best']}")
    return [row, *loops]


def _counts(case: Case, precision: str, cpu: str, engine: str, counter: Path) -> dict[str, Any]:
    """An engine's counts and its heaviest loops, kept in the folder of its run; what it cannot run is a problem."""
    from _report import say

    from aap_hw.files import write_atomic

    folder = case.folder / f"{engine}_{precision}_{cpu}"
    kept = folder / "counts.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    folder.mkdir(exist_ok=True)
    try:
        counts, loops = _judged(_run(case, precision, cpu, engine, folder, counter), cpu)
    except (subprocess.SubprocessError, NotImplementedError) as problem:
        say(line := _last_line(problem))
        return {"counts": {"problem": line}, "loops": []}
    write_atomic(kept, json.dumps({"counts": counts, "loops": loops}))
    return {"counts": counts, "loops": loops}


def _last_line(problem: Exception) -> str:
    if isinstance(problem, subprocess.TimeoutExpired):
        return f"no answer in {problem.timeout:.0f} s"
    said = getattr(problem, "stderr", None) or str(problem)
    return str(said).strip().splitlines()[-1]


def _run(case: Case, precision: str, cpu: str, engine: str, folder: Path, counter: Path) -> Run:
    network, image = _network(case, precision, cpu, engine), case.folder / "image.npy"
    np.save(image, case.arrays()[0])
    environment = {
        **os.environ,
        "AAP_HW_EMULATED_BOARD": str(BOARD),
        "AAP_HW_EMULATED_CPU": cpu,
        "QEMU_PLUGIN": f"file={counter},out={folder / 'blocks'}",
        "TVM_USE_RUNTIME_LIB": "1",
    }
    arguments = [engine, str(network), str(image), str(folder)]
    done = subprocess.run(
        [str(SCRIPT), "run", "python3", str(HERE / "_arm_guest.py"), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=LIMIT_S,
    )
    # Without it, LiteRT would go on with kernels that nobody uses.
    if engine == "litert" and "XNNPACK delegate" not in done.stdout + done.stderr:
        raise NotImplementedError("LiteRT did not hand the network to XNNPACK")
    return Run(engine, folder, network, case.correlation([np.load(folder / "outputs.npy")]))


def _network(case: Case, precision: str, cpu: str, engine: str) -> Path:
    """The file that an engine runs."""
    from _settings import setting_of

    if engine == "ours":
        return _ours(case, precision, cpu)
    if engine == "onnxruntime":
        path = case.folder / ("model.onnx" if precision == "fp32" else "onnxruntime_int8.onnx")
        if not path.exists():
            setting_of(engine, precision).build(case, [1])
        return path
    from _litert_file import schema_of, write_litert

    path = case.folder / f"litert_{precision}.tflite"
    if not path.exists():
        write_litert(case.model(), case.inputs()[0], schema_of(BOARD / "peers"), path, precision == "int8")
    return path


def _ours(case: Case, precision: str, cpu: str) -> Path:
    from aap_hw.compile.keys.target import device_target
    from aap_hw.compile.library.lowering import compile_network
    from aap_hw.device import load_profile

    path = case.folder / f"ours_{precision}_{cpu}.so"
    model, quantisation = _quantised(case) if precision == "int8" else (case.model(), None)
    target = device_target(load_profile(PROFILES[cpu]).target_config(), threads=1)
    compile_network(model, case.inputs(), target, path, quantisation=quantisation)
    return path


@functools.cache
def _quantised(case: Case) -> tuple[Any, Any]:
    """A float network and the scales of its values."""
    from aap_hw.quantize import quantise, read_quantised

    return read_quantised(quantise(case.model(), case.calibration()))


def _judged(run: Run, cpu: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Counts of a run, and its heaviest loops beside the peak of the pipeline."""
    from _arm_blocks import KINDS, MULTIPLY_ADDS, PRODUCTS, counted, executed, functions, loops

    instructions = executed(run.folder / "blocks")
    kinds = counted(instructions)
    counts: dict[str, Any] = {"instructions": sum(kinds.values()), **{kind: kinds[kind] for kind in KINDS}}
    counts["correlation"] = run.correlation
    if run.engine != "ours":
        return counts, [_loop(each, cpu) for each in loops(instructions)[:HEAVIEST] if each.multiply_adds]
    ours = functions(instructions, run.network, run.folder / "maps")
    dense = [each for each in ours if each.name.removeprefix("__tvm_ffi_").startswith(("conv2d", "linear"))]
    in_dense = counted([each for function in dense for each in function.instructions])
    counts["dense_share"] = sum(in_dense.values()) / counts["instructions"]
    counts["fma_share"] = (in_dense[MULTIPLY_ADDS] + in_dense[PRODUCTS]) / max(1, sum(in_dense.values()))
    heaviest = sorted(ours, key=lambda function: -sum(each.count for each in function.instructions))[:HEAVIEST]
    found = []
    for function in heaviest:
        multiplying = [each for each in loops(function.instructions) if each.multiply_adds]
        found += [{"name": function.name, **_loop(multiplying[0], cpu)}] if multiplying else []
    return counts, found


def _loop(loop: Any, cpu: str) -> dict[str, Any]:
    from _arm_blocks import MEMORY, cycles, share_of_peak

    return {
        "is_dense": loop.is_dense,
        "executed": loop.executed,
        "instructions": len(loop.body),
        "multiply_adds": loop.multiply_adds,
        "loads_and_stores": sum(each.kind == MEMORY for each in loop.body),
        "cycles": cycles(loop.body, MODELS_OF_PIPELINE[cpu]),
        "share_of_peak": share_of_peak(loop, MODELS_OF_PIPELINE[cpu]),
    }


# LLVM's names. It gives a cortex-a72 and a cortex-a76 the pipeline of a Cortex-A57 (version 22); a Neoverse N1 is a
# Cortex-A76 for servers, and has a model of its own.
MODELS_OF_PIPELINE = {"cortex-a72": "cortex-a72", "cortex-a76": "neoverse-n1"}


def compared(row: Mapping[str, Any], peers: Sequence[str]) -> dict[str, Any]:
    """The peer with the fewest instructions, and ours over its."""
    counts = {peer: row[f"{peer}_instructions"] for peer in peers if f"{peer}_instructions" in row}
    if not counts or "ours_instructions" not in row:
        return {}
    best = min(counts, key=counts.__getitem__)
    return {"best": best, "ratio": row["ours_instructions"] / counts[best]}


def summary_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of all rows, and then of each precision on each CPU, whose names end with these."""
    summary, places = _figures(rows), sorted({(row["precision"], row["cpu"]) for row in rows})
    for precision, cpu in places:
        some = [row for row in rows if (row["precision"], row["cpu"]) == (precision, cpu)]
        summary |= {f"{name}_{precision}_{cpu}": value for name, value in _figures(some).items()}
    return summary


def _figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and worst ratio over the networks compared; shares, of multiply-adds too, are the lowest of dense code."""
    networks = [row for row in rows if row["kind"] == "network"]
    ratios = [row["ratio"] for row in networks if "ratio" in row]
    figures: dict[str, Any] = {
        "compared": len(ratios),
        "instructions_ratio": statistics.geometric_mean(ratios) if ratios else None,
        "worst_ratio": max(ratios, default=None),
        "fma_share": min((row["ours_fma_share"] for row in networks if "ours_fma_share" in row), default=None),
    }
    for engine, name in (("ours", "mca_share_of_peak"), ("litert", "mca_share_of_peak_xnnpack")):
        dense = [row for row in rows if row["kind"] == "loop" and row["engine"] == engine and row["is_dense"]]
        figures[name] = min((row["share_of_peak"] for row in dense), default=None)
        figures[f"mean_{name}"] = _weighted(dense)
    correlations = (row["ours_correlation"] for row in networks if row.get("ours_correlation") is not None)
    return {**figures, "lowest_correlation": min(correlations, default=None)}


def _weighted(loops: Sequence[Mapping[str, Any]]) -> float | None:
    """The mean share of the peak, by what each loop executes."""
    total = sum(row["executed"] for row in loops)
    return sum(row["executed"] * row["share_of_peak"] for row in loops) / total if total else None


if __name__ == "__main__":
    main()
