"""The profile job: measure what a table lacks of a network, and store it.

Points are compiled in worker processes and timed with the workers idle. Each is journalled as soon as it is measured;
the table is written once, at the end.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aap_hw.compile.kernel import Address
from aap_hw.compile.lowering import compile_network
from aap_hw.compile.network import Network
from aap_hw.compile.partition import partition
from aap_hw.device.connection import Device
from aap_hw.device.timing import time_function
from aap_hw.errors import UserError
from aap_hw.files import sha256_of
from aap_hw.graph import ChannelGraph
from aap_hw.lut.enumeration import granularity_of, group_candidates, points_of
from aap_hw.lut.file import load_table, save_table
from aap_hw.lut.journal import Journal
from aap_hw.lut.measuring import Compiler, Reference, compiler, time_point, time_steadily
from aap_hw.lut.predicting import predict_us
from aap_hw.lut.table import LatencyPoint, LatencyTable, Validation

POINTS_A_BATCH = 16


@dataclass(frozen=True)
class ProfileProgress:
    """How far a profile is: points that this run has to measure, and how many of them are done."""

    measured: int
    total: int
    kept: int
    seconds_left: float | None


ProgressCallback = Callable[[ProfileProgress], None]


def profile_model(
    name: str,
    module: nn.Module,
    input_shape: tuple[int, ...],
    device: Device,
    path: Path,
    *,
    on_progress: ProgressCallback = lambda _: None,
    workers: int | None = None,
) -> LatencyTable:
    """Measure every point that the table at ``path`` lacks for a network, and write the table.

    ``input_shape`` is (N, C, H, W); ``name`` is what the table calls the network.

    A table that exists is extended. An interrupted call is taken up where it ended by the next one.

    Raises
    ------
    UserError : the table or journal is of another device, damaged or cannot be written; a part of the model
        has no kernel.
    """
    identity = device.describe().as_json()
    spec = device.profile.widths
    granularity = granularity_of(device.profile, device.target)
    journal = Journal(path.with_name(path.name + ".journal"), identity)
    try:
        table = _open_table(path, device, granularity)
        example = torch.zeros(input_shape)
        graph = ChannelGraph.trace(module, (example,))
        network = partition(graph)
        wanted = points_of(network, group_candidates(graph, granularity, spec.at_most))
        known = {(key, p.width_in, p.width_out) for key, p, _ in journal.entries}
        missing = [a for a in wanted if a not in table and a not in known]
        if not (missing or known) and table.dense_ms(name, network.input_shape) is not None:
            on_progress(ProfileProgress(0, 0, len(wanted), None))
            return table
        with tempfile.TemporaryDirectory(prefix="aap-hw-profile-") as folder:
            workers = workers or os.cpu_count() or 1
            with compiler(device.target, device.profile.measure.copies, Path(folder), workers) as pool:
                reference = Reference(device, pool)
                _measure_points(missing, len(wanted), device, pool, workers, reference, journal, on_progress)
                _merge(table, journal, reference)
                _validate_dense(table, name, module, network, device, Path(folder), reference)
        table.device["date"] = date.today().isoformat()
        save_table(table, path)
        journal.remove()
    finally:
        journal.close()
    return table


def set_aside(path: Path, device: Device) -> Path | None:
    """Rename the table at ``path`` if it is not of this device as it is now; its new name, or None.

    This keeps the default path free for the device: a table that ships with the package may be of another CPU.

    Raises
    ------
    UserError : there is a file, but it is no table, or it cannot be renamed.
    """
    if not path.exists() or _difference(load_table(path), device) is None:
        return None
    kept = path.with_name(f"{path.stem}-{sha256_of(path)[:8]}.json")
    try:
        path.rename(kept)
    except OSError as problem:
        raise UserError(f"cannot rename {path} to {kept}: {problem.strerror}; write elsewhere with --out") from problem
    return kept


def _difference(table: LatencyTable, device: Device) -> str | None:
    """The first fact in which a table's device and this one differ, in words."""
    for name, value in device.describe().as_json().items():
        if table.device.get(name) != value:
            return f"{name} {table.device.get(name)!r} there, {value!r} here"
    return None


def _open_table(path: Path, device: Device, granularity: int) -> LatencyTable:
    if path.exists():
        table = load_table(path)
        if (difference := _difference(table, device)) is not None:
            raise UserError(
                f"{path} holds latencies of another device ({difference}); "
                "write to another file with --out, or delete it"
            )
        steps = {"granularity": granularity, "at_most": device.profile.widths.at_most}
        if any(table.measurement[name] != value for name, value in steps.items()):
            # Its other networks would then be planned over widths that were never measured.
            raise UserError(
                f"{path} was measured with other candidate widths than the device profile asks for now "
                f"({steps}); write to another file with --out, or delete it"
            )
        return table
    facts: dict[str, Any] = {
        **device.describe().as_json(),
        "host": platform.platform(),
        "date": "",
        "provenance": "measured",
    }
    measurement: dict[str, Any] = {
        **device.profile.measure.model_dump(),
        "statistic": "median",
        "granularity": granularity,
        "at_most": device.profile.widths.at_most,
    }
    return LatencyTable(facts, measurement)


def _measure_points(
    missing: Sequence[Address],
    wanted: int,
    device: Device,
    pool: Compiler,
    workers: int,
    reference: Reference,
    journal: Journal,
    on_progress: ProgressCallback,
) -> None:
    began, done = time.monotonic(), 0
    on_progress(ProfileProgress(0, len(missing), wanted - len(missing), None))
    batches = [missing[i : i + POINTS_A_BATCH] for i in range(0, len(missing), POINTS_A_BATCH)]
    for group in [batches[i : i + workers] for i in range(0, len(batches), workers)]:
        # All are awaited before anything is timed: a busy compiler would slow the kernels down.
        for batch in [future.result() for future in [pool.submit(points) for points in group]]:
            library = device.load(batch.library)
            batch.library.unlink(missing_ok=True)
            for index, (key, _, _) in enumerate(batch.points):
                once = partial(time_point, library, batch, index, device.profile.measure)
                journal.record(key, *time_steadily(once, reference))
                done += 1
                left = (time.monotonic() - began) / done * (len(missing) - done)
                on_progress(ProfileProgress(done, len(missing), wanted - len(missing), left))


def _merge(table: LatencyTable, journal: Journal, reference: Reference) -> None:
    """Take the journal's points into the table, at the device speed that the table is scaled to."""
    timed = [us for *_, us in journal.entries] or [reference.time_us()]
    normal = table.measurement.setdefault("reference_us", round(statistics.median(timed), 3))
    drift = max(timed) / min(timed) - 1
    table.measurement["reference_drift"] = round(max(drift, table.measurement.get("reference_drift", 0.0)), 4)
    for key, point, reference_us in journal.entries:
        scale = normal / reference_us
        table.add(key, replace(point, median_us=point.median_us * scale, spread_us=point.spread_us * scale))


def _validate_dense(
    table: LatencyTable,
    name: str,
    module: nn.Module,
    network: Network,
    device: Device,
    folder: Path,
    reference: Reference,
) -> None:
    """Measure the unpruned network end to end, so that shares of its latency mean something."""
    if table.dense_ms(name, network.input_shape) is not None:
        return
    library = folder / "dense.so"
    example = torch.zeros(network.input_shape)
    compile_network(module, example, device.target, library)
    loaded = device.load(library)

    def time_once() -> LatencyPoint:
        timing = time_function(loaded, "main", [example.numpy()], device.profile.measure)
        return LatencyPoint(1, 1, timing.median_us, timing.spread_us, timing.samples)

    point, reference_us = time_steadily(time_once, reference)
    table.validation.append(
        Validation(
            name,
            network.input_shape,
            "dense",
            predict_us(network, network.dense, table),
            point.median_us * table.measurement["reference_us"] / reference_us,
        )
    )
