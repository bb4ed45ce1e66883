"""A profile by folder: what a table lacks of a network is compiled into a pack, and what comes back becomes the table.

A person carries each folder, so there are as few of them as can be: every point that a plan may ask for is measured at
once, and not only those that the others do not tell. Whole networks need a second trip where the first ones show that
they are not enough to calibrate by (``aap_hw.lut.networks``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm

from aap_hw.compile.families.slow import NoCode
from aap_hw.compile.front.network import Network
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import SCHEDULES
from aap_hw.compile.keys.target import DeviceTarget
from aap_hw.compile.library.linking import command_of
from aap_hw.device.connection import target_of
from aap_hw.device.description import EMULATED
from aap_hw.device.profile import DeviceProfile
from aap_hw.device.timing import STATISTIC
from aap_hw.device.visiting import VISITS
from aap_hw.errors import UserError
from aap_hw.files import scratch_folder
from aap_hw.lut.compiling import CompiledBatch, compiler
from aap_hw.lut.enumeration import granularity_of
from aap_hw.lut.file import OtherVersion, load_table, save_table
from aap_hw.lut.gathering import gather, settled
from aap_hw.lut.journal import Entry, Journal
from aap_hw.lut.library_cache import LibraryCache
from aap_hw.lut.measuring import compile_reference
from aap_hw.lut.networks import MeasuredNetwork, WidthPlan
from aap_hw.lut.opening import new_table, open_table, record_conditions, set_aside
from aap_hw.lut.profiling import NETWORKS, POINTS_A_BATCH, in_time
from aap_hw.lut.progress import Clock, ProgressCallback
from aap_hw.lut.same_device import difference
from aap_hw.lut.sampling import TOLERANCE, next_points
from aap_hw.lut.subject import Subject, Workload
from aap_hw.lut.table import LatencyTable
from aap_hw.pack.folder import Contents, Packed, conditions_in, read_results, require_new, write_pack
from aap_hw.pack.reported import ReportedDevice
from aap_hw.pack.tables import entries_of, ratios_of

# What the parts of `about` are to whoever types the command, where their names do not say it.
_OPTIONS = {"heads": "--attention-cuts", "floats": "--float-layer", "measurement": "candidate widths or [measure]"}


@dataclass(frozen=True)
class Asked:
    """What a profile by folder is of: a network and a device.

    Attributes
    ----------
    path : the table's file.
    networks : cut networks that calibrate the table, at most.
    """

    workload: Workload
    profile: DeviceProfile
    path: Path
    networks: int = NETWORKS

    def about(self, target: DeviceTarget) -> dict[str, Any]:
        """What must be the same when results come back."""
        return {
            **about_device(self.profile, target),
            "model": self.workload.name,
            "input": self.workload.inputs.text,
            "precision": self.workload.precision,
            "heads": self.workload.heads,
            "floats": sorted(self.workload.floats),
        }


def about_device(profile: DeviceProfile, target: DeviceTarget) -> dict[str, Any]:
    """What a table of the device will say of it and of how it was measured, as far as that is known here."""
    return {
        "device": {
            "name": profile.name,
            "profile_hash": profile.profile_hash,
            "threads": profile.threads,
            "target": {name: list(value) if isinstance(value, tuple) else value for name, value in target.options},
            "tvm": tvm.__version__,
            "schedules": SCHEDULES,
        },
        "measurement": {
            **profile.measure.model_dump(),
            "statistic": STATISTIC,
            "granularity": granularity_of(profile, target),
            "at_most": profile.widths.at_most,
        },
    }


@dataclass(frozen=True)
class Returned:
    """A table with what came back.

    Attributes
    ----------
    another : what has to be carried there, too, before the table is complete; None if nothing.
    """

    table: LatencyTable
    another: Packed | None


def pack_profile(
    asked: Asked,
    folder: Path,
    *,
    on_network: Callable[[Network], None] = lambda _: None,
    on_progress: ProgressCallback = lambda _: None,
    workers: int | None = None,
    cache: LibraryCache | None = None,
) -> Packed | None:
    """Compile what the table lacks into a new folder; None if it lacks nothing.

    Raises
    ------
    UserError : the folder is there already or cannot be written, the table is damaged or of other candidate widths, or
        the network has no kernels for the device.
    """
    require_new(folder)
    target = target_of(asked.profile)
    command_of(target.host)  # told before the work
    subject = asked.workload.traced(target, asked.profile.name)
    on_network(subject.network)
    job = subject.job(_table_so_far(asked, target), asked.path)
    return _pack(asked, subject, job, target, folder, on_progress, workers, cache)


def unpack_profile(
    asked: Asked,
    folder: Path,
    *,
    keep_others: bool,
    on_network: Callable[[Network, Path | None], None] = lambda *_: None,
    on_progress: ProgressCallback = lambda _: None,
    workers: int | None = None,
    cache: LibraryCache | None = None,
) -> Returned:
    """Take the results in a folder into the table; pack another folder beside it if that shows that more is needed.

    An estimated table that is in the way is renamed first; with ``keep_others`` so is one of another device.

    Raises
    ------
    UserError : the folder is damaged, not finished, or was packed for something else; or the table is.
    """
    results = read_results(folder)
    target = target_of(asked.profile)
    _require_same(results["pack"], asked.about(target), folder)
    device = ReportedDevice.of(results, asked.profile, target)
    subject = asked.workload.traced(target, asked.profile.name)
    granularity = granularity_of(asked.profile, target)
    job = subject.job(new_table(device, granularity), asked.path)
    plans = job.calibration_plans(asked.networks)
    entries, ratios = entries_of(results), ratios_of(results)
    _require_asked(results["pack"], entries, set(subject.points(job)), plans, folder)
    if not entries and not _is_begun(asked.path, device):
        raise UserError(f"{folder} is a second trip, and the table of the first is not at {asked.path}; restore it")
    journal = Journal.beside(asked.path, device.describe().as_json())
    try:
        # Only now, as results that are refused must leave a table of another machine where it is.
        moved = set_aside(asked.path, device, others=keep_others)
        on_network(subject.network, moved)
        table = open_table(asked.path, device, granularity)
        job = subject.job(table, asked.path)
        if not len(table):
            table.measurement["copies"] = results["pack"]["about"]["measurement"]["copies"]
        gather(table, [*settled(journal.entries, 1 if device.emulated else VISITS), *entries])
        save_table(table, asked.path)
        journal.empty()
        missing = job.missing(plans)
        if new := {plan: plans[plan] for plan in ratios if plan in missing}:
            job.take(ratios, new)
        if not device.emulated:
            record_conditions(table, *conditions_in(results))
        job.calibrate(plans)
        save_table(table, asked.path)
    finally:
        journal.close()
    another = None
    if not device.emulated:  # how often ever, an emulator's times mean nothing
        another = _pack(asked, subject, job, target, _beside(folder), on_progress, workers, cache)
    return Returned(table, another)


def _is_begun(path: Path, device: ReportedDevice) -> bool:
    """Whether there is a table of the device with points."""
    if not path.exists():
        return False
    table = load_table(path)
    return len(table) > 0 and difference(table, device) is None


def _table_so_far(asked: Asked, target: DeviceTarget) -> LatencyTable:
    """What is known of the device: its table, if the file is of the device as far as that can be known."""
    granularity = granularity_of(asked.profile, target)
    if asked.path.exists():
        with suppress(OtherVersion):
            table = load_table(asked.path)
            emulated = table.device["provenance"] == EMULATED
            device = ReportedDevice(asked.profile, target, table.device["cpu"], emulated=emulated)
            if difference(table, device) is None:
                return open_table(asked.path, device, granularity)
    return new_table(ReportedDevice(asked.profile, target, "", emulated=False), granularity)


def _pack(
    asked: Asked,
    subject: Subject,
    job: MeasuredNetwork,
    target: DeviceTarget,
    folder: Path,
    on_progress: ProgressCallback,
    workers: int | None,
    cache: LibraryCache | None,
) -> Packed | None:
    points, plans = _lacking_points(subject, job), _lacking_plans(job, asked.networks)
    if not points and not plans:
        return None
    copies = asked.profile.measure.copies
    with (
        scratch_folder("pack") as scratch,
        compiler(target, copies, scratch, workers or os.cpu_count() or 1, cache) as pool,
    ):
        reference = compile_reference(pool)
        batches = [points[i : i + POINTS_A_BATCH] for i in range(0, len(points), POINTS_A_BATCH)]
        compiling = [(batch, pool.submit(batch)) for batch in batches]
        networks = {plan: job.compile(plan, widths, pool, alike=True) for plan, widths in plans.items()}
        libraries: list[CompiledBatch] = []
        clock = Clock("points", 0, on_progress)
        if points:
            clock.start(len(points))
        try:
            for batch, future in compiling:
                libraries.append(in_time(future, subject.all_kernels, batch))
                clock.count(len(points), len(batch))
        except NoCode as refusal:
            raise refusal.at(subject.all_kernels.described(refusal.key)) from refusal
        clock = Clock("networks", 0, on_progress)
        if plans:
            clock.start(len(plans))
        files: dict[str, Path] = {}
        for plan, compiled in networks.items():
            files[plan] = compiled.result()
            clock.count(len(plans))
        shapes = [list(each.shape) for each in asked.workload.inputs.zeros()]
        contents = Contents(
            "profile",
            asked.about(target),
            reference,
            libraries,
            [{"name": plan, "widths": dict(widths), "shapes": shapes} for plan, widths in plans.items()],
            files,
        )
        return write_pack(folder, contents, asked.profile, target)


def _lacking_points(subject: Subject, job: MeasuredNetwork) -> list[Address]:
    """All points that the table does not hold, if those that it holds do not tell the others."""
    table = job.table
    wanted = subject.points(job)

    def known_us(address: Address) -> float | None:
        point = table.point(address)
        return None if point is None else point.latency_us

    if not next_points(wanted, known_us, TOLERANCE):
        return []
    return [address for address in wanted if address not in table]


def _lacking_plans(job: MeasuredNetwork, at_most: int) -> dict[str, WidthPlan]:
    """The networks to measure, with some that were measured already beside them."""
    needed = job.needed_plans(at_most)
    missing = {plan: needed[plan] for plan in job.missing(needed)}
    return {**job.anchors(), **missing} if missing else {}


def _require_same(pack: Mapping[str, Any], about: Mapping[str, Any], folder: Path) -> None:
    """Refuse a folder that was packed for something else than this command is about."""
    if pack["purpose"] != "profile":
        raise UserError(
            f"{folder} was not packed by 'aap-hw profile --pack'; its results are read by 'aap-hw lut merge'"
        )
    for name, ours in about.items():
        theirs = pack["about"][name]
        if theirs == ours:
            continue
        if isinstance(ours, Mapping) and name == "device":
            part = next(each for each in ours if theirs.get(each) != ours[each])
            what, theirs, ours = f"device {part}", theirs.get(part), ours[part]
        else:
            what = _OPTIONS.get(name, name)
        raise UserError(
            f"{folder} was packed for another {what} ({theirs!r} there, {ours!r} here); give the options that it was "
            "packed with, or pack again"
        )


def _require_asked(
    pack: Mapping[str, Any],
    entries: Sequence[Entry],
    points: Collection[Address],
    plans: Mapping[str, WidthPlan],
    folder: Path,
) -> None:
    """Refuse results of points or networks that this model has not: it has changed since it was packed."""
    strange = next((e for e in entries if Address(e.key, e.point.widths) not in points), None)
    if strange is not None:
        raise UserError(f"{folder} holds the kernel '{strange.key}', which the model has not any more; pack again")
    for network in pack["networks"]:
        if plans.get(network["name"]) != network["widths"]:
            raise UserError(f"{folder} holds other cut networks than the model has now ({network['name']}); pack again")


def _beside(folder: Path) -> Path:
    """A folder of the next trip that is not there yet."""
    if folder.name in ("", ".."):  # such as "."
        folder = folder.resolve()
    stem, _, number = folder.name.rpartition("-")
    stem, first = (stem, int(number) + 1) if stem and number.isdecimal() else (folder.name, 2)
    return next(path for n in range(first, first + 1000) if not (path := folder.with_name(f"{stem}-{n}")).exists())
