"""The profile job: measure what a table lacks of a network, and store it.

Which points those are is decided as their neighbours become known (``aap_hw.lut.sampling``). Points are compiled in
worker processes and timed with the workers idle. Each visit is journalled as soon as it is made; the table is written
once, at the end.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aap_hw.compile.kernel import Address
from aap_hw.compile.partition import partition
from aap_hw.device.conditions import Conditions
from aap_hw.device.connection import Device
from aap_hw.device.timing import STATISTIC
from aap_hw.errors import UserError
from aap_hw.files import sha256_of
from aap_hw.graph import ChannelGraph
from aap_hw.lut.belonging import difference, require_table_of
from aap_hw.lut.compiling import CompiledBatch, Compiler, compiler
from aap_hw.lut.enumeration import granularity_of, points_of
from aap_hw.lut.file import OtherVersion, load_table, save_table
from aap_hw.lut.journal import Journal
from aap_hw.lut.library_cache import LibraryCache
from aap_hw.lut.measuring import Reference, Visit, time_points
from aap_hw.lut.networks import MeasuredNetwork, WidthPlan
from aap_hw.lut.progress import Clock, Progress, ProgressCallback
from aap_hw.lut.sampling import TOLERANCE, next_points
from aap_hw.lut.table import LatencyTable

POINTS_A_BATCH = 16
# Cut networks that calibrate a table.
NETWORKS = 12


def profile_model(
    name: str,
    module: nn.Module,
    input_shape: tuple[int, ...],
    device: Device,
    path: Path,
    *,
    on_progress: ProgressCallback = lambda _: None,
    workers: int | None = None,
    tolerance: float = TOLERANCE,
    networks: int = NETWORKS,
    cache: LibraryCache | None = None,
) -> LatencyTable:
    """Measure every point that the table at ``path`` lacks for a network, calibrate it, and write the table.

    ``input_shape`` is (N, C, H, W); ``name`` is what the table calls the network; ``tolerance`` is how far off a
    latency between measured points may seem to be, as a share of itself, before it is measured too; ``networks`` is how
    many cut networks are measured besides the unpruned one to calibrate the table (``aap_hw.lut.calibrating``);
    ``cache`` is where compiled points are looked for and kept.

    A table that exists is extended. An interrupted call is taken up where it ended by the next one.

    Raises
    ------
    UserError : the table or journal is of another device, damaged or cannot be written; a part of the model
        has no kernel.
    """
    identity = device.describe().as_json()
    granularity = granularity_of(device.profile, device.target)
    journal = Journal(path.with_name(path.name + ".journal"), identity)
    try:
        table = _open_table(path, device, granularity)
        example = torch.zeros(input_shape)
        graph = ChannelGraph.trace(module, (example,))
        network = partition(graph)
        job = MeasuredNetwork(name, module, graph, network, table, path)
        search = _Search(points_of(network, job.candidates), table, journal, tolerance)
        plans = job.calibration_plans(networks)
        unfinished = bool(search.next() or journal.entries or job.missing(plans))
        known_as = name, network.input_shape
        if not unfinished and known_as in table.slowdowns:
            on_progress(Progress("points", 0, 0, search.kept, None))
            return table
        if unfinished:
            _measure(search, job, plans, device, workers or os.cpu_count() or 1, cache, on_progress)
        job.calibrate(plans)
        save_table(table, path)
    finally:
        journal.close()
    return table


def set_aside(path: Path, device: Device) -> Path | None:
    """Rename the table at ``path`` if it is of another device, or of another version; its new name, or None.

    This keeps the default path free for the device: a table that ships with the package may be of another CPU.

    Raises
    ------
    UserError : there is a file, but it is no table, or it cannot be renamed.
    """
    if not path.exists():
        return None
    try:
        if difference(load_table(path), device) is None:
            return None
    except OtherVersion:
        pass  # measured with care, for another version
    kept = path.with_name(f"{path.stem}-{sha256_of(path)[:8]}.json")
    try:
        path.rename(kept)
    except OSError as problem:
        raise UserError(f"cannot rename {path} to {kept}: {problem.strerror}; write elsewhere with --out") from problem
    return kept


def _open_table(path: Path, device: Device, granularity: int) -> LatencyTable:
    if path.exists():
        table = load_table(path)
        require_table_of(device, table, path)
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
        "statistic": STATISTIC,
        "granularity": granularity,
        "at_most": device.profile.widths.at_most,
    }
    return LatencyTable(facts, measurement)


class _Search:
    """What is still to be measured, given a table and a journal of points that are on their way into it."""

    def __init__(self, wanted: Sequence[Address], table: LatencyTable, journal: Journal, tolerance: float) -> None:
        self._wanted, self._tolerance = wanted, tolerance
        self.table, self.journal = table, journal
        # Without a table to agree with, only ratios matter, and any unit will do.
        self._normal_us = float(table.measurement.get("reference_us", 1.0))
        self._journalled: dict[Address, float] = {}
        self._taken_up = 0
        known = {(key, p.width_in, p.width_out) for key, p, _ in journal.entries}
        self.kept = sum(address in known or address in table for address in wanted)

    def next(self) -> list[Address]:
        """The points to measure next; none when all others can be interpolated."""
        for key, point, reference_us in self.journal.entries[self._taken_up :]:
            at = key, point.width_in, point.width_out
            us = point.latency_us * self._normal_us / reference_us
            self._journalled[at] = min(us, self._journalled.get(at, us))
        self._taken_up = len(self.journal.entries)
        return next_points(self._wanted, self._known_us, self._tolerance)

    def _known_us(self, address: Address) -> float | None:
        if (us := self._journalled.get(address)) is not None:
            return us
        key, width_in, width_out = address
        point = self.table.points.get(key, {}).get((width_in, width_out))
        return None if point is None else point.latency_us


def _measure(
    search: _Search,
    job: MeasuredNetwork,
    plans: Mapping[str, WidthPlan],
    device: Device,
    workers: int,
    cache: LibraryCache | None,
    on_progress: ProgressCallback,
) -> None:
    """Measure points, then whole networks; the table holds each kind as soon as it is complete."""
    at_start = device.conditions()
    with (
        tempfile.TemporaryDirectory(prefix="aap-hw-profile-") as folder,
        compiler(device.target, device.profile.measure.copies, Path(folder), workers, cache) as pool,
    ):
        reference = Reference(device, pool)
        _measure_points(search, device, pool, workers, reference, on_progress)
        _merge(search.table, search.journal, reference)
        save_table(search.table, job.path)
        search.journal.remove()
        job.measure(plans, device, pool, reference, on_progress)
    _record_conditions(search.table, at_start, device.conditions())


def _measure_points(
    search: _Search,
    device: Device,
    pool: Compiler,
    workers: int,
    reference: Reference,
    on_progress: ProgressCallback,
) -> None:
    clock = Clock("points", search.kept, on_progress)
    total = 0

    def visited(visit: Visit, number: int) -> None:
        search.journal.record(visit.key, visit.point, visit.reference_us)
        if number == 1:
            clock.count(total)

    while missing := search.next():
        total = clock.measured + len(missing)
        if clock.measured == 0:
            clock.start(total)
        for compiled in _compiled(missing, pool, workers, ahead=device.board is not None):
            loaded = [(device.load(batch.library), batch) for batch in compiled]
            for batch in compiled:
                batch.library.unlink(missing_ok=True)
            time_points(loaded, device.profile.measure, reference, visited)


def _compiled(
    points: Sequence[Address], pool: Compiler, workers: int, ahead: bool
) -> Iterator[Sequence[CompiledBatch]]:
    """Points, compiled a batch for each worker at a time.

    All of them are awaited before any is given out: a busy compiler would slow down what is timed on this machine.
    For a board the next ones compile meanwhile, ``ahead``.
    """
    batches = [points[i : i + POINTS_A_BATCH] for i in range(0, len(points), POINTS_A_BATCH)]
    groups = [batches[i : i + workers] for i in range(0, len(batches), workers)]
    submitted = [pool.submit(batch) for batch in groups[0]]
    for following in [*groups[1:], []]:
        compiled = [future.result() for future in submitted]
        if ahead:
            submitted = [pool.submit(batch) for batch in following]
        yield compiled
        if not ahead:
            submitted = [pool.submit(batch) for batch in following]


def _record_conditions(table: LatencyTable, start: Conditions, end: Conditions) -> None:
    """Note clock and heat of the last run; what the operating system does not show is left out."""
    governors = list(dict.fromkeys(c.governor for c in (start, end) if c.governor is not None))
    if governors:
        table.measurement["governor"] = ", then ".join(governors)
    temperatures = [c.temperature_c for c in (start, end) if c.temperature_c is not None]
    if temperatures:
        table.measurement["temperature_c"] = [temperatures[0], temperatures[-1]]


def _merge(table: LatencyTable, journal: Journal, reference: Reference) -> None:
    """Take the journal's points into the table, at the device speed that the table is scaled to."""
    timed = [us for *_, us in journal.entries] or [reference.time_us()]
    normal = table.measurement.setdefault("reference_us", round(statistics.median(timed), 3))
    drift = max(timed) / min(timed) - 1
    table.device["date"] = date.today().isoformat()
    table.measurement["reference_drift"] = round(max(drift, table.measurement.get("reference_drift", 0.0)), 4)
    # Of several visits the quickest counts: it comes last, and a later point replaces an earlier one.
    for key, point, reference_us in sorted(journal.entries, key=lambda e: e[1].latency_us / e[2], reverse=True):
        scale = normal / reference_us
        table.add(key, replace(point, latency_us=point.latency_us * scale, spread_us=point.spread_us * scale))
