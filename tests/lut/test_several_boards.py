"""Proves that several boards share a profile, and that boards that die, hang, reboot or differ cost nothing measured.

The boards are real servers behind a real tracker; only their kernels sleep instead of running, see ``tests.device``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aap_hw.compile.keys.address import Address
from aap_hw.device import boards
from aap_hw.device.boards import Boards
from aap_hw.errors import UserError
from aap_hw.lut import journal
from aap_hw.lut.gathering import disagreement
from aap_hw.lut.journal import Entry
from aap_hw.lut.library_cache import users_cache
from aap_hw.lut.profiling import profile_model
from aap_hw.lut.progress import Progress
from aap_hw.lut.subject import Workload
from aap_hw.lut.table import LatencyTable
from tests.device import servers
from tests.device.servers import Server
from tests.device.sleeping import SleepingClock
from tests.lut import tiny

CLOCK = SleepingClock(us=2000)


@pytest.fixture
def tracker() -> Iterator[Server]:
    with servers.tracker() as server:
        yield server


@pytest.fixture
def visits(monkeypatch: pytest.MonkeyPatch) -> list[Entry]:
    """All that is written into journals, in order."""
    seen: list[Entry] = []
    real = journal.Journal.record

    def record(self: journal.Journal, entry: Entry) -> None:
        real(self, entry)
        seen.append(entry)

    monkeypatch.setattr(journal.Journal, "record", record)
    return seen


def board(tracker: Server, clock: SleepingClock = CLOCK) -> Server:
    return servers.board("x86", tracker, clock=clock)


def profile(
    tracker: Server,
    path: Path,
    notify: Callable[[str], None],
    on_progress: Callable[[Progress], None] = lambda _: None,
    timeout_s: float = 5.0,
) -> LatencyTable:
    quick = tiny.device().profile
    patient = quick.model_copy(update={"connect": quick.connect.model_copy(update={"timeout_s": timeout_s})})
    fleet = Boards(patient.reached_by(f"tracker://127.0.0.1:{tracker.port}/x86"), notify)
    try:
        return profile_model(
            Workload("tiny", tiny.Tiny(), tiny.INPUT),
            fleet,
            path,
            on_progress=on_progress,
            workers=1,
            tolerance=-1.0,
            networks=0,
            cache=users_cache(),
        )
    finally:
        fleet.close()


def address_of(entry: Entry) -> Address:
    return Address(entry.key, entry.point.widths)


def name_of(server: Server) -> str:
    return f"127.0.0.1:{server.port}"


@pytest.mark.slow
def test_boards_that_die_reboot_and_hang_lose_nothing_that_was_measured(
    tracker: Server, tmp_path: Path, visits: list[Entry]
) -> None:
    first, second = board(tracker), board(tracker)
    fleet, told, points = [first, second], list[str](), 0

    def disturb(progress: Progress) -> None:
        nonlocal points
        if progress.what == "points":
            points, before = progress.measured, points
            if before < tiny.POINTS // 3 <= points:
                first.kill()
                fleet.append(board(tracker))
            if before < 2 * tiny.POINTS // 3 <= points:
                second.stop()

    try:
        table = profile(tracker, tmp_path / "table.json", told.append, disturb)
    finally:
        for server in fleet:
            server.kill()
    assert len(table) == tiny.POINTS
    assert table.dense_ms("tiny", tiny.INPUT) is not None
    # Two visits that agree settle a point, and every visit of this clock agrees: a third is one made in vain.
    made = Counter(map(address_of, visits))
    assert len(made) == tiny.POINTS
    assert set(made.values()) == {2}
    assert {name_of(server) for server in fleet} == {entry.board for entry in visits}
    recorded = table.measurement["boards"]
    assert recorded.keys() == {name_of(server) for server in fleet}
    assert sum(facts["points"] for facts in recorded.values()) == tiny.POINTS
    assert any(name_of(first) in line and "done again" in line for line in told)
    assert any(name_of(second) in line and "it did not answer for 5 s" in line for line in told)


@pytest.mark.slow
def test_without_any_board_the_profile_ends_and_goes_on_later(
    tracker: Server, tmp_path: Path, visits: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boards, "TIMEOUTS_WITHOUT_BOARD", 1)
    path, only = tmp_path / "table.json", board(tracker)

    def kill(progress: Progress) -> None:
        if progress.measured == tiny.POINTS // 2:
            only.kill()

    with pytest.raises(UserError, match=r"no board has answered for \d+ s; the last: .*no board with the key 'x86'"):
        profile(tracker, path, lambda _: None, kill, timeout_s=2.0)
    kept = set(map(address_of, visits))
    assert {(v["kernel"], *v["point"][:2]) for v in tiny.journalled(path)} == {
        (str(each.key), *each.widths) for each in kept
    }
    with board(tracker):
        table = profile(tracker, path, lambda _: None)
    assert len(table) == tiny.POINTS
    # What was visited once before is visited once more: both visits count.
    made = Counter(map(address_of, visits))
    assert len(made) == tiny.POINTS
    assert set(made.values()) == {2}


@pytest.mark.slow  # it is waited for; test_batches deals out the work among unlike boards
def test_slow_board_is_named_and_its_points_are_as_good_as_the_others(tracker: Server, tmp_path: Path) -> None:
    with board(tracker), board(tracker, SleepingClock(us=1.3 * CLOCK.us)) as slow:
        table = profile(tracker, tmp_path / "table.json", lambda _: None)
    sentence = disagreement(table.measurement["boards"])
    assert sentence is not None
    assert f"{name_of(slow)} takes 1.30 times as long as" in sentence
    # All functions take as long on this clock, so that a point is told from its neighbours by its copies alone.
    latencies = {round(p.latency_us, 1) for points in table.points.values() for p in points.values()}
    assert len(latencies) <= 3, latencies


def facts(*quartiles: float) -> dict[str, object]:
    return {"points": 5, "reference_us": list(quartiles)}


@pytest.mark.parametrize(
    ("found", "named"),
    [
        ({}, False),
        ({"a": facts(80, 80, 80)}, False),
        ({"a": facts(80, 80, 80), "b": facts(83, 83, 83)}, False),
        ({"a": facts(80, 80, 80), "b": facts(90, 90, 90)}, True),
        ({"a": facts(75, 80, 85), "b": facts(85, 90, 95)}, False),
    ],
    ids=["none", "one", "alike", "slow", "noisy"],
)
def test_board_is_named_if_it_differs_by_more_than_the_noise(found: dict[str, dict[str, object]], named: bool) -> None:
    assert (disagreement(found) is not None) == named
