"""Deploying a run or a network: compile it for a device, check it there against PyTorch, time it, bundle it.

A run is deployed with its weights, and timed beside the network that it was cut from; any other network as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from aap_hw.activity import doing
from aap_hw.compile.front.network import Network
from aap_hw.compile.keys.precision import NetworkPrecision
from aap_hw.compile.keys.target import DeviceTarget
from aap_hw.compile.library.linking import command_of
from aap_hw.compile.library.lowering import compile_network
from aap_hw.deploy.bundle import claimed
from aap_hw.deploy.deployable import Deployable
from aap_hw.deploy.form import Form
from aap_hw.deploy.reference import by_output
from aap_hw.device.boards import Boards
from aap_hw.device.connection import Device, target_of
from aap_hw.device.description import MEASURED, DeviceDescription
from aap_hw.device.machine import LoadedLibrary
from aap_hw.device.profile import DeviceProfile
from aap_hw.device.timing import LOADS, STATISTIC, Call, Timing, time_loads_in_turn
from aap_hw.files import require_writable_file, scratch_folder
from aap_hw.graph.program.inputs import in_batches
from aap_hw.models.origin import Origin
from aap_hw.policy import LATENCY, Budget
from aap_hw.prune.run import RunFolder
from aap_hw.prune.summary import of_another_precision
from aap_hw.train.samples import Samples

# Names of what is compiled and timed: what is deployed, and what it was cut from.
DEPLOYED, UNPRUNED = "deployed", "unpruned"
_STATISTIC = f"{STATISTIC}, the middle one of {LOADS} loads"


@dataclass(frozen=True)
class Deployment:
    """What deploying showed.

    Attributes
    ----------
    bundle : its folder.
    max_abs_diff : largest difference of any output from PyTorch's, over ``images`` images. PyTorch computes in float32,
        and for int8 with values and weights rounded.
    tolerance : how large a difference rounding explains; of several outputs, the largest.
    agreement : share of the images that get PyTorch's class, in percent; None if the network scores no classes.
    latencies : of what was ``deployed``, and of the ``unpruned`` network that it was cut from, if it was cut.
        Each is loaded several times, all loads are timed in turn on the device, and a network's middle load counts.
        Empty where an emulator stands in for the device.
    summary : figures of this deployment, beside those of its run; if that was pruned in another precision, only beside
        those that hold in this one.
    precision : ``fp32``, ``half``, ``int8`` or ``int8,half``.
    equal : how many of the images have PyTorch's outputs up to the rounding of float32: all in float32, most in int8,
        hardly any in half precision.
    pruned_in : the precision of the network of its run; None if it is of no run.
    unknown : ``accuracy`` and ``memory`` if they are known of the run, but not in this precision.
    """

    bundle: Path
    max_abs_diff: float
    tolerance: float
    agreement: float | None
    images: int
    latencies: Mapping[str, Timing]
    summary: dict[str, Any]
    precision: NetworkPrecision
    equal: int
    pruned_in: NetworkPrecision | None = None
    unknown: tuple[str, ...] = ()


def deploy(
    run: RunFolder,
    device: Device | Boards,
    data: Samples,
    folder: Path | None = None,
    precision: str | None = None,
    *,
    pixels: bool = False,
) -> Deployment:
    """Deploy a finished run to a device and write its bundle, by default inside the run folder.

    Of several boards, any one is used, and only while the network is checked and timed there. By default the precision
    is what the run was pruned for; the unpruned network that it is timed beside has the same. In int8 the network may
    take ``pixels``, bytes (1, H, W, C), and normalise them itself.

    Raises
    ------
    UserError : the run was pruned for another device, or cannot be written to, or the device has no kernels of the
        precision.
    Fault : the compiled network does not compute what PyTorch does.
    """
    boards = Boards.of(device)
    boards.require_tools()
    require_writable_file(run.path / "summary.json")  # which the figures are added to

    def load(is_real: bool) -> Deployable:
        return Deployable.of_run(run, boards.profile, data, folder, precision, is_timed=is_real, pixels=pixels)

    done = _deployed(boards, load)
    known = run.summary()
    if done.precision != done.pruned_in:
        kept = of_another_precision(known, done.precision)
        had = {"accuracy": "accuracy_pruned", "memory": "memory_pruned"}
        unknown = tuple(what for what, name in had.items() if known.get(name) is not None and name not in kept)
        return replace(done, summary={**kept, **done.summary}, unknown=unknown)
    if not known:  # of a run whose summary is lost, these figures alone would make none
        return done
    figures = dict(done.summary)
    if (budget_ms := figures.get("budget_ms")) is not None and LATENCY.name in known.get("budgets", {}):
        figures["budgets"] = {**known["budgets"], LATENCY.name: budget_ms}
    return replace(done, summary=run.update_summary(figures))


def deploy_model(
    origin: Origin,
    device: Device | Boards,
    data: Samples,
    folder: Path,
    precision: str | None = None,
    *,
    pixels: bool = False,
) -> Deployment:
    """Deploy a network as it is, quantised by training samples if it is asked for in int8 and not quantised yet.

    Raises
    ------
    UserError : the bundle cannot be written, the device has no kernels of the precision, or the network is quantised
        and asked for in another one.
    Fault : the compiled network does not compute what PyTorch does.
    """
    boards = Boards.of(device)
    boards.require_tools()

    def load(is_real: bool) -> Deployable:
        return Deployable.of_model(origin, boards.profile, data, folder, precision, is_timed=is_real, pixels=pixels)

    return _deployed(boards, load)


def _deployed(boards: Boards, load: Callable[[bool], Deployable]) -> Deployment:
    """Compile, check and time a network that is loaded for a device that is real or emulated, and write its bundle."""
    description = boards.describe()
    boards.close()  # free for others while networks are compiled here
    # An emulator computes what the device would, slowly, and how long it takes tells nothing.
    is_real = description.provenance == MEASURED
    deployable = load(is_real)
    forms = {DEPLOYED: deployable.form, **({UNPRUNED: deployable.dense} if deployable.dense is not None else {})}
    with claimed(deployable.folder), scratch_folder("deploy") as scratch:
        files = {name: scratch / f"{name}.so" for name in forms}
        compiled = {name: _compile(form, deployable, boards.target, files[name]) for name, form in forms.items()}
        outputs, loads = _run_and_time(files, deployable, boards, is_real)
        difference = deployable.reference.compare(outputs, "the compiled network")
        figures: dict[str, Any] = {"max_abs_diff": difference, "images_checked": deployable.reference.count}
        figures["slow_path"] = compiled[DEPLOYED].slow_path
        figures["deployed_precision"] = deployable.form.precision
        timings, measured = {name: each[LOADS // 2] for name, each in loads.items()}, None
        if is_real:
            ms = {name: timing.latency_us / 1e3 for name, timing in timings.items()}
            dense_ms = ms.get(UNPRUNED)
            measured = {"ms": ms[DEPLOYED], "unpruned_ms": dense_ms, "statistic": _STATISTIC, "provenance": MEASURED}
            figures["ms_of_loads"] = [timing.latency_us / 1e3 for timing in loads[DEPLOYED]]
            figures["pruned_ms" if dense_ms is not None else "ms"] = ms[DEPLOYED]
            if dense_ms is not None:
                budget_ms = None if deployable.budget is None else Budget.parse(deployable.budget).of(dense_ms)
                figures |= {"dense_ms": dense_ms, "budget_ms": budget_ms, "dense_is_measured": True}
                deployable = deployable.predicted_beside(dense_ms)
                if deployable.planned_beside_ms is not None and deployable.predicted is not None:
                    figures["predicted_ms"] = deployable.predicted["ms"]
        deployable.write(files[DEPLOYED], boards.target, description.as_json(), measured)
    return Deployment(
        deployable.folder,
        difference,
        max(deployable.reference.tolerances.values()),
        deployable.reference.agreement(outputs),
        deployable.reference.count,
        timings,
        figures,
        deployable.form.precision,
        deployable.reference.equal(outputs),
        deployable.pruned_in,
    )


def bundle_unseen(
    run: RunFolder,
    profile: DeviceProfile,
    data: Samples,
    folder: Path | None = None,
    precision: str | None = None,
    *,
    pixels: bool = False,
) -> Path:
    """Compile a finished run for a device that is not at hand and write its bundle; returns the bundle's folder.

    Nothing is checked or measured: the bundle's own programs do that where it goes.

    Raises
    ------
    UserError : the run was pruned for another device.
    """
    return _bundled(profile, lambda: Deployable.of_run(run, profile, data, folder, precision, pixels=pixels))


def bundle_model_unseen(
    origin: Origin,
    profile: DeviceProfile,
    data: Samples,
    folder: Path,
    precision: str | None = None,
    *,
    pixels: bool = False,
) -> Path:
    """As `bundle_unseen`, for a network as it is; see `deploy_model`."""
    return _bundled(profile, lambda: Deployable.of_model(origin, profile, data, folder, precision, pixels=pixels))


def _bundled(profile: DeviceProfile, load: Callable[[], Deployable]) -> Path:
    target = target_of(profile)
    command_of(target.host)  # told before the work
    deployable = load()
    device = DeviceDescription.of(profile, target, cpu="").as_json()
    del device["provenance"]  # only a device that was there is known to be real
    with claimed(deployable.folder), scratch_folder("deploy") as scratch:
        library = scratch / f"{DEPLOYED}.so"
        _compile(deployable.form, deployable, target, library)
        deployable.write(library, target, device, None)
    return deployable.folder


def _compile(form: Form, deployable: Deployable, target: DeviceTarget, library: Path) -> Network:
    how = form.names, form.quantisation, form.precision, form.pixels is not None
    return compile_network(form.compiled, deployable.sample, target, library, *how)


def _run_and_time(
    files: Mapping[str, Path], deployable: Deployable, boards: Boards, is_real: bool
) -> tuple[list[np.ndarray], dict[str, list[Timing]]]:
    """What the deployed network computes on one of the boards, and if it is a real one latencies of all, by load."""
    results: list[tuple[list[np.ndarray], dict[str, list[Timing]]]] = []

    def work(device: Device, files: Mapping[str, Path]) -> None:
        library = device.load(files[DEPLOYED])
        with doing("running the network on the device"):
            outputs = _outputs(library, deployable)
        results.append((outputs, _timed(device, files, library, deployable) if is_real else {}))

    boards.share([files], work)
    boards.close()
    return results[-1]


@doing("timing networks on the device")
def _timed(
    device: Device, files: Mapping[str, Path], first: LoadedLibrary, deployable: Deployable
) -> dict[str, list[Timing]]:
    """Latencies of all networks by load; ``first`` is a load of what is deployed."""
    passed = {DEPLOYED: deployable.form.passed(deployable.sample)}
    if deployable.dense is not None:
        passed[UNPRUNED] = deployable.dense.passed(deployable.sample)
    loaded = {name: [device.load(file) for _ in range(LOADS - (name == DEPLOYED))] for name, file in files.items()}
    loaded[DEPLOYED].append(first)
    calls = {name: [Call(each, "main", passed[name]) for each in libraries] for name, libraries in loaded.items()}
    return time_loads_in_turn(calls, device.profile.measure)


def _outputs(library: LoadedLibrary, deployable: Deployable) -> list[np.ndarray]:
    answers = []
    for sample in in_batches(deployable.reference.samples):
        library.set_inputs("main", deployable.form.passed(sample))
        answers.append(library.run("main"))
    return by_output(answers)
