"""Proves that a profile that is killed or interrupted loses nothing but the visit in flight, and leaves nobody behind.

Real child processes are ended with SIGKILL and with the SIGINT that a terminal sends to a whole process group.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest

from aap_hw.compile.front.partition import partition
from aap_hw.compile.keys.address import Address
from aap_hw.device.visiting import is_settled
from aap_hw.errors import UserError
from aap_hw.files import scratch_folder
from aap_hw.graph import ChannelGraph
from aap_hw.lut import compiling
from aap_hw.lut.adaptive_sampling import AdaptiveSampling
from aap_hw.lut.compiling import compiler
from aap_hw.lut.journal import Entry, Journal
from aap_hw.lut.measuring import REFERENCE
from aap_hw.lut.progress import Progress
from aap_hw.lut.sampling import TOLERANCE
from aap_hw.lut.table import LatencyPoint, LatencyTable
from tests import forked
from tests.lut import tiny
from tests.lut.tables import KEY
from tests.lut.tiny import POINTS, journal_of, journalled

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120.0
QUICK_BOARD = """
name = "quick"
description = "This machine, measured quickly"
[target]
kind = "host"
[connect]
kind = "local"
[measure]
warmup = 1
repeats = 20
copies = 2
[widths]
granularity = 16
at_most = 2
"""


# Long enough to be killed half way.
PROFILES = """
import sys
from pathlib import Path
from tests.lut import tiny
tiny.profile(Path(sys.argv[1]), repeats=20, cached=False)
"""
COMMAND = "import sys; from aap_hw.cli.main import main; sys.exit(main())"


def child(program: str, arguments: Sequence[str], scratch: Path) -> contextlib.AbstractContextManager[forked.Process]:
    """A program in a process group of its own, as a shell would start it; gone at the end.

    ``scratch`` is where it finds room for temporary files, which one that is killed leaves behind.
    """
    return forked.started(program, arguments, cwd=ROOT, env={**os.environ, "TMPDIR": str(scratch)})


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


def children_of(parent: int) -> set[int]:
    """All processes that a process started, and those that these started."""
    found, running = {parent}, processes()
    while more := {pid for pid, (state, of) in running.items() if of in found and state != "Z"} - found:
        found |= more
    return found - {parent}


def processes() -> dict[int, tuple[str, int]]:
    """State and parent of every process."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            # The name, in parentheses, may hold anything.
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            found[int(entry.name)] = state, int(parent)
    return found


def alive(pids: set[int]) -> set[int]:
    return {pid for pid, (state, _) in processes().items() if pid in pids and state != "Z"}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, set[int]]:
    """A table's path, its journal as a job that was killed half way left it, and who was still alive soon after."""
    path = tmp_path_factory.mktemp("killed") / "table.json"
    with child(PROFILES, [str(path)], tmp_path_factory.mktemp("scratch")) as job:
        job.wait_until(lambda: len(journalled(path)) >= 3)
        workers = children_of(job.pid)
        assert workers
        os.kill(job.pid, signal.SIGKILL)  # and none of its workers
        job.wait()
        deadline = time.monotonic() + PATIENCE_S / 2
        while alive(workers) and time.monotonic() < deadline:
            time.sleep(0.05)
        survivors = alive(workers)
    return path, journal_of(path).read_bytes(), survivors


@pytest.mark.slow  # a process with workers of its own, as the next; the one behind them reads such a journal
def test_killed_job_leaves_its_points_and_no_table(killed: tuple[Path, bytes, set[int]]) -> None:
    path, journal, _ = killed
    # A job that is not killed visits each point twice at least.
    assert 3 <= journal.count(b"\n") - 1 < 2 * POINTS
    assert not path.exists()


@pytest.mark.slow
def test_workers_of_a_killed_job_disappear(killed: tuple[Path, bytes, set[int]]) -> None:
    assert killed[2] == set()


def ratios_in(journal: bytes) -> dict[tuple[str, int, int], list[float]]:
    """The visits of each point in a journal, in units of the reference kernel's latency."""
    found: dict[tuple[str, int, int], list[float]] = {}
    for line in filter(lambda line: line.endswith(b"\n"), journal.splitlines(keepends=True)[1:]):
        visit = json.loads(line)
        width_in, width_out, latency_us, *_ = visit["point"]
        found.setdefault((visit["kernel"], width_in, width_out), []).append(latency_us / visit["reference_us"])
    return found


def test_point_that_an_interrupted_job_visited_once_is_not_known_yet(tmp_path: Path) -> None:
    def visit(width: int, latency_us: float) -> Entry:
        return Entry(KEY, LatencyPoint((width, 16), latency_us, 0.1, 20), 80.0)

    journal = Journal(tmp_path / "journal", {})
    for entry in (visit(8, 10.0), visit(16, 20.0), visit(16, 20.1), visit(24, 30.0), visit(24, 90.0)):
        journal.record(entry)
    journal.close()
    wanted = [Address(KEY, (width, 16)) for width in (8, 16, 24)]
    sampling = AdaptiveSampling(wanted, LatencyTable({}, {}), Journal(journal.path, {}), TOLERANCE)
    assert (sampling.kept, sampling.next()) == (1, [wanted[0], wanted[2]])
    assert {entry.address for entry in sampling.settled()} == {wanted[1]}
    sampling.journal.record(visit(24, 30.1))
    assert sampling.next() == [wanted[0]]
    sampling.journal.close()
    # One visit of an emulated board is all that there is.
    sampling = AdaptiveSampling(wanted, LatencyTable({}, {}), Journal(journal.path, {}), TOLERANCE, most=1)
    assert (sampling.kept, sampling.next()) == (3, [])
    sampling.journal.close()


@pytest.mark.slow
def test_same_job_again_finishes_and_measures_only_what_is_missing(
    killed: tuple[Path, bytes, set[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, journal, _ = killed
    path = tmp_path / "table.json"
    # As if it had died in the middle of a line.
    journal_of(path).write_bytes(journal[: journal.rindex(b"\n") + 1] + b'{"kernel": "conv2d 6x6 dilat')
    before = ratios_in(journal_of(path).read_bytes())
    kept = sum(map(is_settled, before.values()))
    progress: list[Progress] = []
    final: list[bytes] = []
    empty = Journal.empty
    monkeypatch.setattr(Journal, "empty", lambda self: (final.append(self.path.read_bytes()), empty(self)))
    table = tiny.profile(path, repeats=20, on_progress=progress.append)

    points = [p for p in progress if p.what == "points"]
    assert {p.kept for p in points} == {kept}
    assert points[-1].measured == points[-1].total == POINTS - kept
    # Bit for bit: what the killed job wrote is the beginning of what the second one had at its end.
    assert final[0].startswith(journal[: journal.rindex(b"\n") + 1])
    # Both jobs together visit each point as often as one does: until it is settled, and not once more.
    visits = ratios_in(final[0])
    assert all(is_settled(ratios) and not is_settled(ratios[:-1]) for ratios in visits.values())
    assert len(visits) == POINTS
    assert len(table) == POINTS
    assert path.exists()
    assert not journal_of(path).exists()
    measured = {(str(key), *at): point for key, of_key in table.points.items() for at, point in of_key.items()}
    for at, ratios in visits.items():
        assert measured[at].latency_us == pytest.approx(min(ratios) * table.measurement["reference_us"])


def test_journal_of_another_device_is_refused_and_kept(killed: tuple[Path, bytes, set[int]], tmp_path: Path) -> None:
    _, journal, _ = killed
    path = tmp_path / "table.json"
    journal_of(path).write_bytes(journal.replace(b'"threads": 1', b'"threads": 3', 1))
    before = journal_of(path).read_bytes()
    with pytest.raises(UserError, match="interrupted profile with another threads"):
        tiny.profile(path, repeats=20)
    assert journal_of(path).read_bytes() == before
    # Other measuring settings are another device profile.
    journal_of(path).write_bytes(journal)
    with pytest.raises(UserError, match="interrupted profile with another profile_hash"):
        tiny.profile(path, repeats=3)


def profile_command(tmp_path: Path) -> list[str]:
    board = tmp_path / "quick.toml"
    board.write_text(QUICK_BOARD)
    options = ["--device", str(board), "--model", "resnet20", "--out", str(tmp_path / "table.json"), "--workers", "1"]
    return ["profile", *options]


@pytest.mark.slow
def test_ctrl_c_while_measuring_is_one_sentence_and_keeps_the_points(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    with child(COMMAND, profile_command(tmp_path), tmp_path) as command:
        command.wait_until(lambda: len(journalled(path)) >= 2)
        workers = children_of(command.pid)
        command.send(signal.SIGINT)
        assert command.wait() == 130
        err = command.err
        wait_until(lambda: not alive(workers))
    *progress, last = filter(None, err.splitlines())
    kept = re.fullmatch(
        rf"aap-hw: interrupted; (\d+) measured points are kept beside {path}; the same command goes on from there", last
    )
    assert kept, err
    # The interrupt may fall between a point's being written and its being counted.
    assert len(journalled(path)) - 1 <= int(kept[1]) <= len(journalled(path))
    assert all(re.fullmatch(r"measured \d+ of \d+ points.*|aap-hw: [a-z]+ing [^;]+", line) for line in progress), err
    assert not path.exists()


@pytest.mark.slow  # the test above presses Ctrl-C a few seconds later
def test_ctrl_c_while_the_workers_start_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    with child(COMMAND, profile_command(tmp_path), tmp_path) as command:
        # A resource tracker, and what workers are forked from, which is importing.
        command.wait_until(lambda: len(children_of(command.pid)) >= 2)
        workers = children_of(command.pid)
        command.send(signal.SIGINT)
        assert command.wait() == 130
        err = command.err
        wait_until(lambda: not alive(workers))
    # What takes longer than ten seconds is said first.
    assert re.fullmatch(r"(aap-hw: [a-z]+ing [^;\n]+\s+)*aap-hw: interrupted; [^\n]*", err.strip()), err
    assert not path.exists()
    assert not journal_of(path).exists()


def test_worker_that_the_system_ends_is_one_sentence(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"a compiling process was killed, .*; close other programs, or .* --workers 1"),
        compiler(tiny.device().target, 2, tmp_path, 1) as pool,
    ):
        raise BrokenProcessPool
    with pytest.raises(RuntimeError, match="shutdown"):
        pool.submit([REFERENCE])


def test_weights_reach_compiling_processes_without_an_open_file_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tiny.Tiny().eval()
    network = partition(ChannelGraph.trace(module, tiny.INPUT.zeros()))
    sent: list[Any] = []
    with compiler(tiny.device().target, 2, tmp_path, 1) as pool:
        monkeypatch.setattr(pool, "_submit", lambda _, *given: sent.append(given))
        pool.submit_network(network, network.dense, module.state_dict())
    before = os.listdir("/proc/self/fd")
    ForkingPickler.dumps(sent)  # as a pool of processes does
    assert os.listdir("/proc/self/fd") == before


def test_system_without_shared_memory_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_semaphore(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(compiling, "ProcessPoolExecutor", no_semaphore)
    with (
        pytest.raises(UserError, match="need shared memory in /dev/shm: Read-only file system; see that it is mounted"),
        scratch_folder("test") as folder,
        compiler(tiny.device().target, 2, folder, 1),
    ):
        pass
