"""The profile job: measure what a table lacks of a network, and store it.

Which points those are is decided as their neighbours become known (``aap_hw.lut.sampling``). Points are compiled in
worker processes and timed with the workers idle. Each visit is journalled as soon as it is made; the table is written
once, at the end.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

from aap_hw.activity import doing
from aap_hw.compile.families.slow import NoCode, is_slow
from aap_hw.compile.front.network import Network
from aap_hw.compile.keys.address import Address
from aap_hw.device.boards import Boards
from aap_hw.device.connection import Device
from aap_hw.device.description import MEASURED
from aap_hw.device.visiting import VISITS
from aap_hw.files import scratch_folder
from aap_hw.lut.adaptive_sampling import AdaptiveSampling
from aap_hw.lut.compiling import CompiledBatch, Compiler, compiler
from aap_hw.lut.enumeration import granularity_of
from aap_hw.lut.file import save_table
from aap_hw.lut.gathering import gather
from aap_hw.lut.journal import Entry, Journal
from aap_hw.lut.library_cache import LibraryCache
from aap_hw.lut.measuring import Reference, Visit, compile_reference, time_points
from aap_hw.lut.networks import MeasuredNetwork
from aap_hw.lut.opening import open_table, record_conditions
from aap_hw.lut.progress import Clock, Progress, ProgressCallback
from aap_hw.lut.sampling import TOLERANCE
from aap_hw.lut.subject import Workload
from aap_hw.lut.table import LatencyTable

POINTS_A_BATCH = 16
# Kernels of a batch that are named while it is compiled.
NAMED = 3
# A batch of kernels that TVM lowers; a table of what takes longer than this would take days.
LONGEST_COMPILE_S = 900.0
# Several boards share points in so many batches each, at least: who is done first takes over from the others.
BATCHES_A_BOARD = 4
# Cut networks that calibrate a table, at most.
NETWORKS = 24


def profile_model(
    workload: Workload,
    device: Device | Boards,
    path: Path,
    *,
    on_network: Callable[[Network], None] = lambda _: None,
    on_progress: ProgressCallback = lambda _: None,
    workers: int | None = None,
    tolerance: float = TOLERANCE,
    networks: int = NETWORKS,
    cache: LibraryCache | None = None,
) -> LatencyTable:
    """Measure every point that the table at ``path`` lacks for a network, calibrate the table, and write it.

    A table that exists is extended. An interrupted call is taken up where it ended by the next one.

    Parameters
    ----------
    workload
        The network. With mixed precisions all kernels of all mixtures are measured, and mixtures drawn at random
        calibrate the table. Layers in int8 that may stay in float32 are measured in both; the network wholly in int8
        calibrates.
    device
        One device, or several boards of a kind, which share the points.
    on_network
        Called with the network's kernels once it is certain that the device has code for all, before the table is read.
    tolerance
        How far off a latency between measured points may seem to be, as a share of itself, before it is measured too.
    networks
        How many cut networks are measured at most, besides the unpruned one, to calibrate the table
        (``aap_hw.lut.calibrating``).
    cache
        Where compiled points are looked for and kept.

    Raises
    ------
    UserError : the table or journal is of another device, damaged or cannot be written; a part of the model
        has no kernel, or its cuts could not be checked.
    """
    boards = Boards.of(device)
    boards.require_tools()
    identity = boards.describe().as_json()
    journal = Journal.beside(path, identity)
    try:
        subject = workload.traced(boards.target, boards.profile.name)
        network = subject.all_kernels
        on_network(subject.network)
        table = open_table(path, boards, granularity_of(boards.profile, boards.target))
        job = subject.job(table, path)
        # Times of an emulator mean nothing, however often they are taken.
        most = VISITS if boards.describe().provenance == MEASURED else 1
        sampling = AdaptiveSampling(subject.points(job), table, journal, tolerance, most)
        lacks_points = bool(sampling.next() or journal.entries)
        if not lacks_points and job.is_calibrated(networks):
            on_progress(Progress("points", 0, 0, sampling.kept, None))
            return table
        if lacks_points or job.missing(job.needed_plans(networks)):
            try:
                _measure(sampling, job, network, networks, boards, workers or os.cpu_count() or 1, cache, on_progress)
            except NoCode as refusal:
                raise refusal.at(network.described(refusal.key)) from refusal
        job.calibrate(job.calibration_plans(networks))
        save_table(table, path)
    finally:
        journal.close()
    return table


def _measure(
    sampling: AdaptiveSampling,
    job: MeasuredNetwork,
    network: Network,
    networks: int,
    boards: Boards,
    workers: int,
    cache: LibraryCache | None,
    on_progress: ProgressCallback,
) -> None:
    """Measure points, then whole networks; the table holds each kind as soon as it is complete."""
    at_start = boards.conditions()
    with (
        scratch_folder("profile") as folder,
        compiler(boards.target, boards.profile.measure.copies, folder, workers, cache) as pool,
    ):
        reference = compile_reference(pool)
        _measure_points(sampling, network, boards, pool, workers, reference, on_progress)
        entries = sampling.settled()
        if not entries and "reference_us" not in sampling.table.measurement:
            sampling.table.measurement["reference_us"] = _reference_us(boards, reference)
        gather(sampling.table, entries)
        save_table(sampling.table, job.path)
        sampling.journal.empty()
        # All on one board: networks are compared with each other. On the next, what the table has is not done again.
        while job.missing(plans := job.needed_plans(networks)):
            boards.share(
                [plans],
                lambda device, some: job.measure(some, device, pool, Reference(device, reference), on_progress),
            )
    record_conditions(sampling.table, at_start, boards.conditions())


class _Piece:
    """Batches that one board times in turn."""

    def __init__(self, batches: Sequence[Sequence[Address]]) -> None:
        self._batches = batches
        self._futures: list[Future[CompiledBatch]] = []

    def compile(self, pool: Compiler) -> list[Future[CompiledBatch]]:
        """Begin to compile, once."""
        self._futures = self._futures or [pool.submit(points) for points in self._batches]
        return self._futures

    def compiled(self, pool: Compiler, network: Network) -> list[CompiledBatch]:
        """Wait until all is compiled."""
        found = []
        for points, future in zip(self._batches, self.compile(pool), strict=True):
            names = dict.fromkeys(network.described(point.key) for point in points)
            with doing(f"compiling {', '.join(list(names)[:NAMED])}{' and others' if len(names) > NAMED else ''}"):
                found.append(in_time(future, network, points))
        return found


def in_time(future: Future[CompiledBatch], network: Network, points: Sequence[Address]) -> CompiledBatch:
    """What a worker makes of points; only for kernels that TVM lowers can it take too long."""
    slow = next((point.key for point in points if is_slow(point.key)), None)
    try:
        return future.result(None if slow is None else LONGEST_COMPILE_S)
    except TimeoutError:
        assert slow is not None
        why = f"TVM takes more than {LONGEST_COMPILE_S / 60:.0f} minutes to compile it"
        raise NoCode(slow, why, network.described(slow)) from None


def _batches_of(missing: Sequence[Address], boards: Boards) -> list[Sequence[Address]]:
    if boards.at_once == 1:
        return [missing[i : i + POINTS_A_BATCH] for i in range(0, len(missing), POINTS_A_BATCH)]
    # Boards that work side by side should end together: as many batches for each of them, and in each batch as many
    # points, of all kernels, as what points cost differs from kernel to kernel.
    a_board = max(BATCHES_A_BOARD, -(-len(missing) // (POINTS_A_BATCH * boards.at_once)))
    count = min(len(missing), a_board * boards.at_once)
    return [missing[i::count] for i in range(count)]


def _pieces_of(missing: Sequence[Address], boards: Boards, workers: int) -> list[_Piece]:
    batches = _batches_of(missing, boards)
    # Where compiling and timing take turns, each turn should keep all workers busy.
    at_once = 1 if boards.compile_meanwhile else workers
    return [_Piece(batches[i : i + at_once]) for i in range(0, len(batches), at_once)]


def _measure_points(
    sampling: AdaptiveSampling,
    network: Network,
    boards: Boards,
    pool: Compiler,
    workers: int,
    reference: CompiledBatch,
    on_progress: ProgressCallback,
) -> None:
    clock = Clock("points", sampling.kept, on_progress)
    total = 0
    one_at_a_time = threading.Lock()
    references: dict[Device, Reference] = {}
    # By whichever board, and by an interrupted profile.
    visits: dict[Address, list[Visit]] = {}
    for entry in sampling.journal.entries:
        visits.setdefault(entry.address, []).append(Visit(entry.key, entry.point, entry.reference_us))
    before = {address: len(made) for address, made in visits.items()}

    def measure(device: Device, piece: _Piece, compiled: Sequence[CompiledBatch]) -> None:
        if device not in references:
            references[device] = Reference(device, reference)
        loaded = [(device.load(batch.library), batch) for batch in compiled]

        def visited(visit: Visit, number: int) -> None:
            with one_at_a_time:
                entry = Entry(visit.key, visit.point, visit.reference_us, device.board)
                sampling.journal.record(entry)
                if number == before.get(entry.address, 0) + 1:
                    clock.count(total)

        time_points(loaded, device.profile.measure, references[device], visited, visits, sampling.most)
        for batch in compiled:
            batch.library.unlink(missing_ok=True)

    while missing := sorted(sampling.next(), key=lambda address: not is_slow(address.key)):
        # Only TVM knows which kernels on the slow path it has code for: a refusal comes before anything is timed.
        total = clock.measured + len(missing)
        if clock.measured == 0:
            clock.start(total)
        _share(missing, network, boards, pool, workers, measure)


def _share(
    points: Sequence[Address],
    network: Network,
    boards: Boards,
    pool: Compiler,
    workers: int,
    work: Callable[[Device, _Piece, Sequence[CompiledBatch]], None],
) -> None:
    """Compile points and have them timed, in pieces; the next compile meanwhile if that disturbs no timing."""
    pieces = _pieces_of(points, boards, workers)
    if boards.compile_meanwhile:
        for piece in pieces:
            piece.compile(pool)
    # All of a piece are awaited before anything is timed: a busy compiler would slow this machine's kernels down.
    boards.share(pieces, lambda device, piece: work(device, piece, piece.compiled(pool, network)))


def _reference_us(boards: Boards, reference: CompiledBatch) -> float:
    timed: list[float] = []
    boards.share([reference], lambda device, compiled: timed.append(Reference(device, compiled).time_us()))
    return round(timed[-1], 3)
