"""The estimate job: a table for a device that is not there, point by point by ``aap_hw.estimate``.

Which points a table needs is decided as for one that is measured (``aap_hw.lut.sampling``), and each is journalled as
soon as it is known. Nothing is compiled, and no whole network is tried: what one takes beyond its kernels is a factor
of the method.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from aap_hw.compile.front.network import Network
from aap_hw.device.description import ESTIMATED, MEASURED, DeviceDescription
from aap_hw.device.profile import DeviceProfile
from aap_hw.errors import UserError
from aap_hw.estimate.estimator import Estimator, estimator_of
from aap_hw.lut.adaptive_sampling import AdaptiveSampling
from aap_hw.lut.calibrating import Slowdown
from aap_hw.lut.comparing import INCIDENTAL
from aap_hw.lut.enumeration import granularity_of
from aap_hw.lut.file import OtherVersion, load_table, rounded, save_table
from aap_hw.lut.journal import Entry, Journal
from aap_hw.lut.opening import move_aside
from aap_hw.lut.predicting import predict_us
from aap_hw.lut.progress import Clock, Progress, ProgressCallback
from aap_hw.lut.sampling import TOLERANCE
from aap_hw.lut.subject import Workload
from aap_hw.lut.table import LatencyPoint, LatencyTable

# The journal's lines have the latency of a reference kernel, which the speed of an estimate does not depend on.
NO_REFERENCE_US = 1.0


def estimate_model(
    workload: Workload,
    profile: DeviceProfile,
    path: Path,
    *,
    keep_others: bool = False,
    on_network: Callable[[Network, Path | None], None] = lambda *_: None,
    on_progress: ProgressCallback = lambda _: None,
) -> LatencyTable:
    """Estimate every point that the table at ``path`` lacks for a network, and write the table.

    Parameters are those of ``profile_model``; ``on_network`` is also told what a table that was in the way is called
    now. An estimate by another method or version gives way; with ``keep_others`` so does a table that was not measured.
    An interrupted call is taken up where it ended by the next one.

    Raises
    ------
    UserError : the method cannot estimate the device or a kernel, the table was measured, or a file is damaged or
        cannot be written.
    """
    estimator = estimator_of(profile)
    empty = _empty_table(profile, estimator)
    identity = {
        **{name: empty.device[name] for name in empty.device.keys() - set(INCIDENTAL)},
        "method": estimator.method,
    }
    journal = Journal.beside(path, identity)
    try:
        subject = workload.traced(estimator.target, profile.name)
        moved = _make_way(path, empty, others=keep_others)
        on_network(subject.network, moved)
        table = load_table(path) if path.exists() else empty
        sampling = AdaptiveSampling(subject.points(subject.job(table, path)), table, journal, TOLERANCE, most=1)
        _estimate(sampling, estimator, on_progress)
        for entry in journal.entries:
            table.add(entry.key, entry.point)
        alone_us = predict_us(subject.network, subject.network.dense, table)
        table.slowdowns[subject.name] = Slowdown(alone_us, alone_us * estimator.network_factor, 0.0)
        table.device["date"] = date.today().isoformat()
        save_table(table, path)
        journal.empty()
    finally:
        journal.close()
    return table


def _estimate(sampling: AdaptiveSampling, estimator: Estimator, on_progress: ProgressCallback) -> None:
    clock = Clock("points", sampling.kept, on_progress)
    missing = sampling.next()
    if not missing:
        on_progress(Progress("points", 0, 0, sampling.kept, None))
    while missing:
        total = clock.measured + len(missing)
        if clock.measured == 0:
            clock.start(total)
        for address in missing:
            point = LatencyPoint(address.widths, rounded(estimator.latency_us(address)), spread_us=0.0, samples=0)
            sampling.journal.record(Entry(address.key, point, NO_REFERENCE_US))
            clock.count(total)
        missing = sampling.next()


def _empty_table(profile: DeviceProfile, estimator: Estimator) -> LatencyTable:
    description = DeviceDescription.of(profile, estimator.target, estimator.cpu, ESTIMATED)
    facts: dict[str, Any] = {**description.as_json(), "host": platform.platform(), "date": ""}
    how = {"granularity": granularity_of(profile, estimator.target), "at_most": profile.widths.at_most}
    return LatencyTable(facts, {**how, "method": estimator.method, "error": dict(estimator.error)})


def _make_way(path: Path, empty: LatencyTable, *, others: bool) -> Path | None:
    """Move a table away that these estimates cannot be added to; its new name, or None if there was none.

    Raises
    ------
    UserError : it was measured, or it is of another device and nobody said that such a one may be moved.
    """
    if not path.exists():
        return None
    try:
        table = load_table(path)
    except OtherVersion:
        if not others:
            raise
        return move_aside(path)
    provenance = table.device["provenance"]
    if provenance == MEASURED:
        raise UserError(f"{path} was measured, and an estimate is worth less; write it to another file with --out")
    facts = [{name: each.device[name] for name in each.device.keys() - set(INCIDENTAL)} for each in (empty, table)]
    if facts[0] == facts[1] and empty.measurement == table.measurement:
        return None
    if provenance != ESTIMATED and not others:
        raise UserError(f"{path} is {provenance}; write to another file with --out, or delete it")
    return move_aside(path, estimated=table.is_estimated)
