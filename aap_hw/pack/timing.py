"""The work of a pack's program: load its libraries, check what they compute, and time them as a profile does.

It is a profile's own code that times (``aap_hw.device.timing`` and ``visiting``). What is done is written to
results.json every few seconds, and not done again.
"""

from __future__ import annotations

import ctypes
import datetime
import gzip
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm_ffi

from aap_hw.device.conditions import conditions
from aap_hw.device.facts import Facts, facts_of
from aap_hw.device.machine import NETWORK, LoadedModule, made_up
from aap_hw.device.timing import TURNS, Call, Timing, time_calls_in_turn, time_function
from aap_hw.device.visiting import VISITS, visit_in_turn
from aap_hw.pack.run import RESULTS, SCHEMA_VERSION, Refused, read_document

SECONDS_BETWEEN_WRITES, SECONDS_BETWEEN_LINES = 5.0, 10.0
# Programs that want to run, on average of a minute, before ours begin.
BUSY = 0.5
# Beside the names of networks.
REFERENCE = "the reference kernel"


@dataclass(frozen=True)
class Spec:
    """How a function is timed."""

    warmup: int
    repeats: int


def time_pack(folder: Path, pack: dict[str, Any], say: Callable[[str], None] = print) -> dict[str, Any]:
    """Do what is left to do of a pack, and return all its results.

    Raises
    ------
    Refused : there is no GPU where one is needed, or results of another pack or machine are in the way.
    """
    results = _Results(folder, pack)
    if results.document["finished"]:
        say("everything was timed before; delete results.json to begin anew")
        return results.document
    facts = facts_of(_read, platform.machine())
    device = _device_of(pack["requires"])
    results.begin_on(facts, device.device_name if pack["requires"]["accelerator"] == "cuda" else None)
    if facts.emulated:
        say("this machine is emulated: how long anything takes here says nothing, so it is timed once")
    else:
        # An emulator has fewer cores than it shows, and threads that wait for each other.
        tvm.get_global_func("runtime.config_threadpool")(1, pack["requires"]["threads"])
        if (busy := os.getloadavg()[0]) > BUSY:
            say(f"other programs run here (load {busy:.1f}), which makes latencies less certain; end them if you can")
    results.document.update(
        host=platform.platform(), python=platform.python_version(), date=datetime.date.today().isoformat()
    )
    results.condition()
    try:
        with tempfile.TemporaryDirectory(prefix="aap-hw-pack-", ignore_cleanup_errors=True) as scratch:
            work = _Work(folder, pack, results, device, Path(scratch), facts.emulated, say)
            work.points()
            work.networks()
        if pack["beside"]:
            from aap_hw.pack.beside import time_beside

            time_beside(pack["beside"], results.document["beside"], results.write, say)
    except KeyboardInterrupt:
        results.write()
        raise
    results.condition()
    results.document["finished"] = True
    results.write()
    return results.document


def _read(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes()
    except OSError:
        return None


def _device_of(requires: dict[str, Any]) -> Any:
    if requires["accelerator"] != "cuda":
        return tvm.cpu()
    library = Path(tvm.__file__).parent / "lib" / "libtvm_runtime_cuda.so"
    try:
        _load_cuda_runtime()
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    except OSError as problem:
        raise Refused(
            f"TVM cannot use a GPU here ({problem}); it takes NVIDIA's driver and CUDA's run time 13: python3 -m pip "
            "install nvidia-cuda-runtime"
        ) from problem
    device = tvm.cuda(0)
    if not device.exist:
        raise Refused("this machine has no NVIDIA GPU that its driver shows; run nvidia-smi to see why")
    arch = "sm_" + device.compute_version.replace(".", "")
    if arch != requires["arch"]:
        raise Refused(
            f"the pack is for a GPU of {requires['arch']} and this machine's is of {arch}; pack it for {arch}"
        )
    return device


def _load_cuda_runtime() -> None:
    """Load CUDA's run time from its wheel, if it is installed there; otherwise the system's is found by its name."""
    for folder in map(Path, sys.path):
        for path in folder.glob("nvidia/*/lib/libcudart.so.13"):
            ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
            return


class _Results:
    """results.json as it grows: replaced as a whole, so that it is complete at any moment."""

    def __init__(self, folder: Path, pack: dict[str, Any]) -> None:
        self._path, self._written = folder / RESULTS, float("-inf")
        self.document: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "pack": pack,
            "finished": False,
            "conditions": [],
            "visits": [],
            "networks": {},
            "checks": [],
            "beside": {},
        }
        if self._path.exists():
            before = read_document(folder, RESULTS, "delete it to begin anew")
            if before.get("pack", {}).get("digest") != pack["digest"]:
                raise Refused(f"{self._path} holds the results of another pack; move it away to begin anew")
            self.document = before

    def begin_on(self, facts: Facts, gpu: str | None) -> None:
        """Note which machine times; Refused if what is there was timed on another."""
        before = dict(self.document)
        self.document.update(facts=asdict(facts), gpu=gpu)
        if "facts" in before and (there := _machine_of(before)) != (here := _machine_of(self.document)):
            raise Refused(f"{self._path} was begun on {there} and this is {here}; delete it to begin anew")

    def condition(self) -> None:
        """Note the state of clock and heat, and how many programs want to run."""
        self.document["conditions"].append({**asdict(conditions()), "load": round(os.getloadavg()[0], 2)})
        self.write()

    def write(self, *, soon: bool = False) -> None:
        """Write now, or if it is ``soon`` enough only when the last time is some seconds ago."""
        if soon and time.monotonic() - self._written < SECONDS_BETWEEN_WRITES:
            return
        temporary = self._path.with_name(f".{RESULTS}.tmp")
        try:
            with temporary.open("w") as stream:
                json.dump(self.document, stream)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(self._path)
        except OSError as problem:
            raise Refused(f"cannot write {self._path} ({problem.strerror}); make room there, and go on") from problem
        self._written = time.monotonic()


def _machine_of(document: dict[str, Any]) -> str:
    """What latencies in results are of, in words."""
    facts, gpu = document["facts"], document["gpu"]
    return f"{facts['cpu']}{f' with {gpu}' if gpu else ''}{' (emulated)' if facts['emulated'] else ''}"


class _Work:
    def __init__(
        self,
        folder: Path,
        pack: dict[str, Any],
        results: _Results,
        device: Any,
        scratch: Path,
        emulated: bool,
        say: Callable[[str], None],
    ) -> None:
        self._folder, self._pack, self._results, self._device = folder, pack, results, device
        self._scratch, self._say = scratch, say
        self._measure = Spec(0, 1) if emulated else Spec(**pack["measure"])
        self._visits, self._turns = (1, 1) if emulated else (VISITS, TURNS)
        self._values: Any = np.load(folder / "values.npz", allow_pickle=False) if "values.npz" in pack["sha256"] else {}
        reference = pack["reference"]
        self._reference = self._load(reference), reference["points"][0]
        # Everything is run once as soon as it is loaded: should TVM ask for a GPU's machine code only then, it still
        # gets that of this library.
        self._time(*self._reference, 0)

    def points(self) -> None:
        """Time all points, one library after the other."""
        libraries = self._pack["libraries"]
        if not libraries:
            return
        total = sum(len(library["points"]) for library in libraries)
        ratios: dict[tuple[int, int], list[float]] = {}
        for number, index, us, _, _, reference_us in self._results.document["visits"]:
            ratios.setdefault((number, index), []).append(us / reference_us)
        progress = _Progress("points", total, len(ratios), self._say)
        for number, library in enumerate(libraries):
            self._visit(number, library, ratios, progress)
            self._results.write()

    def _visit(
        self, number: int, library: dict[str, Any], ratios: dict[tuple[int, int], list[float]], progress: _Progress
    ) -> None:
        points, loaded = library["points"], self._load(library)
        self._check_points(library, loaded)

        def record(place: tuple[int, int], timing: Timing, reference_us: float) -> None:
            visit = [*place, timing.latency_us, timing.spread_us, timing.samples, reference_us]
            self._results.document["visits"].append(visit)
            ratios.setdefault(place, []).append(timing.latency_us / reference_us)
            self._results.write(soon=True)
            progress.at(len(ratios))

        visit_in_turn(
            [(number, index) for index in range(len(points))],
            lambda place: self._time(loaded, points[place[1]], place[1]),
            lambda: self._time(*self._reference, 0).latency_us,
            lambda place: ratios.get(place, ()),
            record,
            self._visits,
        )

    def networks(self) -> None:
        """Check all networks, and time them in turn."""
        networks = self._pack["networks"]
        done = self._results.document["networks"]
        if not networks or len(done) == len(networks):
            return
        self._say(f"timing {len(networks)} networks in turn")
        calls = {}
        for network in networks:
            loaded = self._load(network)
            inputs = [np.zeros(shape, np.float32) for shape in network["shapes"]]
            if "expected" in network:
                inputs = [self._values[name] for name in network["inputs"]]
                self._check(network["name"], network["expected"], loaded, NETWORK, inputs)
            loaded.set_inputs(NETWORK, inputs)
            loaded.run(NETWORK)
            calls[network["name"]] = Call(loaded, NETWORK, inputs)
        library, point = self._reference
        calls[REFERENCE] = Call(library, "point_0", made_up(point["shapes"], point["types"]))
        timings = time_calls_in_turn(calls, self._measure, self._turns)
        reference_us = timings.pop(REFERENCE).latency_us / point["copies"]
        done.update({name: [timing.latency_us, timing.spread_us, reference_us] for name, timing in timings.items()})
        self._results.write()

    def _time(self, loaded: LoadedModule, point: dict[str, Any], index: int) -> Timing:
        arguments = made_up(point["shapes"], point["types"])
        timing = time_function(loaded, f"point_{index}", arguments, self._measure)
        copies = point["copies"]
        return Timing(timing.latency_us / copies, timing.spread_us / copies, timing.samples)

    def _load(self, library: dict[str, Any]) -> LoadedModule:
        if library.get("cubin"):
            # TVM asks this function to compile the source of the kernels, which has been done.
            code = gzip.decompress((self._folder / library["cubin"]).read_bytes())
            tvm_ffi.register_global_func("tvm_callback_cuda_compile", lambda *_: code, override=True)
        path = self._scratch / library["file"].removesuffix(".gz")
        content = gzip.decompress((self._folder / library["file"]).read_bytes())
        try:
            path.write_bytes(content)
        except OSError as problem:
            raise Refused(
                f"cannot use the temporary folder {self._scratch.parent} ({problem.strerror}); make room there, or set "
                "TMPDIR to another folder"
            ) from problem
        try:
            return LoadedModule(tvm.runtime.load_module(str(path)), self._device)
        except (RuntimeError, OSError) as problem:
            why = str(problem).strip().splitlines()[-1]
            raise Refused(
                f"this machine does not load {library['file']}, which was compiled for it: {why}"
            ) from problem
        finally:
            path.unlink()  # what is loaded stays

    def _check_points(self, library: dict[str, Any], loaded: LoadedModule) -> None:
        for index, point in enumerate(library["points"]):
            if "expected" in point:
                name = f"{point['kernel']} at {' -> '.join(map(str, point['widths']))}"
                arguments = made_up(point["shapes"], point["types"])
                self._check(name, point["expected"], loaded, f"point_{index}", arguments)

    def _check(
        self, name: str, expected: dict[str, Any], loaded: LoadedModule, function: str, inputs: Sequence[np.ndarray]
    ) -> None:
        checks = self._results.document["checks"]
        if any(check["name"] == name for check in checks):
            return
        loaded.set_inputs(function, inputs)
        (output, *_) = loaded.run(function)
        wanted = self._values[expected["array"]].astype(np.float32)
        is_alike = output.shape == wanted.shape
        difference = float(np.abs(output.astype(np.float32) - wanted).max(initial=0.0)) if is_alike else np.inf
        is_right = bool(difference <= expected["tolerance"])  # not so for NaN
        # JSON has no word for NaN.
        shown = difference if np.isfinite(difference) else 1e30
        checks.append({"name": name, "difference": shown, "tolerance": expected["tolerance"], "right": is_right})
        self._results.write(soon=True)


class _Progress:
    """Lines that say how far it is."""

    def __init__(self, what: str, total: int, known: int, say: Callable[[str], None]) -> None:
        self._what, self._total, self._known, self._say = what, total, known, say
        self._began = self._said = time.monotonic()
        say(f"timing {total} {what}" + (f", {known} of them are known" if known else ""))

    def at(self, count: int) -> None:
        now = time.monotonic()
        if now - self._said >= SECONDS_BETWEEN_LINES and count > self._known:
            self._said = now
            left = (now - self._began) / (count - self._known) * (self._total - count)
            minutes, seconds = divmod(round(left), 60)
            self._say(f"timed {count} of {self._total} {self._what}, about {minutes} min {seconds} s left")
