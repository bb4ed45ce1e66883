#!/usr/bin/env python3
"""Run the compiled network of this folder: check the files, run the reference inputs, compare with PyTorch's outputs.

Needs numpy and apache-tvm, of which only the runtime library is loaded. To use the network in a program:

    from run import Model
    model = Model("path/of/this/folder")
    logits = model(image)  # a float32 array, prepared as "preprocessing" in manifest.json says

A network with several inputs takes them in the order of the manifest, or by name: model(left=..., right=...). Of a
network with several outputs, a call returns a dictionary of them.

Exits with 0 if the outputs agree, 1 if they do not, 2 if the folder does not fit this machine or is damaged; then
nothing of it has been loaded.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

SCHEMA_VERSION = 6
# What an ELF file says of the processor that it is for.
ELF_MACHINES = {3: "i386", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv"}
# TVM's numbers for devices (DLPack) and for the allocator that keeps memory for the next call.
CPU, CUDA, POOLED = 1, 2, 2
ALIGNMENT = 64  # bytes; compiled code takes it for granted
TYPES = ("float32", "int64", "int32", "int16", "int8", "uint8", "bool")
PASSED_AS = ("float32", "uint8")
MOST_WHOLE = 1 << 24  # whole numbers are carried as float32, which knows all of up to this size
RUNS_OF_ONE_TIMING = 50


class Refused(Exception):  # noqa: N818 - it is the bundle that is refused
    """The bundle is damaged or does not fit this machine; the message is one sentence."""


def check(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle that is whole and fits this machine; nothing is loaded.

    Raises
    ------
    Refused : it is not and does not.
    """
    manifest = read_manifest(folder)
    try:
        for name, digest in manifest["sha256"].items():
            check_file(folder / Path(name).name, digest)
        needed = {"model.so", manifest["reference"]["inputs"], manifest["reference"]["outputs"]}
        needed |= {"kernels.cubin"} if manifest["requires"]["accelerator"] == "cuda" else set()
        if missing := needed - set(manifest["sha256"]):
            raise Refused(f"manifest.json has no checksum of {', '.join(sorted(missing))}; copy the bundle again")
        check_tensors(manifest)
        for kind in ("inputs", "outputs"):
            check_values(
                folder / Path(manifest["reference"][kind]).name, manifest["reference"]["count"], manifest[kind]
            )
        check_machine(folder, manifest["requires"])
        check_tvm(manifest["requires"]["tvm"], manifest["requires"]["tvm_ffi"])
    except (KeyError, TypeError, AttributeError) as problem:
        raise Refused(f"manifest.json is damaged (at {problem}); copy the bundle again") from problem
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, of which only the version has been checked."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
    except OSError as problem:
        raise Refused(f"cannot read {path} ({problem.strerror}); is {folder} a bundle?") from problem
    except (ValueError, RecursionError) as problem:
        raise Refused(f"{path} is damaged or cut short; copy the bundle again") from problem
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if version != SCHEMA_VERSION:
        raise Refused(f"{path} has version {version!r} and this run.py reads {SCHEMA_VERSION}; use the bundle's own")
    return dict(manifest)


def check_file(path: Path, digest: str) -> None:
    """Refuse a file that is not the one that was deployed."""
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as problem:
        raise Refused(f"cannot read {path} ({problem.strerror}); copy the bundle again") from problem
    if found != digest:
        raise Refused(f"{path} is not the file that was deployed (its checksum differs); copy the bundle again")


def check_tensors(manifest: dict[str, Any]) -> None:
    """Refuse inputs or outputs that are missing, share a name, or have no size or tolerance."""
    inputs, outputs = manifest["inputs"], manifest["outputs"]
    for kind, tensors in (("inputs", inputs), ("outputs", outputs)):
        sizes = [extent for tensor in tensors for extent in tensor["shape"]]
        if not tensors or any(not isinstance(extent, int) or extent < 1 for extent in sizes):
            raise Refused(f"manifest.json is damaged (at {kind}); copy the bundle again")
        names = {tensor["name"] for tensor in tensors if isinstance(tensor["name"], str)}
        if len(names) < len(tensors):
            raise Refused(f"manifest.json is damaged (at {kind}); copy the bundle again")
    are_known = all(each["dtype"] in TYPES and each["passed_as"] in PASSED_AS for each in inputs)
    if not are_known or not all(output["tolerance"] > 0 and output["decides"] in (True, False) for output in outputs):
        raise Refused("manifest.json is damaged (at inputs or outputs); copy the bundle again")


def check_values(path: Path, count: int, tensors: list[dict[str, Any]]) -> None:
    """Refuse a file that does not hold so many values of each of these tensors."""
    try:
        size = np.load(path, mmap_mode="r", allow_pickle=False).size
    except (OSError, ValueError, EOFError) as problem:
        raise Refused(f"{path} is no NumPy file ({problem}); copy the bundle again") from problem
    if size != count * sum(int(np.prod(each["shape"])) for each in tensors):
        raise Refused(f"{path} does not hold the values that manifest.json says; copy the bundle again")


def check_machine(folder: Path, requires: dict[str, Any]) -> None:
    """Refuse a library for another processor, or for one that can more than this."""
    here = machine_of(Path("/proc/self/exe"))
    for machine in (requires["machine"], machine_of(folder / "model.so")):
        if machine != here:
            raise Refused(f"the bundle is for {machine} and this program runs on {here}; deploy for this machine")
    if not isinstance(requires["threads"], int):
        raise Refused("manifest.json is damaged (at threads); copy the bundle again")
    present = cpu_features(here)
    lacking = [feature for feature in requires["cpu_features"] if present is not None and feature not in present]
    if lacking:
        raise Refused(f"the network was compiled for a CPU with {', '.join(lacking)} and this one has none of it")
    if requires["accelerator"] == "cuda":
        try:
            ctypes.CDLL("libcuda.so.1")
        except OSError as problem:
            raise Refused(f"the network needs an NVIDIA GPU and its driver is not installed ({problem})") from problem


def machine_of(path: Path) -> str:
    """The processor that a program or library is for."""
    with path.open("rb") as stream:
        header = stream.read(20)
    if header[:4] != b"\x7fELF":
        raise Refused(f"{path} is not a library; copy the bundle again")
    number = int.from_bytes(header[18:20], "little")
    return ELF_MACHINES.get(number, f"ELF machine {number}")


def cpu_features(machine: str) -> list[str] | None:
    """What Linux says that the CPU can do; None where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    title = "Features" if machine == "aarch64" else "flags"
    return next((line.partition(":")[2].split() for line in lines if line.startswith(title)), None)


def check_tvm(version: str, ffi: str) -> None:
    """Refuse another version of TVM than the network was compiled with."""
    advice = f"install it with: pip install apache-tvm=={version} apache-tvm-ffi=={ffi}"
    try:
        found = importlib.metadata.version("apache-tvm")
    except importlib.metadata.PackageNotFoundError:
        raise Refused(f"TVM {version} is needed and there is none; {advice}") from None
    if found != version:
        raise Refused(f"the network was compiled with TVM {version} and this is TVM {found}; {advice}")


class Model:
    """The network of a bundle, ready to be called; not for several threads at once.

    Raises
    ------
    Refused : the bundle is damaged or does not fit this machine.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder).resolve()
        self.manifest = check(folder)
        self._inputs = {
            each["name"]: aligned(tuple(each["shape"]), np.dtype(each["passed_as"])) for each in self.manifest["inputs"]
        }
        self._types = {each["name"]: np.dtype(each["dtype"]) for each in self.manifest["inputs"]}
        self._outputs = {each["name"]: np.empty(each["shape"], np.float32) for each in self.manifest["outputs"]}
        requires = self.manifest["requires"]
        os.environ["TVM_NUM_THREADS"] = str(requires["threads"])
        tvm_ffi = load_runtime(requires["accelerator"])
        if requires["accelerator"] == "cuda":
            # TVM asks this function to compile the source of the kernels, which has been done.
            kernels = (folder / "kernels.cubin").read_bytes()
            tvm_ffi.register_global_func("tvm_callback_cuda_compile", lambda source: kernels, override=True)
        self._copy = tvm_ffi.get_global_func("runtime.TVMTensorCopyToBytes")
        self._arguments = [tvm_ffi.from_dlpack(each) for each in self._inputs.values()]
        executable = tvm_ffi.load_module(str(folder / "model.so"))["vm_load_executable"]()
        devices = [(CUDA, 0, POOLED)] if requires["accelerator"] == "cuda" else []
        executable["vm_initialization"](*[n for device in (*devices, (CPU, 0, POOLED)) for n in device])
        self._machine = executable

    def __call__(self, *inputs: np.ndarray, **named: np.ndarray) -> np.ndarray | dict[str, np.ndarray]:
        """The output for one sample, or several by name; all are of the shapes in the manifest."""
        outputs = self.all_outputs(*inputs, **named)
        return outputs if len(outputs) > 1 else next(iter(outputs.values()))

    def all_outputs(self, *inputs: np.ndarray, **named: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs for one sample by name, even if there is only one."""
        given = {**dict(zip(self._inputs, inputs, strict=False)), **named}
        if len(inputs) + len(named) != len(self._inputs) or given.keys() != self._inputs.keys():
            raise ValueError(f"the network takes {', '.join(self._inputs)}, each once")
        for name, value in given.items():
            self._set(name, value)
        self._machine["set_input"]("main", *self._arguments)
        self.run()
        return {name: output.copy() for name, output in self._outputs.items()}

    def _set(self, name: str, value: np.ndarray) -> None:
        place, dtype = self._inputs[name], self._types[name]
        if np.shape(value) != place.shape:
            what = "images" if name == "image" else name
            raise ValueError(f"the network takes {what} of shape {place.shape}, not {np.shape(value)}")
        if dtype != np.float32:
            whole, most = np.asarray(value), 255 if place.dtype == np.uint8 else MOST_WHOLE
            if not np.array_equal(whole, whole.astype(dtype)) or not -most <= whole.min() <= whole.max() <= most:
                raise ValueError(f"the network takes {name} as {dtype}, with values up to {most}")
        place[...] = value

    def run(self) -> None:
        """Compute once more what was computed last, and fetch the outputs."""
        self._machine["invoke_stateful"]("main")
        for i, output in enumerate(self._outputs.values()):
            place = (i,) if len(self._outputs) > 1 else ()
            address = output.ctypes.data_as(ctypes.c_void_p)
            self._copy(self._machine["get_output"]("main", *place), address, output.nbytes)


def load_runtime(accelerator: str) -> Any:
    """TVM's foreign function interface, with the runtime library behind it and without the rest of TVM."""
    spec = importlib.util.find_spec("tvm")
    if spec is None or not spec.submodule_search_locations:
        raise Refused("TVM's package is not complete; install apache-tvm again")
    import tvm_ffi

    names = ["libtvm_runtime.so", *(["libtvm_runtime_cuda.so"] if accelerator == "cuda" else [])]
    for name in names:
        ctypes.CDLL(str(Path(spec.submodule_search_locations[0], "lib", name)), ctypes.RTLD_GLOBAL)
    return tvm_ffi


def aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """An array of zeros where compiled code may read it."""
    size = dtype.itemsize * int(np.prod(shape))
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def main() -> int:
    """Run the reference inputs and say how far the outputs are from PyTorch's."""
    parser = argparse.ArgumentParser(description="Run a compiled network on its reference inputs.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent, help="the bundle; default: ours")
    parser.add_argument("--print", action="store_true", help="print the outputs, one line for each reference input")
    parser.add_argument("--time", action="store_true", help="print how long a call takes")
    options = parser.parse_args()
    try:
        model = Model(options.folder)
    except Refused as refusal:
        print(f"refused: {refusal}", file=sys.stderr)
        return 2
    reference = model.manifest["reference"]
    inputs, expected = (np.load(options.folder / reference[n], allow_pickle=False) for n in ("inputs", "outputs"))
    answers = [model.all_outputs(*parts_of(row, model.manifest["inputs"])) for row in inputs]
    rows = rows_of([np.stack([answer[name] for answer in answers]) for name in answers[0]])
    if options.print:
        for row in rows:
            print(" ".join(f"{value:.9g}" for value in row))
    agrees, start = True, 0
    for output in model.manifest["outputs"]:
        end = start + int(np.prod(output["shape"]))
        found, theirs = rows[:, start:end], expected[:, start:end]
        if output["decides"]:
            difference, what = float((found != theirs).mean()), "share of other decisions than PyTorch's"
        else:
            difference, what = float(np.abs(found - theirs).max()), "largest difference from PyTorch"
        is_right = difference <= output["tolerance"]  # not so for NaN
        where = f", {output['name']}" if len(model.manifest["outputs"]) > 1 else ""
        print(
            f"{len(inputs)} reference inputs{where}: {what} {difference:.2g}, "
            f"{'within' if is_right else 'MORE THAN'} {output['tolerance']:.2g}"
        )
        agrees, start = agrees and is_right, end
    if options.time:
        print(f"{time_ms(model):.3f} ms a call, median of {RUNS_OF_ONE_TIMING}")
    return 0 if agrees else 1


def parts_of(row: np.ndarray, tensors: list[dict[str, Any]]) -> list[np.ndarray]:
    """The values of one sample as the tensors that the manifest lists."""
    ends = np.cumsum([int(np.prod(each["shape"])) for each in tensors])
    parts = np.split(row.reshape(-1), ends[:-1])
    return [part.reshape(each["shape"]) for part, each in zip(parts, tensors, strict=True)]


def rows_of(outputs: list[np.ndarray]) -> np.ndarray:
    """Outputs (n, ...) as (n, all their values)."""
    return np.concatenate([output.reshape(len(output), -1) for output in outputs], axis=1)


def time_ms(model: Model) -> float:
    """Median milliseconds of a call that is warm."""
    samples = []
    for _ in range(RUNS_OF_ONE_TIMING):
        start = time.perf_counter()
        model.run()
        samples.append(time.perf_counter() - start)
    return 1e3 * float(np.median(samples))


if __name__ == "__main__":
    sys.exit(main())
